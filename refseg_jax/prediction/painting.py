"""Paints the masks of an image at its own size from logits on the network's grid."""

import dataclasses

import jax
import numpy as np

from refseg_jax.batch import Array
from refseg_jax.evaluation.counts import map_of_logits, predicted_mask
from refseg_jax.evaluation.evaluator import mask_score
from refseg_jax.evaluation.thresholds import Thresholds, probability
from refseg_jax.images.resize import Resample, logits_on_canvas

#: Sides of canvases are multiples of this many pixels, so that few shapes are compiled.
_CANVAS_STEP = 128


@dataclasses.dataclass(frozen=True)
class Prediction:
    """The answer to one expression.

    Attributes:
        mask: bool `[H, W]` at the image's own size; empty if `present` is false.
        score: mean probability inside `uncleared`, in [0, 1]; 0 if that is empty.
        present: whether something matches: whether `presence` is above its threshold or, for a model
            without a presence head, whether `uncleared` has any pixels.
        uncleared: bool `[H, W]`, the mask before it is cleared where `present` is false. ReLA's
            evaluator scores this one (`refseg_jax.evaluation.protocols.gres`).
        thresholds: those by which mask and `present` were decided.
        soft_map: u8 `[H, W]`, the probability as 0..255, not cleared either; `None` unless asked for.
        presence: probability in [0, 1] that something matches, the sigmoid of `margin`; `None` for a
            model without a presence head.
        margin: logit of the presence head; for a model of groups, `d_neg - d_pos - m`. `None` for a
            model without a head.
    """

    mask: np.ndarray
    score: float
    present: bool
    uncleared: np.ndarray
    thresholds: Thresholds
    soft_map: np.ndarray | None = None
    presence: float | None = None
    margin: float | None = None


class Painter:
    """Makes predictions of logits: warps them to the image's size, compares them with the threshold."""

    def __init__(self, mask_stride: int, thresholds: Thresholds, resample: Resample) -> None:
        """Prepares to paint.

        Args:
            mask_stride: network pixels per mask cell.
            thresholds: decide what is in a mask, and whether anything matches.
            resample: see `refseg_jax.images.resize.logits_on_canvas`.
        """
        self._mask_stride, self.thresholds = mask_stride, thresholds
        self._resample: Resample = resample
        self._paint = jax.jit(self._masks, static_argnums=3)
        self._spread = jax.jit(self._wide, static_argnums=2)

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
            self.judged(
                mask.copy(), mask_score(value, mask), margin, map_of_logits(value) if maps else None
            )
            for mask, value, margin in zip(masks, values, said, strict=True)
        ]

    def judged(
        self, uncleared: np.ndarray, score: float, margin: float | None, soft_map: np.ndarray | None
    ) -> Prediction:
        """The prediction of a mask, `uncleared`, and of the presence head's logit, `margin`."""
        present, presence = bool(uncleared.any()), None
        if margin is not None:
            present = margin > self.thresholds.presence_logit
            presence = probability(margin)
        mask = uncleared if present else np.zeros_like(uncleared)
        return Prediction(
            mask, score, present, uncleared, self.thresholds, soft_map, presence, margin
        )

    def canvas_logits(
        self, mask_logits: Array, affine: np.ndarray, canvas: tuple[int, int]
    ) -> np.ndarray:
        """Logits of images `[b, K, h, w]` at their own pixels, f32 `[b, K, Hc, Wc]`.

        Args:
            mask_logits: on the network's grid.
            affine: f32 `[b, 2, 3]`, native to network pixels.
            canvas: `(Hc, Wc)`.
        """
        return np.asarray(self._spread(mask_logits, affine, canvas))

    def _masks(
        self, logits: jax.Array, affine: jax.Array, size: jax.Array, canvas: tuple[int, int]
    ) -> tuple[jax.Array, jax.Array]:
        """Logits f32 `[1, K, h, w]` to masks and logits on the canvas, `[1, 1, K, Hc, Wc]`."""
        wide = logits_on_canvas(logits[:, None], affine, self._mask_stride, canvas, self._resample)
        return predicted_mask(wide, size, self.thresholds.mask), wide

    def _wide(self, logits: jax.Array, affine: jax.Array, canvas: tuple[int, int]) -> jax.Array:
        """Logits f32 `[b, K, h, w]` of images with affine maps `[b, 2, 3]`, on a canvas each."""
        placed = logits[:, None], affine[:, None]
        return logits_on_canvas(*placed, self._mask_stride, canvas, self._resample)[:, 0]


def _round_up(number: int, step: int) -> int:
    return -(-number // step) * step
