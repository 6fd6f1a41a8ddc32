"""Multi-scale deformable attention (Zhu et al. 2021, "Deformable DETR") without a custom kernel."""

import math
from collections.abc import Sequence
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from refseg_jax.layers import target
from refseg_jax.layers.linear import Linear

#: (height, width) of the map of each level. The tokens of all levels are concatenated in this order.
Shapes: TypeAlias = Sequence[tuple[int, int]]

#: Platform -> numbers (f32) that the backward pass reads and adds at a time. On a CPU 4 MB, which fit
#: its cache. On a TPU 64 MB, because its registers pad 32 channels to 128: all samples of an image of
#: 480 pixels at once would be 0.9 GB, twice.
CHUNK_NUMBERS = {"cpu": 1 << 20, "tpu": 1 << 24}


class DeformableAttention(nnx.Module):
    """Attention of each token to a few points per head and level, at places that it predicts.

        place = own place + offsets(query)                    in cells of the level
        share = softmax over levels and points of shares(query)
        out(sum over levels and points of share * bilinear(value(tokens), place))

    Maps are zero beyond their border. Initial offsets do not depend on the query: point p = 1, 2, ...
    of head h lies in the direction of the angle `2 pi h / heads`, on the border of the square of half
    side p, in every level. Initial shares are equal, and kernels are Xavier's, as in Deformable DETR
    and Mask2Former.
    """

    def __init__(
        self, width: int, heads: int, *, levels: int, points: int, dtype: Any, rngs: nnx.Rngs
    ):
        """Creates the four projections.

        Args:
            width: channels of queries, tokens and output.
            heads: number of heads; divides `width`.
            levels: number of maps.
            points: points per head and level.
            dtype: compute type of the projections.
            rngs: random streams for the parameters.

        Raises:
            ValueError: the heads do not divide the width.
        """
        if width % heads:
            raise ValueError(f"{heads} heads do not divide the width {width}")
        zeros, xavier = jax.nn.initializers.zeros, jax.nn.initializers.xavier_uniform()
        samples = heads * levels * points
        self.offsets = Linear(width, 2 * samples, dtype=dtype, rngs=rngs, kernel_init=zeros)
        self.offsets.bias[...] = jnp.asarray(_directions(heads, levels, points))  # pyright: ignore
        self.shares = Linear(width, samples, dtype=dtype, rngs=rngs, kernel_init=zeros)
        self.value = Linear(width, width, dtype=dtype, rngs=rngs, kernel_init=xavier)
        self.out = Linear(width, width, dtype=dtype, rngs=rngs, kernel_init=xavier)
        self.heads, self.levels, self.points = heads, levels, points

    def __call__(self, query: jax.Array, tokens: jax.Array, shapes: Shapes) -> jax.Array:
        """Mixes the tokens around the place of each token.

        Args:
            query: `[B, S, width]`, predicts offsets and shares.
            tokens: `[B, S, width]`, is sampled; S is the total number of cells of all levels.
            shapes: (height, width) of each level, in the order of the tokens.

        Returns:
            `[B, S, width]`.
        """
        rows, count = query.shape[:2]
        split = (rows, count, self.heads, self.levels, self.points)
        offsets = self.offsets(query).astype(jnp.float32).reshape(*split, 2)
        shares = self.shares(query).astype(jnp.float32).reshape(*split[:3], -1)
        weights = jax.nn.softmax(shares, -1).reshape(split)
        value = self.value(tokens).reshape(rows, count, self.heads, -1)
        places = offsets + own_places(shapes)[:, None, :, None]
        mixed = sample_levels(value, places, weights, shapes)
        return self.out(mixed.reshape(rows, count, -1))


def _directions(heads: int, levels: int, points: int) -> np.ndarray:
    """The initial offsets (x, y) of all heads, f32 `[heads * levels * points * 2]`."""
    angles = np.arange(heads) * (2 * math.pi / heads)
    unit = np.stack([np.cos(angles), np.sin(angles)], -1)
    unit = unit / np.abs(unit).max(-1, keepdims=True)
    steps = unit[:, None, None] * np.arange(1, points + 1)[:, None]
    return np.broadcast_to(steps, (heads, levels, points, 2)).astype(np.float32).ravel()


def own_places(shapes: Shapes) -> np.ndarray:
    """The place of each token of all levels in every level, in cells of that level.

    Token (r, c) of a map of h x w lies at `((c + 1/2) / w * W - 1/2, (r + 1/2) / h * H - 1/2)` in a
    map of H x W; the centre of cell i is at i.

    Returns:
        f32 `[S, levels, 2]`, x before y.
    """
    relative = []
    for height, width in shapes:
        y, x = np.mgrid[:height, :width].reshape(2, -1)
        relative.append(np.stack([(x + 0.5) / width, (y + 0.5) / height], -1))
    sizes = np.array([(width, height) for height, width in shapes])
    return (np.concatenate(relative)[:, None] * sizes - 0.5).astype(np.float32)


def sample_levels(
    value: jax.Array, places: jax.Array, weights: jax.Array, shapes: Shapes
) -> jax.Array:
    """`sum over levels and points of weight * bilinear(value of the level, place)`, per head.

    Sampling is that of torch's `grid_sample` (bilinear, zeros beyond the border,
    align_corners=False), but with places in cells.

    Args:
        value: `[B, S, heads, D]`, the levels one after the other.
        places: f32 `[B, T, heads, levels, points, 2]`, x before y; the centre of cell i is at i.
        weights: f32 `[B, T, heads, levels, points]`.
        shapes: (height, width) of each level.

    Returns:
        `[B, T, heads, D]` with the dtype of the value.
    """
    rows, _, heads, width = value.shape
    tokens, shares = _corners(places, weights, shapes)
    count = tokens.shape[1]
    entries = tokens * heads + np.arange(heads, dtype=np.int32)[:, None]
    mixed = weighted_rows(
        value.reshape(rows, -1, width),
        entries.reshape(rows, count * heads, -1),
        shares.reshape(rows, count * heads, -1),
    )
    return mixed.reshape(rows, count, heads, width)


def _corners(places: jax.Array, weights: jax.Array, shapes: Shapes) -> tuple[jax.Array, jax.Array]:
    """Tokens (i32) and weights (f32) of the four cells around each place, `[B, T, heads, K]`.

    K is 4 * levels * points. A corner beyond the border has weight 0, and the nearest token.
    """
    sizes = np.array([(width, height) for height, width in shapes])
    starts = np.cumsum([0, *sizes.prod(-1)[:-1]]).astype(np.int32)[:, None]
    most = sizes[:, None].astype(np.float32) - 1.0
    low = jnp.floor(places)
    beyond = places - low
    tokens, shares = [], []
    for dy in (0, 1):
        for dx in (0, 1):
            corner = low + np.array((dx, dy), np.float32)
            near = jnp.clip(corner, 0.0, most)
            cell = near.astype(jnp.int32)
            along_x = beyond[..., 0] if dx else 1.0 - beyond[..., 0]
            along_y = beyond[..., 1] if dy else 1.0 - beyond[..., 1]
            inside = jnp.all(corner == near, -1)
            tokens.append(starts + cell[..., 1] * sizes[:, 0, None].astype(np.int32) + cell[..., 0])
            shares.append(jnp.where(inside, weights * along_x * along_y, 0.0))
    # Corners before levels and points: TPUs would pad a last axis of four corners to 128.
    flat = lambda x: x.reshape(*places.shape[:3], -1)  # noqa: E731
    return jnp.concatenate([*map(flat, tokens)], -1), jnp.concatenate([*map(flat, shares)], -1)


@jax.custom_vjp
def weighted_rows(table: jax.Array, entries: jax.Array, weights: jax.Array) -> jax.Array:
    """`y[b, m] = sum over k of weights[b, m, k] * table[b, entries[b, m, k]]`, a sparse product.

    In the forward pass the sum over k is unrolled. XLA fuses it to one loop that reads the rows in
    place, so the `M * K` rows are never stored. The backward pass reads the rows again (for the
    gradient of the weights) and adds to them (for that of the table), on CPUs and TPUs in pieces
    of `CHUNK_NUMBERS`. GPUs take one piece, because a loop would leave them idle.

    Seconds on a CPU of 2 cores, in f32, with the computation of the corners, for 4725 tokens of
    levels of 60 x 60, 30 x 30 and 15 x 15, 8 heads of 32 channels and 4 points:

    | implementation | forward | forward and backward |
    | --- | --- | --- |
    | this function | 0.02 | 0.11 |
    | unrolled, with XLA's own gradient | 0.02 | 0.57 |
    | one gather of all corners, stored | 0.20 | 0.25 |
    | `take_along_axis` for each head | 0.14 | 0.35 |
    | gathers of 2 x 2 windows | 0.40 | 0.40 |
    | dense products with hat functions, recomputed in pieces | 0.42 | 0.82 |
    | torch's `grid_sample` for each level | 0.17 | 0.57 |

    Args:
        table: `[B, R, D]`.
        entries: i32 `[B, M, K]`, in 0..R-1 (not checked).
        weights: f32 `[B, M, K]`.

    Returns:
        `[B, M, D]` with the dtype of the table; sums are in f32.
    """
    total = jnp.zeros((), jnp.float32)
    for k in range(entries.shape[2]):
        total = total + weights[:, :, k, None] * _take(table, entries[:, :, k])
    return total.astype(table.dtype)


def _forward(table: jax.Array, entries: jax.Array, weights: jax.Array):
    return weighted_rows(table, entries, weights), (table, entries, weights)


def _backward(residuals, gradient: jax.Array):
    table, entries, weights = residuals
    gradient = gradient.astype(jnp.float32)
    pieces = _pieces(entries, table.shape[-1])
    cut = lambda x: jnp.moveaxis(x.reshape(x.shape[0], pieces, -1, x.shape[2]), 1, 0)  # noqa: E731

    def step(total: jax.Array, piece: tuple[jax.Array, ...]) -> tuple[jax.Array, jax.Array]:
        entries, weights, gradient = piece
        total = jax.vmap(_add)(total, entries, weights[..., None] * gradient[:, :, None])
        # Traced outside the context with which the pixel decoder sets this precision.
        read = _take(table, entries).astype(jnp.float32)
        return total, jnp.einsum("bmkd,bmd->bmk", read, gradient, precision="high")

    start = jnp.zeros(table.shape, jnp.float32)
    if pieces == 1:
        d_table, d_weights = step(start, (entries, weights, gradient))
    else:
        d_table, d_weights = jax.lax.scan(step, start, (cut(entries), cut(weights), cut(gradient)))
        d_weights = jnp.moveaxis(d_weights, 0, 1).reshape(weights.shape)
    return d_table.astype(table.dtype), None, d_weights.astype(weights.dtype)


weighted_rows.defvjp(_forward, _backward)


def _pieces(entries: jax.Array, width: int) -> int:
    """The number of equal pieces into which the backward pass cuts axis 1."""
    now = target.current()
    if now.platform not in CHUNK_NUMBERS:
        return 1
    rows, count, each = entries.shape
    own = -(-rows // now.cut.row_shards) if now.cut else rows
    most = max(1, CHUNK_NUMBERS[now.platform] // (own * each * width))
    return count // max(size for size in range(1, min(most, count) + 1) if count % size == 0)


def _take(table: jax.Array, entries: jax.Array) -> jax.Array:
    read = lambda t, e: t.at[e].get(mode="promise_in_bounds")  # noqa: E731
    return jax.vmap(read)(table, entries)


def _add(total: jax.Array, entries: jax.Array, updates: jax.Array) -> jax.Array:
    return total.at[entries].add(updates, mode="promise_in_bounds")
