"""3x3 convolutions (zero padding, stride 1) of feature maps `[B, h, w, C]`."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from refseg_jax.images.resize import axis_phases
from refseg_jax.layers import target
from refseg_jax.layers.linear import Initializer, contract, fan_in_uniform


class Conv3x3(nnx.Module):
    """A 3x3 convolution without bias; `kernel` f32 `[3, 3, I, O]`."""

    def __init__(
        self,
        inputs: int,
        outputs: int,
        *,
        dtype: Any,
        rngs: nnx.Rngs,
        kernel_init: Initializer = fan_in_uniform,
    ):
        self.kernel = nnx.Param(kernel_init(rngs.params(), (3, 3, inputs, outputs), jnp.float32))
        self.dtype = dtype

    def __call__(self, x: jax.Array) -> jax.Array:
        """`[B, h, w, I]` to `[B, h, w, O]` of the module's dtype."""
        run = _convolve_on_cpu if target.current().platform == "cpu" else _convolve
        return run(x.astype(self.dtype), self.kernel[...].astype(self.dtype))


def _convolve(x: jax.Array, kernel: jax.Array) -> jax.Array:
    return jax.lax.conv_general_dilated(
        x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )


@jax.custom_vjp
def _convolve_on_cpu(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """`_convolve`, with the gradient of the kernel as nine matrix products.

    XLA:CPU's own gradient takes 2.6 times as long: at 120 x 120 and 256 channels in f32, 0.59 instead
    of 0.23 CPU seconds. The forward pass and the gradient of `x` take 0.12 each.
    """
    return _convolve(x, kernel)


def _forward(x: jax.Array, kernel: jax.Array):
    return _convolve(x, kernel), (x, kernel)


def _backward(residuals, gradient: jax.Array):
    x, kernel = residuals
    height, width, inputs = x.shape[1:]
    (d_x,) = jax.vjp(lambda x: _convolve(x, kernel), x)[1](gradient)
    padded = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    flat = gradient.reshape(-1, gradient.shape[-1])
    taps = [
        jnp.matmul(
            padded[:, dy : dy + height, dx : dx + width].reshape(-1, inputs).T,
            flat,
            preferred_element_type=jnp.float32,
        )
        for dy in range(3)
        for dx in range(3)
    ]
    return d_x, jnp.stack(taps).reshape(kernel.shape).astype(kernel.dtype)


_convolve_on_cpu.defvjp(_forward, _backward)


class UpsampleConv3x3(nnx.Module):
    """Bilinear upsampling by 2, then a 3x3 convolution without bias; `kernel` f32 `[3, 3, I, O]`.

    Both steps are linear, and upsampling treats all channels alike, so the channels can be mixed first,
    at the low resolution: nine products there cost a quarter of a convolution of the upsampled map.
    The remaining `sum over taps of shift(upsample(tap))` is computed one axis after the other. The
    result equals that of the plain order up to f32 rounding, including the borders.
    """

    def __init__(self, inputs: int, outputs: int, *, dtype: Any, rngs: nnx.Rngs):
        self.kernel = nnx.Param(fan_in_uniform(rngs.params(), (3, 3, inputs, outputs)))
        self.dtype = dtype

    def __call__(self, x: jax.Array) -> jax.Array:
        """`[B, h, w, I]` to `[B, 2h, 2w, O]` of the module's dtype."""
        kernel = self.kernel[...]
        rows = []
        for dy in range(3):
            taps = [contract(x, kernel[dy, dx], self.dtype) for dx in range(3)]
            rows.append(_blend(taps, axis=2))
        return _blend(rows, axis=1)


def _blend(taps: list[jax.Array], axis: int) -> jax.Array:
    """`sum over d of shift(upsample(taps[d]), d - 1)` along an axis, padded with zeros."""
    (even_a, odd_a), (even_b, odd_b), (even_c, odd_c) = (axis_phases(t, 2, axis) for t in taps)
    even = shift(odd_a, -1, axis) + even_b + odd_c
    odd = even_a + odd_b + shift(even_c, 1, axis)
    stacked = jnp.stack([even, odd], axis + 1)
    shape = even.shape
    return stacked.reshape(*shape[:axis], 2 * shape[axis], *shape[axis + 1 :])


def shift(x: jax.Array, offset: int, axis: int) -> jax.Array:
    """`y[i] = x[i + offset]` along an axis, zero where `i + offset` lies outside."""
    if offset == 0:
        return x
    length = x.shape[axis]
    padding = [(0, 0)] * x.ndim
    padding[axis] = (max(-offset, 0), max(offset, 0))
    start = max(offset, 0)
    return jax.lax.slice_in_dim(jnp.pad(x, padding), start, start + length, axis=axis)


def dynamic_conv3x3(x: jax.Array, kernel: jax.Array, offset: jax.Array) -> jax.Array:
    """A 3x3 convolution to one channel, with a separate kernel for each row of the batch.

    It is one product over channels followed by nine shifted additions, because a vmapped convolution
    neither exports with a symbolic batch nor runs fast on a CPU.

    Args:
        x: `[B, h, w, C]`.
        kernel: `[B, 9, C]`, taps row by row.
        offset: f32 `[B, 9]`, added to the product of a tap where the tap lies inside the map, as if
            `x` had one more channel, of ones.

    Returns:
        f32 `[B, h, w]`.
    """
    rows, height, width, channels = x.shape
    taps = jnp.einsum(
        "bpc,btc->btp",
        x.reshape(rows, height * width, channels),
        kernel.astype(x.dtype),
        preferred_element_type=jnp.float32,
    )
    taps = (taps + offset[:, :, None]).reshape(rows, 3, 3, height, width)
    columns = [
        sum(shift(taps[:, dy, dx], dx - 1, 2) for dx in range(3))  # pyright: ignore
        for dy in range(3)
    ]
    return sum(shift(columns[dy], dy - 1, 1) for dy in range(3))  # pyright: ignore
