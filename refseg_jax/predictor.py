"""Masks for pictures and words, from a checkpoint alone."""

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from PIL import Image

from refseg_jax import preprocess
from refseg_jax.batch import SegOutput
from refseg_jax.checkpointer import load_params
from refseg_jax.evaluators import mask_score
from refseg_jax.metrics import predicted_mask
from refseg_jax.models import build_model
from refseg_jax.preprocess import ImageError
from refseg_jax.resize import logits_on_canvas
from refseg_jax.tokenizers import ExpressionError, build_tokenizer
from refseg_jax.train_state import Forward

#: Expressions are padded to one of these counts (then to multiples of the last), and canvases to
#: multiples of `_CANVAS_STEP`, so that few functions are compiled.
_COUNTS = (1, 2, 4, 8, 16)
_CANVAS_STEP = 128


@dataclasses.dataclass(frozen=True)
class Prediction:
    """The answer to one expression.

    Attributes:
        mask: bool `[H, W]`, at the image's own size.
        score: mean probability inside the mask, 0 for an empty one.
        present: something matches: the mask is not empty.
    """

    mask: np.ndarray
    score: float
    present: bool


class Predictor:
    """A model with its preprocessing, tokenizer and threshold."""

    def __init__(self, params: Mapping[str, Any], config: Mapping[str, Any]) -> None:
        """Builds the model of a run.

        Args:
            params: dotted path -> parameter.
            config: the run's resolved config; read are `model`, `data` and `eval`.
        """
        build = functools.partial(_build, config["model"])
        self._forward = Forward(build)
        self._params = jax.device_put(dict(params))
        model: Any = self._forward.model
        self._size: int = model.image_size
        self._stride: int = model.mask_stride
        self._resize = config["data"]["resize"]
        self._length = config["data"]["context_length"]
        self._tokenizer = build_tokenizer(config["data"]["tokenizer"])
        self._threshold = config["eval"]["threshold"]
        self._encode_image = jax.jit(self._forward.encode_image)
        self._decode = jax.jit(self._answer, static_argnums=6)

    @classmethod
    def from_checkpoint(cls, path: str | Path) -> "Predictor":
        """The newest sound checkpoint of a run's workdir, or one step folder.

        Raises:
            UserError: there is no usable checkpoint.
        """
        return cls(*load_params(path))

    def predict(
        self, image: str | Path | bytes | np.ndarray | Image.Image, expressions: Sequence[str]
    ) -> list[Prediction]:
        """One prediction for each expression; the image is encoded once for all of them.

        Args:
            image: a file, encoded bytes, u8 RGB `[H, W, 3]`, or a Pillow image.
            expressions: at least one.

        Raises:
            ImageError: no usable image.
            ExpressionError: no expression, or one that is no text.
        """
        if isinstance(expressions, str):
            raise ExpressionError("expressions is one text; give a list of them")
        if not expressions:
            raise ExpressionError("there is no expression; give at least one")
        rgb = to_rgb(image)
        height, width = rgb.shape[:2]
        network, affine = preprocess.prepare_image(rgb, self._size, self._resize)
        ids, valid = self._tokenizer(expressions, self._length)
        count = next((c for c in _COUNTS if c >= len(ids)), _round_up(len(ids), _COUNTS[-1]))
        padding = ((0, count - len(ids)), (0, 0))
        features = self._encode_image(self._params, network[None, None])
        masks, logits = self._decode(
            self._params,
            features,
            np.pad(ids, padding, mode="edge")[None],
            np.pad(valid, padding, mode="edge")[None],
            affine[None, None],
            np.array([[[height, width]]], np.int32),
            (_round_up(height, _CANVAS_STEP), _round_up(width, _CANVAS_STEP)),
        )
        predictions = []
        for k in range(len(ids)):
            mask = np.asarray(masks[0, 0, k, :height, :width])
            values = np.asarray(logits[0, 0, k, :height, :width])
            predictions.append(Prediction(mask, mask_score(values, mask), bool(mask.any())))
        return predictions

    def _answer(
        self,
        params: Mapping[str, Any],
        features: Any,
        text: jax.Array,
        text_valid: jax.Array,
        affine: jax.Array,
        size: jax.Array,
        canvas: tuple[int, int],
    ) -> tuple[jax.Array, jax.Array]:
        """bool and f32 `[1, 1, K, Hc, Wc]`: masks and logits."""
        words = self._forward.encode_text(params, text, text_valid)
        output: SegOutput = self._forward.decode(params, features, words)
        logits = logits_on_canvas(output.mask_logits, affine, self._stride, canvas)
        return predicted_mask(logits, size, self._threshold), logits


def to_rgb(image: str | Path | bytes | np.ndarray | Image.Image) -> np.ndarray:
    """Any of `Predictor.predict`'s images as u8 RGB `[H, W, 3]`.

    Raises:
        ImageError: no such file, no image in it, or an array of another type or shape.
    """
    if isinstance(image, str | Path):
        try:
            return preprocess.decode_image(Path(image).read_bytes(), name=str(image))
        except OSError as error:
            raise ImageError(f"{image}: {error.strerror}; name an image file") from None
    if isinstance(image, bytes):
        return preprocess.decode_image(image, name=f"image of {len(image)} bytes")
    if isinstance(image, Image.Image):
        return np.asarray(image.convert("RGB"))
    if isinstance(image, np.ndarray):
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or not image.size:
            raise ImageError(
                f"array of {image.dtype} {list(image.shape)}: an image is uint8 [H, W, 3], RGB"
            )
        return image
    raise ImageError(f"{type(image).__name__}: give a path, bytes, a Pillow image or an array")


def _build(model: Mapping[str, Any], rngs: Any) -> Any:
    return build_model(model, rngs=rngs)


def _round_up(number: int, step: int) -> int:
    return -(-number // step) * step
