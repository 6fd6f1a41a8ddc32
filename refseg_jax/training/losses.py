"""Losses as pure functions of logits and targets; no reduction over pairs happens here."""

import jax
import jax.numpy as jnp
import numpy as np


def sigmoid_cross_entropy(logits: jax.Array, targets: jax.Array) -> jax.Array:
    """Binary cross entropy, elementwise, in the stable form.

        l(x, t) = max(x, 0) - x t + log(1 + exp(-|x|))

    Args:
        logits: f32 `[...]`.
        targets: f32 `[...]` in [0, 1]; soft values are meant (a cell half covered has 0.5).
    """
    return jnp.maximum(logits, 0.0) - logits * targets + jnp.log1p(jnp.exp(-jnp.abs(logits)))


def dice(logits: jax.Array, targets: jax.Array, smoothing: float = 1.0) -> jax.Array:
    """One minus the soft Dice coefficient over the last two axes.

        1 - (2 sum(p t) + s) / (sum(p) + sum(t) + s),  p = sigmoid(x)

    Args:
        logits: f32 `[..., h, w]`.
        targets: f32 `[..., h, w]` in [0, 1].
        smoothing: `s`, in cells; 1 is Mask2Former's value.

    Returns:
        f32 `[...]` in [0, 1).
    """
    probabilities = jax.nn.sigmoid(logits)
    overlap = jnp.sum(probabilities * targets, axis=(-2, -1))
    total = jnp.sum(probabilities, axis=(-2, -1)) + jnp.sum(targets, axis=(-2, -1))
    return 1.0 - (2.0 * overlap + smoothing) / (total + smoothing)


def class_weights(targets: jax.Array, background: float, foreground: float) -> jax.Array:
    """The weight of each element's class, `w = (1 - t) w_0 + t w_1`.

    torch's cross entropy with class weights is `sum(w l) / sum(w)`: it divides by the weights of the
    targets, not by their number.

    Args:
        targets: f32 `[...]` in [0, 1].
        background, foreground: of targets 0 and 1.
    """
    return background + (foreground - background) * targets


def minimap_target(masks: jax.Array, side: int) -> jax.Array:
    """Which cells of a coarse map are foreground in their middle, f32 `[..., side, side]` of 0/1.

    As ReLA's code makes it: bilinear to `side` x `side` with half-pixel centres and without antialias,
    then rounded down. The middle of a cell lies between two pixels a side (or on one), so that a cell
    is 1 where all of these are: a sample of its centre, not its mean.

    Args:
        masks: `[..., h, w]`, 0/1.
        side: cells along a side.
    """
    for axis in (-2, -1):
        size = masks.shape[axis]
        centre = (np.arange(side) + 0.5) * size / side - 0.5
        low = np.clip(np.floor(centre), 0, size - 1).astype(np.int32)
        high = np.clip(np.ceil(centre), 0, size - 1).astype(np.int32)
        masks = jnp.minimum(jnp.take(masks, low, axis), jnp.take(masks, high, axis))
    return jnp.asarray(masks == 1, jnp.float32)
