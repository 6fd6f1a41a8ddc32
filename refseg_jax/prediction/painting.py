"""Paints the masks of an image at its own size from logits on the network's grid."""

import dataclasses

import jax
import numpy as np

from refseg_jax.batch import Array
from refseg_jax.evaluation.counts import map_of_logits, predicted_mask
from refseg_jax.evaluation.evaluator import mask_score
from refseg_jax.images.resize import Resample, logits_on_canvas

#: Sides of canvases are multiples of this many pixels, so that few shapes are compiled.
_CANVAS_STEP = 128


@dataclasses.dataclass(frozen=True)
class Prediction:
    """The answer to one expression.

    Attributes:
        mask: bool `[H, W]` at the image's own size; empty if `present` is false.
        score: mean probability inside `uncleared`, in [0, 1]; 0 if that is empty.
        present: whether something matches: the answer of the presence head or, for a model without
            one, whether `uncleared` has any pixels.
        uncleared: bool `[H, W]`, the mask before it is cleared where `present` is false. ReLA's
            evaluator scores this one (`refseg_jax.evaluation.protocols.gres`).
        soft_map: u8 `[H, W]`, the probability as 0..255, not cleared either; `None` unless asked for.
        presence: logit of the presence head, which is above 0 if `present`; for a model of groups,
            `d_neg - d_pos - m`. `None` for a model without a head.
    """

    mask: np.ndarray
    score: float
    present: bool
    uncleared: np.ndarray
    soft_map: np.ndarray | None = None
    presence: float | None = None


class Painter:
    """Makes predictions of logits: warps them to the image's size, compares them with the threshold."""

    def __init__(self, mask_stride: int, threshold: float, resample: Resample) -> None:
        """Prepares to paint.

        Args:
            mask_stride: network pixels per mask cell.
            threshold: a pixel is in the mask where its probability is larger, in (0, 1).
            resample: see `refseg_jax.images.resize.logits_on_canvas`.
        """
        self._mask_stride, self._threshold = mask_stride, threshold
        self._resample: Resample = resample
        self._paint = jax.jit(self._masks, static_argnums=3)

    def __call__(
        self,
        mask_logits: Array,
        present_logits: Array | None,
        count: int,
        affine: np.ndarray,
        size: tuple[int, ...],
        *,
        maps: bool = False,
    ) -> list[Prediction]:
        """The predictions of one image.

        Args:
            mask_logits: f32 `[1, K, h, w]`, on the network's grid.
            present_logits: f32 `[1, K]`, or `None` for a model without a presence head.
            count: number of expressions to answer, the first of K; the others are padding.
            affine: f32 `[2, 3]`, native to network pixels.
            size: native height and width in pixels.
            maps: whether to fill `Prediction.soft_map`.
        """
        height, width = size
        answer = self._paint(
            mask_logits,
            affine[None, None],
            np.array([[[height, width]]], np.int32),
            (_round_up(height, _CANVAS_STEP), _round_up(width, _CANVAS_STEP)),
        )
        # Cropped on the host: on the device, every image size would be compiled.
        masks, values = (np.asarray(x)[0, 0, :count, :height, :width] for x in answer)
        said: list[float | None] = [None] * count
        if present_logits is not None:
            said = np.asarray(present_logits)[0, :count].tolist()
        return [
            # Copied, so that the memory of the canvas is freed.
            _prediction(mask.copy(), value, presence, maps)
            for mask, value, presence in zip(masks, values, said, strict=True)
        ]

    def _masks(
        self, logits: jax.Array, affine: jax.Array, size: jax.Array, canvas: tuple[int, int]
    ) -> tuple[jax.Array, jax.Array]:
        """Logits f32 `[1, K, h, w]` to masks and logits on the canvas, `[1, 1, K, Hc, Wc]`."""
        wide = logits_on_canvas(logits[:, None], affine, self._mask_stride, canvas, self._resample)
        return predicted_mask(wide, size, self._threshold), wide


def _prediction(
    uncleared: np.ndarray, logits: np.ndarray, presence: float | None, maps: bool
) -> Prediction:
    """One prediction; `presence` is the logit of the presence head, `None` without one."""
    present = bool(uncleared.any()) if presence is None else presence > 0
    mask = uncleared if present else np.zeros_like(uncleared)
    score, soft_map = mask_score(logits, uncleared), map_of_logits(logits) if maps else None
    return Prediction(mask, score, present, uncleared, soft_map, presence)


def _round_up(number: int, step: int) -> int:
    return -(-number // step) * step
