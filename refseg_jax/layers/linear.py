"""Matrix products with f32 parameters and f32 accumulation, and the affine layers made of them."""

import math
from collections.abc import Callable
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
from flax import nnx

#: `(key, shape, dtype) -> array`, as in `jax.nn.initializers`.
Initializer: TypeAlias = Callable[..., jax.Array]


def contract(x: jax.Array, kernel: jax.Array, dtype: Any) -> jax.Array:
    """`x [..., I] @ kernel [I, O]`, multiplied in `dtype`, accumulated in f32; `[..., O]` of `dtype`.

    GPUs and TPUs accumulate a bf16 product in f32 by themselves; XLA:CPU does so (and is three times
    as fast) only where the product is asked for in f32. Leading axes are folded, because there a
    gradient that sums over several axes is no plain matrix product.
    """
    preferred = jnp.float32 if jax.default_backend() == "cpu" else None
    product = jnp.matmul(
        x.astype(dtype).reshape(-1, x.shape[-1]),
        kernel.astype(dtype),
        preferred_element_type=preferred,
    )
    return product.astype(dtype).reshape(*x.shape[:-1], kernel.shape[-1])


def fan_in_uniform(key: jax.Array, shape: tuple[int, ...], dtype: Any = jnp.float32) -> jax.Array:
    """U(-1/sqrt(I), 1/sqrt(I)) for a kernel `[..., I, O]`: what torch's Linear and Conv2d start with."""
    bound = 1.0 / math.sqrt(math.prod(shape[:-1]))
    return jax.random.uniform(key, shape, dtype, -bound, bound)


def packed_xavier_uniform(
    key: jax.Array, shape: tuple[int, ...], dtype: Any = jnp.float32
) -> jax.Array:
    """Xavier's uniform for one of three projections that torch's MultiheadAttention packs in one."""
    inputs, outputs = shape
    bound = math.sqrt(6.0 / (inputs + 3 * outputs))
    return jax.random.uniform(key, shape, dtype, -bound, bound)


def gaussian(stddev: float) -> Initializer:
    """N(0, stddev)."""
    return jax.nn.initializers.normal(stddev)


class Linear(nnx.Module):
    """`y = x W + b`; `kernel` f32 `[inputs, outputs]`, `bias` f32 `[outputs]`."""

    def __init__(
        self,
        inputs: int,
        outputs: int,
        *,
        dtype: Any,
        rngs: nnx.Rngs,
        use_bias: bool = True,
        kernel_init: Initializer = fan_in_uniform,
    ):
        self.kernel = nnx.Param(kernel_init(rngs.params(), (inputs, outputs), jnp.float32))
        self.bias = nnx.Param(jnp.zeros((outputs,), jnp.float32)) if use_bias else None
        self.dtype = dtype

    def __call__(self, x: jax.Array) -> jax.Array:
        """`[..., inputs]` to `[..., outputs]` of the module's dtype."""
        y = contract(x, self.kernel[...], self.dtype)
        return y if self.bias is None else y + self.bias[...].astype(self.dtype)


class Embedding(nnx.Module):
    """A table of vectors; `embedding` f32 `[count, width]`."""

    def __init__(self, count: int, width: int, *, stddev: float, dtype: Any, rngs: nnx.Rngs):
        self.embedding = nnx.Param(
            stddev * jax.random.normal(rngs.params(), (count, width), jnp.float32)
        )
        self.dtype = dtype

    def __call__(self, ids: jax.Array) -> jax.Array:
        """i32 `[...]` in `0..count-1` to `[..., width]` of the module's dtype."""
        return self.embedding[...][ids].astype(self.dtype)
