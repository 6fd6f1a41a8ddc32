"""Normalisation layers; statistics are always in f32."""

import math
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

#: Epsilon of the norms of CLIP and Swin, and torch's default (BERT has 1e-12).
EPSILON = 1e-5


def _standardise(x: jax.Array, axes: tuple[int, ...], epsilon: float) -> jax.Array:
    """`y = (x - mean) / sqrt(var + epsilon)` over `axes`; f32.

    The variance is computed in two passes, which avoids cancellation. The gradient is
    `(dy - mean(dy) - y * mean(dy * y)) / sqrt(var + epsilon)`, which needs only y and the root;
    automatic differentiation would store `x - mean` as well. Forward-mode differentiation is not
    supported.
    """

    def mean(x: jax.Array) -> jax.Array:
        return jnp.mean(x, axes, keepdims=True)

    @jax.custom_vjp
    def standardise(x: jax.Array) -> jax.Array:
        return forward(x)[0]

    def forward(x: jax.Array) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
        centred = x - mean(x)
        rate = jax.lax.rsqrt(mean(jnp.square(centred)) + epsilon)
        y = centred * rate
        return y, (y, rate)

    def backward(kept: tuple[jax.Array, jax.Array], dy: jax.Array) -> tuple[jax.Array]:
        y, rate = kept
        return (rate * (dy - mean(dy) - y * mean(dy * y)),)

    standardise.defvjp(forward, backward)
    return standardise(x)


class LayerNorm(nnx.Module):
    """Layer normalisation of the last axis; `scale` and `bias` f32 `[width]`."""

    def __init__(self, width: int, *, dtype: Any, epsilon: float = EPSILON):
        self.scale = nnx.Param(jnp.ones((width,), jnp.float32))
        self.bias = nnx.Param(jnp.zeros((width,), jnp.float32))
        self.epsilon = epsilon
        self.dtype = dtype

    def __call__(self, x: jax.Array) -> jax.Array:
        """`[..., width]` to the same shape, in the dtype of the module."""
        y = _standardise(x.astype(jnp.float32), (-1,), self.epsilon)
        return (y * self.scale[...] + self.bias[...]).astype(self.dtype)


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
        grouped = x.astype(jnp.float32).reshape(
            x.shape[0], math.prod(x.shape[1:-1]), self.groups, x.shape[-1] // self.groups
        )
        y = _standardise(grouped, (1, 3), EPSILON).reshape(x.shape)
        return (y * self.scale[...] + self.bias[...]).astype(self.dtype)


def instance_norm(x: jax.Array, *, dtype: Any) -> jax.Array:
    """Normalises each channel of each row over all tokens, without parameters.

    This is torch's InstanceNorm without affine parameters and running statistics.

    Args:
        x: `[B, T, C]` of any float type.
        dtype: type of the result.

    Returns:
        `[B, T, C]`.
    """
    return _standardise(x.astype(jnp.float32), (1,), EPSILON).astype(dtype)
