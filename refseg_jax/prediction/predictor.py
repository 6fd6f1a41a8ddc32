"""Predicts masks for images and expressions, with nothing but a checkpoint or an export."""

import dataclasses
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from refseg_jax.checkpoints.folder import another_version
from refseg_jax.checkpoints.params import load_params
from refseg_jax.errors import UserError
from refseg_jax.exports.folder import is_export
from refseg_jax.images import preprocess
from refseg_jax.images.resize import check_resample
from refseg_jax.models.region_maps import RegionMap, highest_regions
from refseg_jax.prediction.engines import Engine, ParameterEngine
from refseg_jax.prediction.painting import Painter, Prediction
from refseg_jax.prediction.pictures import PictureLike, to_rgb
from refseg_jax.prediction.reader import read_engine
from refseg_jax.text.tokenizers import ExpressionError, build_tokenizer, check_tokenizer

#: Default number of expressions decoded at once: for an image of 4000 x 3000 pixels, their logits take
#: 400 MB.
EXPRESSIONS_AT_ONCE = 8


@dataclasses.dataclass(frozen=True)
class Words:
    """Expressions that `Predictor.words` has encoded, for any number of images.

    Attributes:
        parts: number of expressions of each part that is decoded at once, and its text features.
    """

    parts: tuple[tuple[int, Any], ...]


class Predictor:
    """A model with its preprocessing, tokenizer, threshold and way of resampling masks."""

    def __init__(
        self,
        model: Mapping[str, Any] | Engine,
        config: Mapping[str, Any],
        *,
        expressions_at_once: int = EXPRESSIONS_AT_ONCE,
    ) -> None:
        """Sets up preprocessing, tokenizer, model, threshold and resampling.

        Args:
            model: parameters of a model of this code (dotted path -> array), or an engine.
            config: the run's resolved config; its sections `model`, `data` and `eval` are read.
            expressions_at_once: how many expressions are decoded at once, which bounds the memory for
                logits. Masks do not depend on it; scores do by rounding only.

        Raises:
            UserError: a value of the config or of `expressions_at_once` is invalid, or the tokenizer
                does not fit the model.
            KeyError, TypeError, ValueError: the config is of another version, or the parameters do
                not fit the model.
        """
        if expressions_at_once < 1:
            raise UserError(f"expressions_at_once={expressions_at_once} is less than 1")
        self._at_once = expressions_at_once
        given = isinstance(model, Mapping)
        self._engine: Engine = ParameterEngine(model, config["model"]) if given else model
        self._resize = config["data"]["resize"]
        self._length = config["data"]["context_length"]
        self._tokenizer = build_tokenizer(config["data"]["tokenizer"])
        check_tokenizer(config["data"]["tokenizer"], self._length, self._engine.config)
        preprocess.check_resize(self._resize)
        threshold = float(config["eval"]["threshold"])
        if not 0.0 < threshold < 1.0:
            raise UserError(f"config.eval.threshold={threshold} is not between 0 and 1")
        # Early runs had only one way.
        resample: Any = config["eval"].get("resample", "logits")
        check_resample(resample)
        self._painter = Painter(self._engine.mask_stride, threshold, resample)

    @classmethod
    def from_checkpoint(
        cls,
        path: str | Path,
        *,
        step: int | Literal["latest", "best"] = "latest",
        expressions_at_once: int = EXPRESSIONS_AT_ONCE,
        threshold: float | None = None,
    ) -> "Predictor":
        """Makes a predictor from a run, a checkpoint or an export.

        Args:
            path: a run's workdir, one step folder, or a folder that `tools.export` wrote.
            step: which checkpoint of a workdir, see `refseg_jax.checkpoints.params.load_params`; an
                exported folder has only one.
            expressions_at_once: as in `Predictor`.
            threshold: a pixel is in the mask where its probability is larger; by default that of the
                run (`config.eval.threshold`).

        Raises:
            UserError: no usable checkpoint was found at `path`, a file is damaged, or another version
                of the code wrote it.
        """
        with another_version(path):
            if is_export(Path(path)):
                model, config = read_engine(Path(path), step)
            else:
                model, config = load_params(path, step=step)
            if threshold is not None:
                config = {**config, "eval": {**config["eval"], "threshold": threshold}}
            return cls(model, config, expressions_at_once=expressions_at_once)

    def predict(
        self,
        image: PictureLike,
        expressions: Sequence[str],
        *,
        maps: bool = False,
    ) -> list[Prediction]:
        """Predicts a mask for each expression; the image is encoded once for all of them.

        Args:
            image: path of a file, encoded bytes, an array u8 RGB `[H, W, 3]`, or a Pillow image.
            expressions: at least one.
            maps: whether to return `Prediction.soft_map` too.

        Returns:
            One prediction for each expression, in order.

        Raises:
            ImageError: the image cannot be used.
            ExpressionError: there is no expression, or one is empty or not text.
        """
        ids, valid = self._words(expressions)
        return list(self._each(to_rgb(image), self._encoded(ids, valid), maps))

    def predict_each(
        self,
        image: PictureLike,
        expressions: Sequence[str],
        *,
        maps: bool = False,
    ) -> Iterator[Prediction]:
        """As `predict`, one prediction after the other: of many, only a few are in memory at a time."""
        ids, valid = self._words(expressions)
        return self._each(to_rgb(image), self._encoded(ids, valid), maps)

    def words(self, expressions: Sequence[str]) -> Words:
        """Encodes expressions once, to ask many images for them; raises as `predict` does."""
        return Words(tuple(self._encoded(*self._words(expressions))))

    def predict_words(
        self,
        image: PictureLike,
        words: Words,
        *,
        maps: bool = False,
    ) -> Iterator[Prediction]:
        """As `predict_each`, for expressions that this predictor has encoded."""
        return self._each(to_rgb(image), words.parts, maps)

    def _each(
        self, rgb: np.ndarray, parts: Iterable[tuple[int, Any]], maps: bool
    ) -> Iterator[Prediction]:
        """Predictions of encoded expressions in an image u8 `[H, W, 3]`."""
        network, affine = preprocess.prepare_image(rgb, self._engine.image_size, self._resize)
        features = self._engine.encode_image(network[None])
        for count, words in parts:
            yield from self._predict(features, count, words, affine, rgb.shape[:2], maps)

    def _encoded(self, ids: np.ndarray, valid: np.ndarray) -> Iterator[tuple[int, Any]]:
        """Numbers and text features of expressions, i32 and bool `[K, L]`, a few at a time."""
        for start in range(0, len(ids), self._at_once):
            part = slice(start, start + self._at_once)
            padded, padded_valid = self._padded(ids[part], valid[part])
            words = self._engine.encode_text(padded[None], padded_valid[None])
            yield len(ids[part]), words

    def group_assignment(self, image: PictureLike) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        """Similarities of group tokens and patches, for the maps of UniRES's Figure 5.

        Args:
            image: as in `predict`.

        Returns:
            The network's input, u8 `[S, S, 3]`, and for each level that has tokens (`low`, `high`) the
            similarity of tokens and patches, f32 `[T, grid, grid]` (see `assign_groups`).
            `refseg_jax.reporting.pictures.assignment_map` draws them.

        Raises:
            ImageError: the image cannot be used.
            UserError: the model has no group tokens, or the engine runs exported graphs.
        """
        engine = self._parameters("group tokens")
        network, _ = preprocess.prepare_image(to_rgb(image), engine.image_size, self._resize)
        levels = engine.group_assignment(network)
        if not levels:
            raise UserError(
                "the model has no group tokens, so that there are no maps of them; leave out "
                "--group_maps (ReLA has --region_maps)"
            )
        return network, levels

    def region_maps(
        self,
        image: PictureLike,
        expressions: Sequence[str],
        *,
        regions: int = 4,
    ) -> list[RegionMap]:
        """Minimap, region masks and presence for each expression: ReLA's Figure 7.

        Args:
            image, expressions: as in `predict`.
            regions: number of region masks to return: those of the regions that are highest in the
                minimap.

        Returns:
            One map for each expression, which `refseg_jax.reporting.pictures.region_panel` draws.

        Raises:
            ImageError, ExpressionError: as in `predict`.
            UserError: the model has no regions, or the engine runs exported graphs.
        """
        engine = self._parameters("regions")
        ids, valid = self._words(expressions)
        rgb = to_rgb(image)
        network, affine = preprocess.prepare_image(rgb, engine.image_size, self._resize)
        height, width, _ = rgb.shape
        found = []
        for start in range(0, len(ids), self._at_once):
            part = slice(start, start + self._at_once)
            maps = engine.region_maps(network, *self._padded(ids[part], valid[part]))
            if maps is None:
                raise UserError(
                    "the model has no regions, so that there are no maps of them; leave out "
                    "--region_maps (UniRES has --group_maps)"
                )
            found += highest_regions(maps, regions, affine, engine.image_size, (height, width))
        return found[: len(ids)]

    def _parameters(self, of: str) -> ParameterEngine:
        """The engine; raises a `UserError` if it runs exported graphs."""
        if not isinstance(self._engine, ParameterEngine):
            raise UserError(
                f"exported graphs give no maps of {of}; use the run's checkpoint, or export "
                "it with --format=safetensors"
            )
        return self._engine

    def cut_short(self, expressions: Sequence[str]) -> list[str]:
        """Expressions with more tokens than `config.data.context_length`; the model misses their ends.

        Raises:
            ExpressionError: as in `predict`.
        """
        self._words(expressions)
        _, valid = self._tokenizer(expressions, self._length + 1)
        return [text for text, long in zip(expressions, valid[:, -1], strict=True) if long]

    def _words(self, expressions: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """Token ids i32 `[K, L]` and their validity bool `[K, L]`."""
        if isinstance(expressions, str):
            raise ExpressionError("expressions is one text; give a list of them")
        if not expressions:
            raise ExpressionError("there is no expression; give at least one")
        return self._tokenizer(expressions, self._length)

    def _padded(self, ids: np.ndarray, valid: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Repeats the last expression up to a power of two, so that few shapes are compiled."""
        count = min(1 << (len(ids) - 1).bit_length(), self._at_once)
        padding = ((0, count - len(ids)), (0, 0))
        return np.pad(ids, padding, mode="edge"), np.pad(valid, padding, mode="edge")

    def _predict(
        self,
        features: Any,
        count: int,
        words: Any,
        affine: np.ndarray,
        size: tuple[int, ...],
        maps: bool = False,
    ) -> list[Prediction]:
        """Predictions of `count` expressions, whose text features may be padded."""
        logits = self._engine.decode(features, words)
        head = logits.get("present_logits")
        return self._painter(logits["mask_logits"], head, count, affine, size, maps=maps)
