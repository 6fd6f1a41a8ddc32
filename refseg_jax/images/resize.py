"""Every resize and warp, each stating which library's convention it reproduces."""

import math
from typing import Any, Literal, TypeAlias, get_args

import jax
import jax.numpy as jnp
import numpy as np

from refseg_jax.batch import Array
from refseg_jax.errors import UserError
from refseg_jax.naming import unknown

#: How logits become values at native pixels, see `logits_on_canvas`.
Resample: TypeAlias = Literal["logits", "cris", "unilseg"]

#: The parameter of the cubic kernel in torch and OpenCV.
_CUBIC = -0.75

#: Probabilities are cut at this distance from 0 and 1 before they become logits again.
_CERTAIN = 1e-7


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


def check_resample(resample: str) -> None:
    """Checks the name of a way of resampling.

    Raises:
        UserError: the name is unknown; the message names the nearest.
    """
    ways = get_args(Resample)
    if resample not in ways:
        raise UserError(unknown("config.eval.resample", str(resample), ways))


def logits_on_canvas(
    mask_logits: Array,
    affine: Array,
    mask_stride: int,
    canvas: tuple[int, int],
    resample: Resample = "logits",
) -> jax.Array:
    """Resamples logits at native pixels, in the upper left corner of a static canvas.

    Inverts the warp of the input: native pixel x lies at network pixel `p = a x + b`. The warp is
    separable, so it takes two products with interpolation matrices per image. The value at a native
    pixel depends neither on the size of the canvas nor on the rest of the batch, up to rounding.

    - `logits`: bilinear between mask cells, with half-pixel centres and clamped edges: the mask cell of
      network pixel p is `g = (p + 0.5) / stride - 0.5`.
    - `cris`: CRIS's own steps (`engine.inference`). Probabilities instead of logits; to the network's
      size by torch's bicubic resize with aligned corners (`g = p (cells - 1) / (size - 1)`, a = -0.75,
      edges clamped); to native pixels by `cv2.warpAffine`, which is bicubic as well, with zeros
      outside. OpenCV before version 5 rounds the positions to 1/32 pixel; this code and OpenCV 5 do
      not.
    - `unilseg`: the steps of UniLSeg's public code (`general_inference.py`). Logits to the network's
      size by torch's bilinear resize with aligned corners; then probabilities; then CRIS's warp.

    `cris` and `unilseg` give their probabilities as logits, cut at 1e-7 from 0 and 1, beyond which the
    cubics overshoot.

    Args:
        mask_logits: f32 `[B, N, K, h, w]`.
        affine: f32 `[B, N, 2, 3]`, native to network pixels, without rotation or shear.
        mask_stride: network pixels per mask cell.
        canvas: `(Hc, Wc)` in pixels.
        resample: `logits`, `cris` or `unilseg`.

    Returns:
        f32 `[B, N, K, Hc, Wc]`; values beyond the native size of an image are meaningless.
    """
    values, affine = jnp.asarray(mask_logits, jnp.float32), jnp.asarray(affine, jnp.float32)
    exact = jax.lax.Precision.HIGHEST
    stride = mask_stride
    if resample == "unilseg":
        values, stride = _aligned_bilinear(_aligned_bilinear(values, stride, 3), stride, 4), 1
    weights = _interpolation
    if resample != "logits":
        values, weights = jax.nn.sigmoid(values), _warp_weights
    height, width = values.shape[-2:]
    rows = weights(affine[..., 1, 1], affine[..., 1, 2], stride, canvas[0], height)
    columns = weights(affine[..., 0, 0], affine[..., 0, 2], stride, canvas[1], width)
    wide = jnp.einsum("bnkhw,bnxw->bnkhx", values, columns, precision=exact)
    native = jnp.einsum("bnyh,bnkhx->bnkyx", rows, wide, precision=exact)
    if resample == "logits":
        return native
    likely = jnp.clip(native, _CERTAIN, 1.0 - _CERTAIN)
    return jnp.log(likely) - jnp.log1p(-likely)


def _interpolation(
    scale: jax.Array, offset: jax.Array, stride: int, pixels: int, cells: int
) -> jax.Array:
    """Bilinear weights f32 `[B, N, pixels, cells]` of native pixels along one axis."""
    network = scale[..., None] * jnp.arange(pixels, dtype=jnp.float32) + offset[..., None]
    position = jnp.clip((network + 0.5) / stride - 0.5, 0.0, cells - 1.0)
    distance = jnp.abs(position[..., None] - jnp.arange(cells, dtype=jnp.float32))
    return jnp.maximum(1.0 - distance, 0.0)


def _warp_weights(
    scale: jax.Array, offset: jax.Array, stride: int, pixels: int, cells: int
) -> jax.Array:
    """Weights f32 `[B, N, pixels, cells]` of both of CRIS's resizes along one axis.

    The warp blends four network pixels, so its product with the first resize is a sum of four rows. At
    stride 1 the first resize changes nothing.
    """
    size = cells * stride
    first = jnp.asarray(_aligned_cubic(cells, size))
    position = scale[..., None] * jnp.arange(pixels, dtype=jnp.float32) + offset[..., None]
    start = jnp.floor(position)
    total = jnp.zeros((*position.shape, cells), jnp.float32)
    for tap, kernel in _TAPS:
        pixel = start + tap
        inside = (pixel >= 0) & (pixel < size)
        weight = jnp.where(inside, kernel(jnp.abs(position - pixel)), 0.0)
        row = jnp.clip(pixel, 0, size - 1).astype(jnp.int32)
        total = total + weight[..., None] * first[row]
    return total


def _aligned_cubic(cells: int, pixels: int) -> np.ndarray:
    """Weights f32 `[pixels, cells]` of torch's bicubic resize with aligned corners, edges clamped."""
    position = np.arange(pixels) * ((cells - 1) / max(pixels - 1, 1))
    start = np.floor(position)
    weights = np.zeros((pixels, cells))
    for tap, kernel in _TAPS:
        cell = np.clip(start + tap, 0, cells - 1).astype(int)
        # Clamped taps fall on the same cell, whose weights add up.
        np.add.at(weights, (np.arange(pixels), cell), kernel(np.abs(position - start - tap)))
    return weights.astype(np.float32)


def _aligned_bilinear(x: jax.Array, factor: int, axis: int) -> jax.Array:
    """torch's bilinear resize with aligned corners along one axis, to `factor` times its cells."""
    cells = x.shape[axis]
    position = np.arange(cells * factor) * ((cells - 1) / max(cells * factor - 1, 1))
    start = np.floor(position).astype(np.int32)
    share = jnp.asarray(position - start, jnp.float32).reshape(-1, *(1,) * (x.ndim - axis - 1))
    before, after = (jnp.take(x, np.minimum(start + n, cells - 1), axis) for n in (0, 1))
    return (1.0 - share) * before + share * after


def _near(d: Any) -> Any:
    """The cubic kernel at distances in [0, 1], of numpy or JAX."""
    return ((_CUBIC + 2.0) * d - (_CUBIC + 3.0)) * d * d + 1.0


def _far(d: Any) -> Any:
    """The cubic kernel at distances in [1, 2], of numpy or JAX."""
    return (((d - 5.0) * d + 8.0) * d - 4.0) * _CUBIC


#: The four neighbours of a position, counted from the one before it, and the kernel for each.
_TAPS = ((-1, _far), (0, _near), (1, _near), (2, _far))
