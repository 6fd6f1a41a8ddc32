"""Matrix products with f32 parameters and f32 accumulation, and the layers that use them."""

import math
from collections.abc import Callable
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
from flax import nnx

from refseg_jax.layers import target

#: `(key, shape, dtype) -> array`, as in `jax.nn.initializers`.
Initializer: TypeAlias = Callable[..., jax.Array]


def contract(x: jax.Array, kernel: jax.Array, dtype: Any) -> jax.Array:
    """`x @ kernel`, multiplied in `dtype` and accumulated in f32.

    GPUs and TPUs accumulate a bf16 product in f32 by default. XLA:CPU does so only if the result is
    requested in f32, and is then three times as fast. Leading axes are folded into one: on XLA:CPU, a
    kernel gradient that sums over several axes does not become a plain matrix product.

    Args:
        x: `[..., I]` of any float type.
        kernel: `[I, O]`.
        dtype: type of the factors and of the result.

    Returns:
        `[..., O]` of type `dtype`.
    """
    preferred = jnp.float32 if target.current().platform in ("cpu", "any") else None
    product = jnp.matmul(
        x.astype(dtype).reshape(-1, x.shape[-1]),
        kernel.astype(dtype),
        preferred_element_type=preferred,
    )
    return product.astype(dtype).reshape(*x.shape[:-1], kernel.shape[-1])


def fan_in_uniform(key: jax.Array, shape: tuple[int, ...], dtype: Any = jnp.float32) -> jax.Array:
    """The initialisation of torch's Linear and Conv2d: U(-1/sqrt(F), 1/sqrt(F)).

    F is the product of all axes of the kernel `[..., I, O]` but the last.
    """
    bound = 1.0 / math.sqrt(math.prod(shape[:-1]))
    return jax.random.uniform(key, shape, dtype, -bound, bound)


def packed_xavier_uniform(
    key: jax.Array, shape: tuple[int, ...], dtype: Any = jnp.float32
) -> jax.Array:
    """Xavier's uniform initialisation for one of the packed projections in torch's MultiheadAttention.

    torch initialises query, key and value as one kernel `[I, 3 * O]`; this is the kernel `[I, O]` of
    one of them, so the bound is `sqrt(6 / (I + 3 * O))`.
    """
    inputs, outputs = shape
    bound = math.sqrt(6.0 / (inputs + 3 * outputs))
    return jax.random.uniform(key, shape, dtype, -bound, bound)


def gaussian(stddev: float) -> Initializer:
    """An initialiser that draws from N(0, stddev^2)."""
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
        """`[..., inputs]` to `[..., outputs]`, in the dtype of the module."""
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
        """i32 `[...]` in `0..count-1` to `[..., width]`, in the dtype of the module."""
        return self.embedding[...][ids].astype(self.dtype)
