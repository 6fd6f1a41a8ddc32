"""Every resize and warp, each stating which library's convention it reproduces."""

import math

import jax
import jax.numpy as jnp
import numpy as np

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
    """`upsample_bilinear` along one axis, counted from the front."""
    if factor == 1:
        return x
    phases = jnp.stack(axis_phases(x, factor, axis), axis + 1)
    return phases.reshape(*x.shape[:axis], x.shape[axis] * factor, *x.shape[axis + 1 :])


def axis_phases(x: jax.Array, factor: int, axis: int) -> list[jax.Array]:
    """The elements of an upsampled axis as `factor` arrays (phases) shaped like `x`.

    Element i of phase p is element `factor * i + p` of the upsampled axis, which lies
    `(p + 0.5) / factor - 0.5` cells from cell i.
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


def resize_bilinear(x: jax.Array, size: tuple[int, int]) -> jax.Array:
    """torch's `interpolate(size=..., mode="bilinear", align_corners=False)`: no antialiasing.

    Args:
        x: `[B, h, w, C]` of any float type.
        size: the new height and width, larger or smaller.

    Returns:
        `[B, *size, C]` of the same type.
    """
    height, width = x.shape[1:3]
    if size[0] % height == 0 and size[1] % width == 0:
        wide = upsample_axis(x, size[1] // width, 2)
        return upsample_axis(wide, size[0] // height, 1)
    rows, columns = _blend(height, size[0]), _blend(width, size[1])
    exact = jax.lax.Precision.HIGHEST
    wide = jnp.einsum("xj,bijc->bixc", columns.astype(x.dtype), x, precision=exact)
    return jnp.einsum("yi,bixc->byxc", rows.astype(x.dtype), wide, precision=exact)


def _blend(cells: int, pixels: int) -> np.ndarray:
    """Bilinear weights f32 `[pixels, cells]`: half-pixel centres, edges clamped."""
    position = np.clip((np.arange(pixels) + 0.5) * cells / pixels - 0.5, 0, cells - 1)
    distance = np.abs(position[:, None] - np.arange(cells))
    return np.maximum(1.0 - distance, 0.0).astype(np.float32)


def resize_position_embedding(table: Array, grid: int) -> jax.Array:
    """Resizes CLIP's position table for another image size, as ETRIS does with torch.

    Bicubic with a = -0.75, half-pixel centres, edges clamped, no antialiasing. The first row, of the
    class token, is kept.

    Args:
        table: f32 `[1 + g * g, width]`.
        grid: patches along a side of the new image.

    Returns:
        f32 `[1 + grid * grid, width]`.

    Raises:
        ValueError: the number of rows is not 1 plus a square number.
    """
    old = math.isqrt(table.shape[0] - 1)
    if 1 + old * old != table.shape[0]:
        raise ValueError(f"position table of {table.shape[0]} rows: expected 1 + a square number")
    table = jnp.asarray(table)
    return table if old == grid else jnp.concatenate([table[:1], _resize_cells(table[1:], grid)])


def resize_relative_positions(table: Array, window: int) -> jax.Array:
    """Resizes Swin's table of relative positions for another window, as Swin's own code does.

    Bicubic over the map of row and column distances, with a = -0.75, half-pixel centres, edges
    clamped and no antialiasing (`load_pretrained` of microsoft/Swin-Transformer; LAVT does the same).

    Args:
        table: f32 `[(2 * w - 1)^2, heads]`.
        window: side of the new window in tokens.

    Returns:
        f32 `[(2 * window - 1)^2, heads]`.

    Raises:
        ValueError: the number of rows is not the square of an odd number.
    """
    old, side = math.isqrt(table.shape[0]), 2 * window - 1
    if old * old != table.shape[0] or old % 2 == 0:
        raise ValueError(f"relative table of {table.shape[0]} rows: expected (2 * window - 1)^2")
    table = jnp.asarray(table)
    return table if old == side else _resize_cells(table, side)


def _resize_cells(cells: jax.Array, side: int) -> jax.Array:
    """torch's bicubic `interpolate` of a square map, `[g * g, width]` to `[side * side, width]`."""
    old = math.isqrt(cells.shape[0])
    resized = jax.image.resize(
        cells.reshape(old, old, -1),
        (side, side, cells.shape[1]),
        method="cubic-pytorch",
        antialias=False,
    )
    return resized.reshape(side * side, -1)


def logits_on_canvas(
    mask_logits: Array, affine: Array, mask_stride: int, canvas: tuple[int, int]
) -> jax.Array:
    """Resamples logits at native pixels, in the upper left corner of a static canvas.

    Inverts the warp of the input, bilinearly and with clamped edges: native pixel x lies at network
    pixel `p = a x + b` and at mask cell `g = (p + 0.5) / stride - 0.5`. The warp is separable, so it
    takes two products with interpolation matrices per image. The value at a native pixel depends
    neither on the size of the canvas nor on the rest of the batch.

    Args:
        mask_logits: f32 `[B, N, K, h, w]`.
        affine: f32 `[B, N, 2, 3]`, native to network pixels, without rotation or shear.
        mask_stride: network pixels per mask cell.
        canvas: `(Hc, Wc)` in pixels.

    Returns:
        f32 `[B, N, K, Hc, Wc]`; values beyond the native size of an image are meaningless.
    """
    logits, affine = jnp.asarray(mask_logits, jnp.float32), jnp.asarray(affine, jnp.float32)
    height, width = logits.shape[-2:]
    rows = _interpolation(affine[..., 1, 1], affine[..., 1, 2], mask_stride, canvas[0], height)
    columns = _interpolation(affine[..., 0, 0], affine[..., 0, 2], mask_stride, canvas[1], width)
    exact = jax.lax.Precision.HIGHEST
    wide = jnp.einsum("bnkhw,bnxw->bnkhx", logits, columns, precision=exact)
    return jnp.einsum("bnyh,bnkhx->bnkyx", rows, wide, precision=exact)


def _interpolation(
    scale: jax.Array, offset: jax.Array, stride: int, pixels: int, cells: int
) -> jax.Array:
    """Bilinear weights f32 `[B, N, pixels, cells]` of native pixels along one axis."""
    network = scale[..., None] * jnp.arange(pixels, dtype=jnp.float32) + offset[..., None]
    position = jnp.clip((network + 0.5) / stride - 0.5, 0.0, cells - 1.0)
    distance = jnp.abs(position[..., None] - jnp.arange(cells, dtype=jnp.float32))
    return jnp.maximum(1.0 - distance, 0.0)
