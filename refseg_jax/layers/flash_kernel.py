"""The Pallas kernels of `refseg_jax.layers.flash_attention`, which states what they compute.

They are imported when the first is traced, because Pallas takes half a second to import.
"""

import functools
import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from refseg_jax.layers.chunked_attention import MASKED
from refseg_jax.layers.flash_plan import Plan

#: Contracted axes of `a b^T` and of `a^T b`.
_LAST, _FIRST = (((1,), (1,)), ((), ())), (((0,), (0,)), ((), ()))


def run(blocks: Plan, arrays: dict[str, jax.Array], *, backward: bool = False) -> list[jax.Array]:
    """Calls the kernel of one direction.

    Args:
        blocks: how the arrays are cut.
        arrays: `query` `[B, T, C]`; `key`, `value` `[B, S, C]`; if given, `key_valid` i32
            `[B, 1, keys]`, `visible` i8 `[G, queries, keys]` and `bias` f32 `[heads, queries, keys]`,
            padded to whole blocks; for the backward pass `gradient` `[B, T, C]`.
        backward: the direction.

    Returns:
        The result `[B, T, C]`, or the gradients of query, key, value and, if given, the bias.
    """
    query = arrays["query"]
    grid = (
        query.shape[2] // blocks.lanes,
        query.shape[0] // blocks.rows,
        blocks.query_blocks,
    )
    results = ("query", "key", "value") if backward else ("query",)
    results += ("bias",) if backward and "bias" in arrays else ()
    scratch = []
    if backward and blocks.query_blocks > 1:
        scratch = [pltpu.VMEM((blocks.keys, blocks.lanes), jnp.float32)] * 2
    body = _backward if backward else _forward
    shapes = [jax.ShapeDtypeStruct(arrays[name].shape, arrays[name].dtype) for name in results]
    return pl.pallas_call(
        functools.partial(body, blocks, tuple(arrays)),
        grid=grid,
        in_specs=[_spec(blocks, name) for name in arrays],
        out_specs=[_spec(blocks, name) for name in results],
        out_shape=shapes,
        scratch_shapes=scratch,
        compiler_params=pltpu.CompilerParams(
            vmem_limit_bytes=blocks.limit,
            # Gradients of the bias add up over rows, and those of keys and values over queries.
            dimension_semantics=("parallel", "arbitrary", "arbitrary")
            if backward
            else ("parallel", "parallel", "parallel"),
        ),
        cost_estimate=_cost(blocks, grid, (*arrays.values(), *shapes), backward),
        name="attention_gradient" if backward else "attention",
    )(*arrays.values())


def _spec(blocks: Plan, name: str) -> pl.BlockSpec:
    """The block of an array; the axes of the grid are blocks of heads, of rows and of queries."""
    tokens = lambda heads, rows, queries: (rows, queries, heads)  # noqa: E731
    if name in ("query", "gradient"):
        return pl.BlockSpec((blocks.rows, blocks.queries, blocks.lanes), tokens)
    if name in ("key", "value"):
        shape = (blocks.rows, blocks.keys, blocks.lanes)
        return pl.BlockSpec(shape, lambda heads, rows, _: (rows, 0, heads))
    if name == "key_valid":
        return pl.BlockSpec((blocks.rows, 1, blocks.keys), lambda _, rows, __: (rows, 0, 0))
    if name == "bias":
        shape = (blocks.heads, blocks.queries, blocks.keys)
        return pl.BlockSpec(shape, lambda heads, *_: (heads, 0, 0))
    period = max(blocks.groups // blocks.rows, 1)
    shape = (min(blocks.rows, blocks.groups), blocks.queries, blocks.keys)
    return pl.BlockSpec(shape, lambda _, rows, queries: (rows % period, queries, 0))


def _cost(
    blocks: Plan, grid: tuple[int, int, int], arrays: Sequence[Any], backward: bool
) -> pl.CostEstimate:
    """What XLA is to count: products without padding, and each array once."""
    pairs = grid[0] * blocks.heads * grid[1] * blocks.rows
    scores = pairs * blocks.true_queries * blocks.true_keys
    return pl.CostEstimate(
        flops=(5 if backward else 2) * 2 * scores * blocks.width,
        transcendentals=scores,
        bytes_accessed=sum(math.prod(x.shape) * x.dtype.itemsize for x in arrays),
    )


def _forward(blocks: Plan, names: Sequence[str], *refs: Any) -> None:
    given, (out,) = dict(zip(names, refs, strict=False)), refs[len(names) :]

    def row(number: Any, _: Any) -> None:
        query, key, value = _tokens(blocks, given, number)
        mixed = jnp.zeros((blocks.queries, blocks.lanes), jnp.float32)
        for head in range(blocks.heads):
            weights, _ = _weights(blocks, given, number, head, query, key)
            one = jnp.dot(weights.astype(value.dtype), value, preferred_element_type=jnp.float32)
            mixed = _placed(blocks, head, one, mixed)
        out[number] = mixed.astype(out.dtype)

    _over(blocks.rows, row)


def _backward(blocks: Plan, names: Sequence[str], *refs: Any) -> None:
    given, others = dict(zip(names, refs, strict=False)), list(refs[len(names) :])
    d_query, d_key, d_value = others[:3]
    d_bias = others[3] if "bias" in given else None
    sums = others[-2:] if blocks.query_blocks > 1 else None
    if d_bias is not None:
        pl.when(pl.program_id(1) == 0)(functools.partial(_clear, d_bias))
    if sums is not None:
        pl.when(pl.program_id(2) == 0)(functools.partial(_clear, *sums))

    def row(number: Any, _: Any) -> None:
        query, key, value = _tokens(blocks, given, number)
        gradient = _queries(blocks, given["gradient"], number)
        dq = jnp.zeros((blocks.queries, blocks.lanes), jnp.float32)
        dk = dv = jnp.zeros((blocks.keys, blocks.lanes), jnp.float32)
        for head in range(blocks.heads):
            weights, seen = _weights(blocks, given, number, head, query, key)
            dp = _product(_own(blocks, head, gradient), value, _LAST)
            ds = weights * (dp - jnp.sum(weights * dp, 1, keepdims=True))
            if seen is not None:
                ds = jnp.where(seen, ds, 0.0)
            if d_bias is not None:
                d_bias[head] += ds
            narrow = (ds * blocks.width**-0.5).astype(key.dtype)
            dq = _placed(blocks, head, _product(narrow, key, _PLAIN), dq)
            dk = _placed(blocks, head, _product(narrow, query, _FIRST), dk)
            dv = _placed(blocks, head, _product(weights.astype(value.dtype), gradient, _FIRST), dv)
        d_query[number] = dq.astype(d_query.dtype)
        if sums is None:
            d_key[number] = dk.astype(d_key.dtype)
            d_value[number] = dv.astype(d_value.dtype)
        else:
            sums[0][...] += dk
            sums[1][...] += dv

    _over(blocks.rows, row)
    if sums is not None:
        last = pl.program_id(2) == blocks.query_blocks - 1

        @pl.when(last)
        def _() -> None:
            d_key[0] = sums[0][...].astype(d_key.dtype)
            d_value[0] = sums[1][...].astype(d_value.dtype)


#: Contracted axes of `a b`.
_PLAIN = (((1,), (0,)), ((), ()))


def _product(a: jax.Array, b: jax.Array, axes: Any) -> jax.Array:
    return jax.lax.dot_general(a, b, axes, preferred_element_type=jnp.float32)


def _over(rows: int, row: Any) -> None:
    if rows == 1:
        row(0, None)
    else:
        jax.lax.fori_loop(0, rows, row, None)


def _clear(*refs: Any) -> None:
    for ref in refs:
        ref[...] = jnp.zeros(ref.shape, ref.dtype)


def _tokens(blocks: Plan, given: dict[str, Any], row: Any) -> tuple[jax.Array, ...]:
    """Query, key and value of a row, with zeros beyond the end, where a block reads anything."""
    keys = [_inside(given[name][row], 0, blocks.true_keys) for name in ("key", "value")]
    return _queries(blocks, given["query"], row), *keys


def _queries(blocks: Plan, ref: Any, row: Any) -> jax.Array:
    if blocks.true_queries % blocks.queries == 0:
        return ref[row]
    return _inside(ref[row], pl.program_id(2) * blocks.queries, blocks.true_queries)


def _inside(x: jax.Array, first: Any, end: int) -> jax.Array:
    """`x` with zeros where `first` + row is not below `end`."""
    if isinstance(first, int) and first + x.shape[0] <= end:
        return x
    places = first + jax.lax.broadcasted_iota(jnp.int32, x.shape, 0)
    return jnp.where(places < end, x.astype(jnp.float32), 0.0).astype(x.dtype)


def _own(blocks: Plan, head: int, x: jax.Array) -> jax.Array:
    """`x` with zeros in the channels of the other heads of a block."""
    if blocks.heads == 1:
        return x
    wide = x.astype(jnp.float32)
    return _placed(blocks, head, wide, jnp.zeros_like(wide)).astype(x.dtype)


def _placed(blocks: Plan, head: int, x: jax.Array, others: jax.Array) -> jax.Array:
    """`others` with the channels of one head taken from `x`."""
    if blocks.heads == 1:
        return x
    lanes = jax.lax.broadcasted_iota(jnp.int32, x.shape, 1)
    first = head * blocks.width
    return jnp.where((lanes >= first) & (lanes < first + blocks.width), x, others)


def _weights(
    blocks: Plan, given: dict[str, Any], row: Any, head: int, query: jax.Array, key: jax.Array
) -> tuple[jax.Array, jax.Array | None]:
    """Softmax of the scores of a head, f32 `[queries, keys]`, and which of them are not masked."""
    scores = _product(_own(blocks, head, query), key, _LAST) * blocks.width**-0.5
    if "bias" in given:
        scores = scores + given["bias"][head]
    seen = None
    if "visible" in given:
        place = row if given["visible"].shape[0] > 1 else 0
        seen = given["visible"][place].astype(jnp.int32) != 0
    if "key_valid" in given:
        valid = jnp.broadcast_to(given["key_valid"][row] != 0, scores.shape)
        seen = valid if seen is None else seen & valid
    if seen is not None:
        scores = jnp.where(seen, scores, MASKED)
    if blocks.keys > blocks.true_keys:
        places = jax.lax.broadcasted_iota(jnp.int32, scores.shape, 1)
        scores = jnp.where(places < blocks.true_keys, scores, -jnp.inf)
    powers = jnp.exp(scores - jnp.max(scores, 1, keepdims=True))
    return powers / jnp.sum(powers, 1, keepdims=True), seen
