"""Attention for TPUs that stores no scores: JAX's Pallas kernel, on padded rows, cut over the mesh."""

import math

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P

from refseg_jax.layers import target

#: The kernel takes keys in multiples of these: the lanes of a TPU's vector unit.
LANES = 128

#: Queries are padded to these where they are fewer than `LANES`: sublanes of a tile of bf16.
SUBLANES = 16

#: Rows of scores up to this length are one block, which needs no running maximum.
ONE_BLOCK = 1024

#: Sizes of a block of longer rows; 512 x 512 scores in f32 are 1 MB of the 16 MB that a kernel has.
BLOCKS = (512, 384, 256)

#: Queries of a block: beside a whole row of `ONE_BLOCK` scores, the backward pass holds four such
#: blocks in f32.
QUERY_BLOCKS = (384, 256, 128)


def flash_attention(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    key_valid: jax.Array | None = None,
) -> jax.Array:
    """`softmax(Q K^T / sqrt(D)) V` per head; softmax and sums are in f32.

    A query that may attend to no key returns the mean of all values. No array of T x S scores leaves
    the chip's vector memory, in either direction. XLA cannot cut the kernel over devices by itself, so
    each device runs it on its rows and heads.

    Args:
        query: `[B, T, heads, D]`.
        key, value: `[B, S, heads, D]`.
        key_valid: bool `[B, S]`, false for keys that no query may attend to.

    Returns:
        `[B, T, heads, D]` with the dtype of the query.
    """
    if key_valid is None:
        key_valid = jnp.ones(key.shape[:2], bool)
    run = _padded
    cut = target.current().cut
    if cut is not None and cut.mesh.size > 1:
        rows, heads = _axes(cut, query.shape[0], query.shape[2])
        whole = P(rows, None, heads, None)
        run = jax.shard_map(
            run,
            mesh=cut.mesh,
            in_specs=(whole, whole, whole, P(rows, None)),
            out_specs=whole,
            check_vma=False,
        )
    return run(query, key, value, key_valid)


def _axes(cut: target.Cut, rows: int, heads: int) -> tuple[tuple[str, ...] | None, str | None]:
    """The axes of the mesh that cut the rows and the heads; `None` where they do not divide them."""
    shards = math.prod(cut.mesh.shape[axis] for axis in cut.rows)
    even = rows % shards == 0, heads % cut.mesh.shape[cut.heads] == 0
    return cut.rows if even[0] else None, cut.heads if even[1] else None


def _padded(query: jax.Array, key: jax.Array, value: jax.Array, key_valid: jax.Array) -> jax.Array:
    """The kernel on the rows and heads of a device, with T and S padded to whole blocks."""
    # Half a second, which a process without a TPU does not need to wait.
    from jax.experimental.pallas.ops.tpu import flash_attention as pallas

    queries, keys = query.shape[1], key.shape[1]
    length, block = _blocks(keys)
    height, rows = _query_blocks(queries)
    # A row without valid keys attends to all of its keys alike, but not to the padding.
    some = key_valid.any(1, keepdims=True)
    query = jnp.where(some[..., None, None], query, 0)
    seen = key_valid | ~some
    marks = jnp.pad(seen.astype(jnp.int32), ((0, 0), (0, length - keys)))
    segments = pallas.SegmentIds(jnp.ones((len(query), height), jnp.int32), marks)
    q, k, v = (
        jnp.pad(x.transpose(0, 2, 1, 3), ((0, 0), (0, 0), (0, size - x.shape[1]), (0, 0)))
        for x, size in ((query, height), (key, length), (value, length))
    )
    sizes = pallas.BlockSizes(
        block_b=1,
        **dict.fromkeys(("block_q", "block_q_major_dkv", "block_q_dkv", "block_q_dq"), rows),
        **dict.fromkeys(("block_k_major", "block_k"), block),
        **dict.fromkeys(("block_k_major_dkv", "block_k_dkv"), block),
        **dict.fromkeys(("block_k_major_dq", "block_k_dq"), block),
    )
    scale = query.shape[-1] ** -0.5
    out = pallas.flash_attention(q, k, v, None, segments, sm_scale=scale, block_sizes=sizes)
    return out[:, :, :queries].transpose(0, 2, 1, 3).astype(query.dtype)


def _blocks(keys: int) -> tuple[int, int]:
    """The padded number of keys, and the keys of a block."""
    if keys <= ONE_BLOCK:
        length = _up(keys, LANES)
        return length, length
    block = _least_padding(keys, BLOCKS)
    return _up(keys, block), block


def _query_blocks(queries: int) -> tuple[int, int]:
    """The padded number of queries, and the queries of a block."""
    if queries <= LANES:
        length = _up(queries, SUBLANES)
        return length, length
    block = _least_padding(queries, QUERY_BLOCKS)
    return _up(queries, block), block


def _least_padding(length: int, blocks: tuple[int, ...]) -> int:
    """The block that pads least, the largest of equals."""
    return min(blocks, key=lambda block: (_up(length, block), -block))


def _up(length: int, step: int) -> int:
    return -(-length // step) * step
