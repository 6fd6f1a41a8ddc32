"""Masks from logits, and the integer pixel counts of each pair that the protocols sum."""

import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from refseg_jax.batch import Array


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


def mask_of_logits(logits: np.ndarray, threshold: float) -> np.ndarray:
    """`predicted_mask` of one pair, on the host: f32 `[H, W]` to bool `[H, W]`."""
    return logits > np.float32(np.log(threshold / (1.0 - threshold)))


def map_of_logits(logits: np.ndarray) -> np.ndarray:
    """Probabilities as the nearest of 256 grey values, on the host: f32 `[H, W]` to u8 `[H, W]`."""
    # Below this bound exp would overflow; the grey value is 0 long before.
    wide = np.maximum(logits.astype(np.float64), -700.0)
    return np.rint(255.0 / (1.0 + np.exp(-wide))).astype(np.uint8)


def pair_counts(
    logits: Array,
    native: Array,
    size: Array,
    threshold: float,
    weights: tuple[Array, Array] | None = None,
) -> jax.Array:
    """Pixels of intersection, prediction and target of every pair.

    Args:
        logits, size, threshold: as in `predicted_mask`.
        native: u8 `[B, N, K, Hc, Wc]` of 0/1.
        weights: i32 `[B, N, Hc]` and `[B, N, Wc]`, how often each row and each column counts; `None`:
            once.

    Returns:
        i32 `[B, N, K, 3]`, exact because a canvas has fewer than 2^31 pixels.
    """
    predicted = predicted_mask(logits, size, threshold).astype(jnp.int32)
    target = jnp.asarray(native).astype(jnp.int32)
    if weights is None:
        often = 1
    else:
        rows, columns = map(jnp.asarray, weights)
        often = (rows[..., :, None] * columns[..., None, :])[:, :, None]
    parts = tuple(p * often for p in (predicted * target, predicted, target))
    # One reduction over triples: three separate ones take XLA's CPU backend 20 times as long.
    sums = jax.lax.reduce(parts, (jnp.int32(0),) * 3, add_each, (3, 4))
    return jnp.stack(sums, -1)


def add_each(one: Sequence[jax.Array], other: Sequence[jax.Array]) -> tuple[jax.Array, ...]:
    """Element-wise sum of two tuples, for `jax.lax.reduce` over several arrays at once."""
    return tuple(a + b for a, b in zip(one, other, strict=True))
