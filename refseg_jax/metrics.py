"""Integer counts per pair from `jit`, and their sums on the host."""

import dataclasses
import math
from collections.abc import Iterable, Mapping

import jax
import jax.numpy as jnp

from refseg_jax.batch import GRANULARITIES, Array

#: Overlaps whose share of pairs is reported, `Pr@X` (CRIS: strictly above X).
PRECISION_AT = (0.5, 0.6, 0.7, 0.8, 0.9)


def predicted_mask(logits: Array, size: Array, threshold: float) -> jax.Array:
    """Where `sigmoid(logits) > threshold` inside the native size.

    Args:
        logits: f32 `[B, N, K, Hc, Wc]` on the canvas.
        size: i32 `[B, N, 2]`, native height and width.
        threshold: in (0, 1); 0.35 for UniRES (supplement A.3) and CRIS.

    Returns:
        bool `[B, N, K, Hc, Wc]`.
    """
    rows, columns = (jnp.arange(n) for n in logits.shape[-2:])
    size = jnp.asarray(size)
    inside = (rows[:, None] < size[..., 0, None, None]) & (columns < size[..., 1, None, None])
    likely = jnp.asarray(logits) > math.log(threshold / (1.0 - threshold))
    return likely & jnp.asarray(inside)[:, :, None]


def pair_counts(logits: Array, native: Array, size: Array, threshold: float) -> jax.Array:
    """Pixels of intersection, prediction and target of every pair.

    Args:
        logits, size, threshold: as in `predicted_mask`.
        native: u8 `[B, N, K, Hc, Wc]` of 0/1.

    Returns:
        i32 `[B, N, K, 3]`; exact, a canvas has less than 2^31 pixels.
    """
    predicted = predicted_mask(logits, size, threshold).astype(jnp.int32)
    target = jnp.asarray(native).astype(jnp.int32)
    parts = (predicted * target, predicted, target)
    return jnp.stack([p.sum((-2, -1), dtype=jnp.int32) for p in parts], -1)


@dataclasses.dataclass(frozen=True)
class Pair:
    """The counts of one pair, in pixels."""

    granularity: str
    intersection: int
    prediction: int
    target: int

    @property
    def union(self) -> int:
        """Pixels of prediction or target."""
        return self.prediction + self.target - self.intersection

    @property
    def iou(self) -> float:
        """Intersection over union; 0 where both are empty (CRIS)."""
        return self.intersection / self.union if self.union else 0.0


@dataclasses.dataclass(frozen=True)
class IoUState:
    """Counts by pair id: states of different processes merge in any order to the same digits."""

    pairs: Mapping[str, Pair] = dataclasses.field(default_factory=dict)

    def merge(self, other: "IoUState") -> "IoUState":
        """The union of two states.

        Raises:
            ValueError: a pair is in both.
        """
        twice = self.pairs.keys() & other.pairs.keys()
        if twice:
            raise ValueError(f"pair {min(twice)!r} was counted twice")
        return IoUState({**self.pairs, **other.pairs})

    def compute(self) -> dict[str, float]:
        """Scores in [0, 1], unrounded; each again as `<granularity>/<score>`.

        `mIoU` is the mean of the pairs' IoU, `oIoU` the sum of intersections over the sum of
        unions, `Pr@X` the share of pairs with IoU > X, `count` the number of pairs.
        """
        scores = _scores(self.pairs.values())
        for name in GRANULARITIES:
            chosen = [pair for pair in self.pairs.values() if pair.granularity == name]
            if chosen:
                scores |= {f"{name}/{key}": value for key, value in _scores(chosen).items()}
        return scores


def _scores(pairs: Iterable[Pair]) -> dict[str, float]:
    pairs = list(pairs)
    if not pairs:
        return {"count": 0.0}
    ious = [pair.iou for pair in pairs]
    union = sum(pair.union for pair in pairs)
    return {
        # fsum rounds once, so that the order of the pairs does not matter.
        "mIoU": math.fsum(ious) / len(pairs),
        "oIoU": sum(pair.intersection for pair in pairs) / union if union else 0.0,
        **{f"Pr@{x}": sum(iou > x for iou in ious) / len(pairs) for x in PRECISION_AT},
        "count": float(len(pairs)),
    }
