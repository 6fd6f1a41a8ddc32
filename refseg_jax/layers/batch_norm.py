"""Batch normalisation, whose running averages are variables that training moves without a gradient.

The statistics of a call are sums over the whole batch. Under `jit` with a sharded batch they run over
all devices, so that they depend on neither the number of devices nor the layout.
"""

import math
from typing import Any, Literal, TypeAlias

import jax
import jax.numpy as jnp
from flax import nnx

from refseg_jax.layers.norm import EPSILON, GroupNorm

#: Norms of `make_norm`, by their name in configs.
NormKind: TypeAlias = Literal["batch", "group"]

#: A group of `make_norm` has at least this many channels (of a layer that wide). Smaller ones lose
#: what they normalise where a row has no area: two channels would only keep which is larger.
_FEWEST_CHANNELS = 8


class Statistic(nnx.Variable):
    """A running average of a training: saved, averaged and exported, but never trained.

    `refseg_jax.models.forward.Forward.statistics` names those of a model.
    """


class BatchNorm(nnx.Module):
    """Batch normalisation of the last axis (Ioffe & Szegedy 2015), as torch's `BatchNorm1d` and `2d`.

        y = scale * (x - m) / sqrt(v + epsilon) + bias

    In training, m and v are the mean and the biased variance of each channel, over all rows that count
    and all axes between the first and the last. At inference they are the running averages. A call in
    training moves these, with the unbiased variance, and leaves them alone where no row counts:

        mean     <- momentum * mean     + (1 - momentum) * m
        variance <- momentum * variance + (1 - momentum) * v * n / (n - 1)

    Variables, all f32 `[width]`: the parameters `scale` and `bias`, the statistics `mean` and
    `variance`. The averages are moved by assignment, so that a call in training must stay outside of
    `jax.checkpoint`, `vmap` and `scan`; flax raises an error otherwise.

    Attributes:
        frozen: whether a call in training uses the running averages, as at inference, and leaves them
            alone. `Forward.apply_training` sets it.
    """

    def __init__(
        self,
        width: int,
        *,
        momentum: float = 0.9,
        epsilon: float = EPSILON,
        dtype: Any,
        rngs: nnx.Rngs | None = None,
    ):
        """Creates the variables; the running averages start at 0 and 1.

        Args:
            width: number of channels.
            momentum: share of the old average that stays, in [0, 1]. torch's `momentum` of 0.1 is 0.9
                here.
            epsilon: added to the variance; torch's default.
            dtype: type of the result. Statistics are computed in f32 in any case.
            rngs: unused (nothing is random), for the same call as other layers.
        """
        del rngs
        self.scale = nnx.Param(jnp.ones((width,), jnp.float32))
        self.bias = nnx.Param(jnp.zeros((width,), jnp.float32))
        self.mean = Statistic(jnp.zeros((width,), jnp.float32))
        self.variance = Statistic(jnp.ones((width,), jnp.float32))
        self.momentum = momentum
        self.epsilon = epsilon
        self.dtype = dtype
        self.frozen = False

    def __call__(self, x: jax.Array, valid: jax.Array | None, *, training: bool) -> jax.Array:
        """Normalises, and in training moves the running averages.

        Args:
            x: `[G, ..., width]` of any float type, with any number of axes between.
            valid: bool `[G]`, the rows that count; `None` if all do. The other rows are normalised
                by the statistics of those that count.
            training: whether to use the statistics of this call, unless the module is `frozen`.

        Returns:
            The shape of `x`, in the dtype of the module.
        """
        scale, bias = self.scale[...], self.bias[...]
        if not training or self.frozen:
            rate = scale * jax.lax.rsqrt(self.variance[...] + self.epsilon)
            y = (x.astype(jnp.float32) - self.mean[...]) * rate + bias
            return y.astype(self.dtype)
        counted = jnp.ones((x.shape[0],), bool) if valid is None else valid
        y, mean, variance, count = _normalise(x, counted, scale, bias, self.epsilon, self.dtype)
        unbiased = variance * (count / jnp.maximum(count - 1.0, 1.0))
        keep = jnp.where(count > 0.0, self.momentum, 1.0)
        for average, new in ((self.mean, mean), (self.variance, unbiased)):
            average[...] = keep * average[...] + (1.0 - keep) * jax.lax.stop_gradient(new)
        return y


def make_norm(
    kind: NormKind, width: int, *, dtype: Any, rngs: nnx.Rngs | None = None
) -> BatchNorm | GroupNorm:
    """The norm of a kind; both answer the call `norm(x, valid, training=...)`.

    Args:
        kind: `"batch"`, as most published models have it; or `"group"` (Wu & He 2018), whose result
            depends on neither the rest of the batch nor on training: for small batches.
        width: number of channels.
        dtype: type of the result.
        rngs: unused (nothing is random), for the same call as other layers.

    Raises:
        ValueError: the kind is unknown.
    """
    if kind == "batch":
        return BatchNorm(width, dtype=dtype, rngs=rngs)
    if kind != "group":
        raise ValueError(f"norm={kind!r}: must be 'batch' or 'group'")
    # 32 groups as in the paper, or the next fewer that the width allows.
    groups = math.gcd(32, width)
    while groups > 1 and width // groups < _FEWEST_CHANNELS:
        groups //= 2
    return GroupNorm(width, groups=groups, dtype=dtype)


def _normalise(
    x: jax.Array, valid: jax.Array, scale: jax.Array, bias: jax.Array, epsilon: float, dtype: Any
) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
    """The normalised x of `dtype`; f32 mean and biased variance `[C]`; f32 number of elements `[]`.

    The variance is computed in two passes, which avoids cancellation. With v 1 where a row counts, else
    0, and sums over all rows, the gradients are

        dbias = sum(dy),  dscale = sum(dy * y'),
        dx = scale * rate * (dy - v * (dbias + y' * dscale) / n),  where y' = (x - mean) * rate

    which need x in its own type; automatic differentiation would store f32 copies. The statistics
    have no gradient. Forward-mode differentiation is not supported.
    """
    axes = tuple(range(x.ndim - 1))
    inner = math.prod(x.shape[1:-1])
    rows = valid.reshape(-1, *(1,) * (x.ndim - 1))

    @jax.custom_vjp
    def normalise(x: jax.Array, scale: jax.Array, bias: jax.Array):
        return forward(x, scale, bias)[0]

    def forward(x: jax.Array, scale: jax.Array, bias: jax.Array):
        wide = x.astype(jnp.float32)
        count = valid.sum(dtype=jnp.float32) * inner
        n = jnp.maximum(count, 1.0)
        # `where`, because a row that does not count may hold anything, even NaN.
        mean = jnp.where(rows, wide, 0.0).sum(axes) / n
        variance = jnp.where(rows, jnp.square(wide - mean), 0.0).sum(axes) / n
        rate = jax.lax.rsqrt(variance + epsilon)
        y = ((wide - mean) * (scale * rate) + bias).astype(dtype)
        return (y, mean, variance, count), (x, scale, mean, rate, n)

    def backward(kept, gradients):
        x, scale, mean, rate, n = kept
        dy = gradients[0].astype(jnp.float32)
        y = (x.astype(jnp.float32) - mean) * rate
        d_bias, d_scale = dy.sum(axes), (dy * y).sum(axes)
        shared = jnp.where(rows, (d_bias + y * d_scale) / n, 0.0)
        return ((scale * rate) * (dy - shared)).astype(x.dtype), d_scale, d_bias

    normalise.defvjp(forward, backward)
    return normalise(x, scale, bias)
