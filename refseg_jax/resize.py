"""Every resize and warp, each stating which library's convention it reproduces."""

import math

import jax
import jax.numpy as jnp

from refseg_jax.batch import Array


def upsample_bilinear(x: jax.Array, factor: int) -> jax.Array:
    """torch's `interpolate(scale_factor, mode="bilinear", align_corners=False)`.

    Half-pixel centres, edges clamped. Written as shifted adds: each of the `factor` phases of an
    axis is a fixed blend of a cell and one neighbour.

    Args:
        x: `[B, h, w, C]` of any float type.
        factor: an integer of at least 1.

    Returns:
        `[B, h * factor, w * factor, C]` of the same type.
    """
    return upsample_axis(upsample_axis(x, factor, 1), factor, 2)


def upsample_axis(x: jax.Array, factor: int, axis: int) -> jax.Array:
    """`upsample_bilinear` along one (non-negative) axis."""
    if factor == 1:
        return x
    phases = jnp.stack(axis_phases(x, factor, axis), axis + 1)
    return phases.reshape(*x.shape[:axis], x.shape[axis] * factor, *x.shape[axis + 1 :])


def axis_phases(x: jax.Array, factor: int, axis: int) -> list[jax.Array]:
    """The upsampled axis as `factor` arrays shaped like `x`: element i of phase p lies at
    `factor * i + p`, that is `(p + 0.5) / factor - 0.5` cells off cell i.
    """
    length = x.shape[axis]
    take = lambda start, stop: jax.lax.slice_in_dim(x, start, stop, axis=axis)  # noqa: E731
    before = jnp.concatenate([take(0, 1), take(0, length - 1)], axis)
    after = jnp.concatenate([take(1, length), take(length - 1, length)], axis)
    phases = []
    for phase in range(factor):
        offset = (phase + 0.5) / factor - 0.5
        neighbour = before if offset < 0 else after
        phases.append((1.0 - abs(offset)) * x + abs(offset) * neighbour)
    return phases


def resize_position_embedding(table: Array, grid: int) -> jax.Array:
    """CLIP's position table for another image size, as ETRIS (and torch) resizes it.

    Bicubic with a = -0.75, half-pixel centres, edges clamped, no antialiasing; the class token's
    row stays.

    Args:
        table: f32 `[1 + g * g, width]`.
        grid: patches along a side of the new image.

    Returns:
        f32 `[1 + grid * grid, width]`.

    Raises:
        ValueError: the table without its first row is no square.
    """
    old = math.isqrt(table.shape[0] - 1)
    if 1 + old * old != table.shape[0]:
        raise ValueError(f"position table of {table.shape[0]} rows: expected 1 + a square number")
    table = jnp.asarray(table)
    if old == grid:
        return table
    cells = jax.image.resize(
        table[1:].reshape(old, old, -1),
        (grid, grid, table.shape[1]),
        method="cubic-pytorch",
        antialias=False,
    )
    return jnp.concatenate([table[:1], cells.reshape(grid * grid, -1)])
