"""The single entry point to attention: `attention` picks the fastest kernel for the target."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from refseg_jax.layers import target
from refseg_jax.layers.chunked_attention import MASKED, chunked_attention
from refseg_jax.layers.flash_attention import flash_attention, takes
from refseg_jax.layers.linear import Initializer, Linear, fan_in_uniform

#: Number of keys from which kernels that do not store the scores are worth it.
FLASH_MIN_KEYS = 128


def attention(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    *,
    key_valid: jax.Array | None = None,
    causal: bool = False,
    visible: jax.Array | None = None,
    bias: jax.Array | None = None,
) -> jax.Array:
    """`softmax(Q K^T / sqrt(D) + bias) V` per head; the softmax is in f32.

    A query that may attend to no key returns the mean of all values.

    Args:
        query: `[B, T, heads, D]`.
        key, value: `[B, S, heads, D]`.
        key_valid: bool `[B, S]`, false for keys that no query may attend to (padding).
        causal: position t attends to the keys 0..t (T = S).
        visible: bool `[G, T, S]`, true where a query may attend to a key, the same for all heads;
            row b uses `visible[b % G]` (G divides B).
        bias: f32 `[heads, T, S]`, the same for all rows.

    Returns:
        `[B, T, heads, D]` with the dtype of the query.
    """
    platform = target.current().platform
    if platform == "tpu" and not causal and takes(query, key, visible, bias):
        return flash_attention(query, key, value, key_valid=key_valid, visible=visible, bias=bias)
    mask = _scores_mask(query.shape[1], key_valid, causal, visible)
    if platform == "cpu":
        if key.shape[1] >= FLASH_MIN_KEYS:
            return chunked_attention(query, key, value, mask, bias)
        return _head_loop(query, key, value, mask, bias)
    plain = key_valid is None and visible is None and bias is None
    if platform == "gpu" and plain and _cudnn_takes(query, key):
        return jax.nn.dot_product_attention(
            query, key, value, is_causal=causal, implementation="cudnn"
        )
    return _batched(query, key, value, mask, bias)


def _cudnn_takes(query: jax.Array, key: jax.Array) -> bool:
    half = query.dtype in (jnp.bfloat16, jnp.float16)
    width = query.shape[-1]
    return half and width % 8 == 0 and width <= 128 and key.shape[1] >= FLASH_MIN_KEYS


def _scores_mask(
    queries: int,
    key_valid: jax.Array | None,
    causal: bool,
    visible: jax.Array | None,
) -> jax.Array | None:
    """bool `[G, T or 1, S]`, true where a query may attend to a key; row b uses group `b % G`."""
    mask = visible
    if key_valid is not None:
        valid = key_valid[:, None, :]
        mask = valid if mask is None else _each(mask, valid.shape[0]) & valid
    if causal:
        seen = jnp.tril(jnp.ones((queries, queries), bool))[None]
        mask = seen if mask is None else mask & seen
    return mask


def _each(mask: jax.Array, rows: int) -> jax.Array:
    """Repeats the masks `[G, ...]` of the groups for all rows: `[B, ...]`, or as they are if G = 1."""
    groups = mask.shape[0]
    if groups in (1, rows):
        return mask
    return jnp.broadcast_to(mask, (rows // groups, *mask.shape)).reshape(rows, *mask.shape[1:])


def _batched(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    mask: jax.Array | None,
    bias: jax.Array | None,
) -> jax.Array:
    scores = jnp.einsum("bthd,bshd->bhts", query, key, preferred_element_type=jnp.float32)
    mask = None if mask is None else mask[:, None]
    weights = _weights(scores, query.shape[-1], mask, bias)
    return jnp.einsum("bhts,bshd->bthd", weights.astype(value.dtype), value)


def _head_loop(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    mask: jax.Array | None,
    bias: jax.Array | None,
) -> jax.Array:
    """One head at a time: XLA:CPU copies the operands of a product with two batch axes, not with one."""
    heads = []
    for head in range(query.shape[2]):
        q, k, v = query[:, :, head], key[:, :, head], value[:, :, head]
        scores = jnp.einsum("btd,bsd->bts", q, k, preferred_element_type=jnp.float32)
        own_bias = None if bias is None else bias[head]
        weights = _weights(scores, query.shape[-1], mask, own_bias).astype(v.dtype)
        mixed = jnp.einsum("bts,bsd->btd", weights, v, preferred_element_type=jnp.float32)
        heads.append(mixed.astype(query.dtype))
    return jnp.stack(heads, 2)


def _weights(
    scores: jax.Array, width: int, mask: jax.Array | None, bias: jax.Array | None
) -> jax.Array:
    """Softmax of scores `[B, ..., T, S]`; `mask` `[G, ...]` and `bias` broadcast to the scores."""
    scores = scores * (width**-0.5)
    if bias is not None:
        scores = scores + bias
    if mask is not None:
        each = mask.shape[0] in (1, scores.shape[0])
        groups = scores if each else scores.reshape(-1, mask.shape[0], *scores.shape[1:])
        scores = jnp.where(mask, groups, MASKED).reshape(scores.shape)
    return jax.nn.softmax(scores, axis=-1)


class MultiHeadAttention(nnx.Module):
    """Multi-head attention with separate projections `query`, `key`, `value` and `out`."""

    def __init__(
        self,
        width: int,
        heads: int,
        *,
        dtype: Any,
        rngs: nnx.Rngs,
        kernel_init: Initializer,
        output_init: Initializer = fan_in_uniform,
    ):
        if width % heads:
            raise ValueError(f"{heads} heads do not divide the width {width}")
        self.heads = heads
        self.query = Linear(width, width, dtype=dtype, rngs=rngs, kernel_init=kernel_init)
        self.key = Linear(width, width, dtype=dtype, rngs=rngs, kernel_init=kernel_init)
        self.value = Linear(width, width, dtype=dtype, rngs=rngs, kernel_init=kernel_init)
        self.out = Linear(width, width, dtype=dtype, rngs=rngs, kernel_init=output_init)

    def project_query(self, x: jax.Array) -> jax.Array:
        """`[B, T, width]` to `[B, T, heads, width / heads]`."""
        return self._split(self.query(x))

    def attend(
        self,
        projected: jax.Array,
        key: jax.Array,
        value: jax.Array,
        *,
        key_valid: jax.Array | None = None,
        causal: bool = False,
        visible: jax.Array | None = None,
        bias: jax.Array | None = None,
    ) -> jax.Array:
        """Attention for a query that `project_query` has already projected.

        Args:
            projected: `[B, T, heads, width / heads]`.
            key, value: `[B, S, width]`.
            key_valid, causal, visible, bias: as in `attention`.

        Returns:
            `[B, T, width]`.
        """
        mixed = attention(
            projected,
            self._split(self.key(key)),
            self._split(self.value(value)),
            key_valid=key_valid,
            causal=causal,
            visible=visible,
            bias=bias,
        )
        return self.out(mixed.reshape(*mixed.shape[:2], -1))

    def __call__(
        self,
        query: jax.Array,
        key: jax.Array,
        value: jax.Array,
        *,
        key_valid: jax.Array | None = None,
        causal: bool = False,
        visible: jax.Array | None = None,
        bias: jax.Array | None = None,
    ) -> jax.Array:
        """Projects, attends and projects back.

        Args:
            query: `[B, T, width]`.
            key, value: `[B, S, width]`.
            key_valid, causal, visible, bias: as in `attention`.

        Returns:
            `[B, T, width]`.
        """
        projected = self.project_query(query)
        return self.attend(
            projected, key, value, key_valid=key_valid, causal=causal, visible=visible, bias=bias
        )

    def _split(self, x: jax.Array) -> jax.Array:
        return x.reshape(*x.shape[:-1], self.heads, -1)
