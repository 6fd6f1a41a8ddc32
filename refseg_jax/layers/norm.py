"""Normalisation layers; statistics are always in f32."""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

#: Epsilon of the norms of CLIP and Swin, and torch's default (BERT has 1e-12).
EPSILON = 1e-5


def _over(axis: int) -> Callable[[jax.Array], jax.Array]:
    return lambda x: jnp.mean(x, axis, keepdims=True)


def _normalise(
    x: jax.Array,
    scale: jax.Array,
    bias: jax.Array,
    mean: Callable[[jax.Array], jax.Array],
    epsilon: float,
    dtype: Any,
) -> jax.Array:
    """`scale * y + bias` with `y = (x - mean(x)) / sqrt(var + epsilon)`; computed in f32.

    The variance is computed in two passes, which avoids cancellation. With `g = scale * dout`, the
    gradient is `dx = (g - mean(g) - y * mean(g * y)) / sqrt(var + epsilon)`. It needs y and the root:
    y is kept where x is f32, and x where x is narrower than y, with its mean. Automatic differentiation
    would keep f32 copies of both. Forward-mode differentiation is not supported.

    Args:
        x: any float type and shape.
        scale, bias: f32, of the shape of the last axes of `x`.
        mean: f32 of the shape of `x` to the mean of each element's group, which broadcasts to `x`.
        epsilon: added to the variance.
        dtype: type of the result.
    """
    others = tuple(range(x.ndim - scale.ndim))
    wide = x.dtype == jnp.float32

    @jax.custom_vjp
    def normalise(x: jax.Array, scale: jax.Array, bias: jax.Array) -> jax.Array:
        return forward(x, scale, bias)[0]

    def forward(x: jax.Array, scale: jax.Array, bias: jax.Array):
        centre = mean(x.astype(jnp.float32))
        centred = x.astype(jnp.float32) - centre
        rate = jax.lax.rsqrt(mean(jnp.square(centred)) + epsilon)
        y = centred * rate
        return (y * scale + bias).astype(dtype), (y if wide else (x, centre), rate, scale)

    def backward(kept: Any, gradient: jax.Array):
        y, rate, scale = kept
        if not wide:
            narrow, centre = y
            y = (narrow.astype(jnp.float32) - centre) * rate
        dout = gradient.astype(jnp.float32)
        dy = dout * scale
        dx = rate * (dy - mean(dy) - y * mean(dy * y))
        return dx.astype(x.dtype), jnp.sum(dout * y, others), jnp.sum(dout, others)

    normalise.defvjp(forward, backward)
    return normalise(x, scale, bias)


class LayerNorm(nnx.Module):
    """Layer normalisation of the last axis; `scale` and `bias` f32 `[width]`."""

    def __init__(self, width: int, *, dtype: Any, epsilon: float = EPSILON):
        self.scale = nnx.Param(jnp.ones((width,), jnp.float32))
        self.bias = nnx.Param(jnp.zeros((width,), jnp.float32))
        self.epsilon = epsilon
        self.dtype = dtype

    def __call__(self, x: jax.Array) -> jax.Array:
        """`[..., width]` to the same shape, in the dtype of the module."""
        return _normalise(x, self.scale[...], self.bias[...], _over(-1), self.epsilon, self.dtype)


class GroupNorm(nnx.Module):
    """Normalises groups of channels of a feature map over its whole area; `scale` and `bias` f32.

    Its statistics depend on neither the batch nor its sharding. The projector head uses it where CRIS
    has BatchNorm.
    """

    def __init__(self, width: int, *, groups: int, dtype: Any):
        if width % groups:
            raise ValueError(f"{groups} groups do not divide {width} channels")
        self.scale = nnx.Param(jnp.ones((width,), jnp.float32))
        self.bias = nnx.Param(jnp.zeros((width,), jnp.float32))
        self.groups = groups
        self.dtype = dtype

    def __call__(
        self, x: jax.Array, valid: jax.Array | None = None, *, training: bool = False
    ) -> jax.Array:
        """`[B, ..., width]` to the same shape, in the dtype of the module.

        `valid` and `training` change nothing: they let this norm stand in for a `BatchNorm`.
        """
        del valid, training
        flat = x.reshape(x.shape[0], math.prod(x.shape[1:-1]), x.shape[-1])
        args = self.scale[...], self.bias[...], self._mean, EPSILON, self.dtype
        return _normalise(flat, *args).reshape(x.shape)

    def _mean(self, x: jax.Array) -> jax.Array:
        """f32 `[B, P, C]` to the mean of each group as `[B, 1, C]`.

        The area comes first: of a whole map with an axis of groups, TPUs would make a copy, since
        their registers hold channels.
        """
        channels = jnp.mean(x, 1).reshape(x.shape[0], self.groups, -1)
        means = jnp.mean(channels, -1, keepdims=True)
        return jnp.broadcast_to(means, channels.shape).reshape(x.shape[0], 1, -1)


def instance_norm(x: jax.Array, *, dtype: Any) -> jax.Array:
    """Normalises each channel of each row over all tokens, without parameters.

    This is torch's InstanceNorm without affine parameters and running statistics.

    Args:
        x: `[B, T, C]` of any float type.
        dtype: type of the result.

    Returns:
        `[B, T, C]`.
    """
    channels = x.shape[2:]
    return _normalise(x, jnp.ones(channels), jnp.zeros(channels), _over(1), EPSILON, dtype)
