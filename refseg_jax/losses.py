"""Losses as pure functions of logits and targets; no reduction over pairs happens here."""

import jax
import jax.numpy as jnp


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
