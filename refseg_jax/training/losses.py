"""Losses as pure functions of logits and targets, without a reduction over pairs."""

import jax
import jax.numpy as jnp
import numpy as np


def sigmoid_cross_entropy(logits: jax.Array, targets: jax.Array) -> jax.Array:
    """Binary cross entropy, elementwise, in the form that does not overflow.

        l(x, t) = max(x, 0) - x t + log(1 + exp(-|x|))

    Args:
        logits: f32 `[...]`.
        targets: f32 `[...]` in [0, 1]; may be soft (0.5 for a cell that is half covered).

    Returns:
        f32 `[...]`, at least 0.
    """
    return jnp.maximum(logits, 0.0) - logits * targets + jnp.log1p(jnp.exp(-jnp.abs(logits)))


def dice(logits: jax.Array, targets: jax.Array, smoothing: float = 1.0) -> jax.Array:
    """One minus the soft Dice coefficient over the last two axes.

        1 - (2 sum(p t) + s) / (sum(p) + sum(t) + s),  p = sigmoid(x)

    Args:
        logits: f32 `[..., h, w]`.
        targets: f32 `[..., h, w]` in [0, 1].
        smoothing: `s`, in cells; the default is that of Mask2Former's code.

    Returns:
        f32 `[...]` in [0, 1).
    """
    probabilities = jax.nn.sigmoid(logits)
    overlap = jnp.sum(probabilities * targets, axis=(-2, -1))
    total = jnp.sum(probabilities, axis=(-2, -1)) + jnp.sum(targets, axis=(-2, -1))
    return 1.0 - (2.0 * overlap + smoothing) / (total + smoothing)


def class_weights(targets: jax.Array, background: float, foreground: float) -> jax.Array:
    """Weight of each element's class, `w = (1 - t) w_0 + t w_1`, as f32 `[...]`.

    torch's cross entropy with class weights is `sum(w l) / sum(w)`: it divides by the sum of the
    targets' weights, not by the number of targets.

    Args:
        targets: f32 `[...]` in [0, 1].
        background, foreground: `w_0` and `w_1`, the weights of targets 0 and 1.
    """
    return background + (foreground - background) * targets


def minimap_target(masks: jax.Array, side: int) -> jax.Array:
    """ReLA's target for the minimap: which cells of a coarse grid are foreground at their centre.

    ReLA's code resizes the mask bilinearly to `side` x `side` (half-pixel centres, no antialiasing)
    and rounds down. The paper (section 4.1) only says "downsampled". Along each axis the centre of a
    cell lies on a pixel or between two; the cell is 1 where all these pixels are 1. So it samples the
    centre, and is not the mean of the cell.

    Args:
        masks: `[..., h, w]` of 0/1.
        side: cells along a side, the paper's `P`.

    Returns:
        f32 `[..., side, side]` of 0/1.
    """
    for axis in (-2, -1):
        size = masks.shape[axis]
        centre = (np.arange(side) + 0.5) * size / side - 0.5
        low = np.clip(np.floor(centre), 0, size - 1).astype(np.int32)
        high = np.clip(np.ceil(centre), 0, size - 1).astype(np.int32)
        masks = jnp.minimum(jnp.take(masks, low, axis), jnp.take(masks, high, axis))
    return jnp.asarray(masks == 1, jnp.float32)
