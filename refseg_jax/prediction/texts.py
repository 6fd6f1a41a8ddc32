"""Encodes the expressions of a predictor: tokens, anti-expressions, text features."""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from refseg_jax.errors import UserError
from refseg_jax.prediction.engines import Engine
from refseg_jax.text.anti import anti_text
from refseg_jax.text.tokenizers import (
    AntiPrefix,
    ExpressionError,
    build_tokenizer,
    check_tokenizer,
    prefix_id,
)


@dataclasses.dataclass(frozen=True)
class Words:
    """Expressions that `Predictor.words` has encoded, for any number of images.

    Attributes:
        parts: number of expressions of each part that is decoded at once, and its text features.
    """

    parts: tuple[tuple[int, Any], ...]


class TextEncoder:
    """Turns expressions into text features of an engine."""

    def __init__(self, engine: Engine, data: Mapping[str, Any]) -> None:
        """Loads the tokenizer.

        Args:
            engine: encodes the texts.
            data: section `data` of the run's config.

        Raises:
            UserError: the tokenizer does not exist or does not fit the model.
        """
        self._engine, self._length = engine, data["context_length"]
        # Early runs had no anti-expressions.
        prefix: AntiPrefix = data.get("anti_prefix", "")
        check_tokenizer(data["tokenizer"], self._length, engine.config, prefix)
        self.tokenizer = build_tokenizer(data["tokenizer"])
        if engine.group_size is not None and not prefix:
            raise UserError(
                "config.data.anti_prefix is empty, but the model reads anti-expressions; set it as in "
                "training, to token or word"
            )
        self._prefix = None
        if engine.group_size is not None:
            self._prefix = prefix_id(self.tokenizer, prefix)

    def ids(self, expressions: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """Token ids i32 `[K, L]` and their validity bool `[K, L]`.

        Raises:
            ExpressionError: there is no expression, or one is empty or not text.
        """
        if isinstance(expressions, str):
            raise ExpressionError("expressions is one text; give a list of them")
        if not expressions:
            raise ExpressionError("there is no expression; give at least one")
        return self.tokenizer(expressions, self._length)

    def cut_short(self, expressions: Sequence[str]) -> list[str]:
        """Expressions with more tokens than L, or whose anti-expressions have; raises as `ids` does."""
        self.ids(expressions)
        room = self._length - (self._prefix is not None)
        _, valid = self.tokenizer(expressions, room + 1)
        return [text for text, long in zip(expressions, valid[:, -1], strict=True) if long]

    def parts(self, ids: np.ndarray, valid: np.ndarray, most: int) -> Iterator[tuple[int, Any]]:
        """Numbers and text features of expressions, i32 and bool `[K, L]`, up to `most` at a time."""
        for start in range(0, len(ids), most):
            part = slice(start, start + most)
            text, mask = padded(ids[part], valid[part], most)
            yield len(ids[part]), self.features(text[None], mask[None])

    def features(self, ids: np.ndarray, valid: np.ndarray) -> Any:
        """Text features of rows of expressions, i32 and bool `[b, k, L]`."""
        if self._prefix is None:
            return self._engine.encode_text(ids, valid)
        return self._engine.encode_text(ids, valid, anti_text(ids, valid, self._prefix))


def padded(ids: np.ndarray, valid: np.ndarray, most: int) -> tuple[np.ndarray, np.ndarray]:
    """Repeats the last expression up to a power of two or `most`, so that few shapes are compiled."""
    count = min(1 << (len(ids) - 1).bit_length(), most)
    padding = ((0, count - len(ids)), (0, 0))
    return np.pad(ids, padding, mode="edge"), np.pad(valid, padding, mode="edge")
