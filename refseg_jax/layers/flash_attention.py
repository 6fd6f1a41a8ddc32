"""Attention for TPUs that stores no scores: a Pallas kernel that holds whole rows of them on the chip.

A block is some rows of the batch, some queries and `lanes` channels, which are the channels of one or
several heads. Arrays keep the layout of the projections, `[B, T, heads * D]`: nothing is transposed,
and heads narrower than a vector register are not padded to one. A product over the channels of one head
takes all lanes with those of the other heads at zero, which costs a TPU's matrix unit nothing, since it
multiplies whole registers anyway.

The backward pass computes the scores again, in the same kernel that computes all gradients: with
`P = softmax(S)`, `dV = P^T dO`, `dP = dO V^T`, `dS = P * (dP - rowsum(P * dP))`, `dQ = dS K` and
`dK = dS^T Q`. Rows of scores are whole, so neither the output nor running sums are needed
(FlashAttention, Dao et al. 2022, section 3.1, needs them for longer rows).
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P

from refseg_jax.layers import target
from refseg_jax.layers.flash_plan import Plan, plan


def takes(
    query: jax.Array,
    key: jax.Array,
    visible: jax.Array | None = None,
    bias: jax.Array | None = None,
) -> bool:
    """Whether a device's chip has room for the kernel on its share of arrays of `flash_attention`."""
    cut = target.current().cut
    rows, _, heads, _ = query.shape
    shards = cut.mesh.shape[cut.heads] if cut and _axes(cut, rows, heads, 1)[1] else 1
    share = (*query.shape[:2], heads // shards, query.shape[3])
    return plan(jax.ShapeDtypeStruct(share, query.dtype), key, visible, bias) is not None


def flash_attention(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    *,
    key_valid: jax.Array | None = None,
    visible: jax.Array | None = None,
    bias: jax.Array | None = None,
) -> jax.Array:
    """`softmax(Q K^T / sqrt(D) + bias) V` per head; softmax and sums are in f32.

    A query that may attend to no key returns the mean of all values. XLA cannot cut the kernel over
    devices by itself, so each device runs it on its rows and heads.

    Args:
        query: `[B, T, heads, D]`.
        key, value: `[B, S, heads, D]`.
        key_valid: bool `[B, S]`, false for keys that no query may attend to.
        visible: bool `[G, T, S]`, true where a query may attend to a key; row b uses
            `visible[b % G]`.
        bias: f32 `[heads, T, S]`, the same for all rows.

    Returns:
        `[B, T, heads, D]` with the dtype of the query.

    Raises:
        ValueError: `takes` is false.
    """
    given = {"key_valid": key_valid, "visible": visible, "bias": bias}
    extra = {name: x for name, x in given.items() if x is not None}
    cut = target.current().cut
    if cut is None or cut.mesh.size == 1:
        return _local(query, key, value, extra)
    each = visible is not None and len(visible) == len(query)
    rows, heads = _axes(
        cut, query.shape[0], query.shape[2], 1 if visible is None or each else len(visible)
    )
    whole = P(rows, None, heads, None)
    specs = {
        "key_valid": P(rows, None),
        "visible": P(rows if each else None, None, None),
        "bias": P(heads, None, None),
    }
    return jax.shard_map(
        _local,
        mesh=cut.mesh,
        in_specs=(whole, whole, whole, {name: specs[name] for name in extra}),
        out_specs=whole,
        check_vma=False,
    )(query, key, value, extra)


def _axes(
    cut: target.Cut, rows: int, heads: int, groups: int
) -> tuple[tuple[str, ...] | None, str | None]:
    """The axes of the mesh that cut the rows and the heads; `None` where they do not divide them.

    The rows of a device begin with the first of the `groups` masks.
    """
    shards = cut.row_shards
    even = rows % (shards * groups) == 0, heads % cut.mesh.shape[cut.heads] == 0
    return cut.rows if even[0] else None, cut.heads if even[1] else None


def _local(query: jax.Array, key: jax.Array, value: jax.Array, extra: dict[str, Any]) -> jax.Array:
    """The kernel on the rows and heads of a device."""
    blocks = plan(query, key, extra.get("visible"), extra.get("bias"))
    if blocks is None:
        raise ValueError(f"no plan for queries {query.shape} and keys {key.shape}")
    q, k, v = (x.reshape(*x.shape[:2], -1) for x in (query, key, value))
    queries = blocks.query_blocks * blocks.queries
    wide = (0, blocks.keys - blocks.true_keys)
    square = ((0, 0), (0, queries - blocks.true_queries), wide)
    padded = {}
    if "key_valid" in extra:
        valid = extra["key_valid"].astype(jnp.int32)
        padded["key_valid"] = jnp.pad(valid, ((0, 0), wide))[:, None]
    if "visible" in extra:
        padded["visible"] = jnp.pad(extra["visible"].astype(jnp.int8), square)
    bias = {}
    if "bias" in extra:
        bias["bias"] = jnp.pad(extra["bias"].astype(jnp.float32), square)
    return _attend(blocks, {"query": q, "key": k, "value": v} | bias, padded).reshape(query.shape)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attend(blocks: Plan, arrays: dict[str, jax.Array], masks: dict[str, jax.Array]) -> jax.Array:
    """The arrays of `flash_kernel.run` in two parts; only the first has gradients."""
    from refseg_jax.layers import flash_kernel

    return flash_kernel.run(blocks, arrays | masks)[0]


def _attend_forward(blocks: Plan, arrays: dict[str, jax.Array], masks: dict[str, jax.Array]):
    return _attend(blocks, arrays, masks), (arrays, masks)


def _attend_backward(blocks: Plan, kept, gradient: jax.Array):
    from refseg_jax.layers import flash_kernel

    arrays, masks = kept
    found = flash_kernel.run(blocks, arrays | masks | {"gradient": gradient}, backward=True)
    return dict(zip(("query", "key", "value", "bias"), found, strict=False)), dict.fromkeys(masks)


_attend.defvjp(_attend_forward, _attend_backward)
