"""DETR's decoder layer (Carion et al. 2020), with dropout: attention, attention to a memory, MLP."""

from typing import Any

import jax
from flax import nnx

from refseg_jax.layers.attention import MultiHeadAttention
from refseg_jax.layers.dropout import dropout, split_key
from refseg_jax.layers.linear import packed_xavier_uniform
from refseg_jax.layers.norm import LayerNorm
from refseg_jax.layers.transformer import Mlp


class PostNormLayer(nnx.Module):
    """A post-norm layer.

        x = norm(x + drop(self_attention(q = k = x + places, v = x)))
        x = norm(x + drop(cross_attention(q = x + places, k = memory + memory_places, v = memory)))
        x = norm(x + drop(down(drop(relu(up(x))))))

    Unlike in DETR's code, attention weights are not dropped, because flash kernels never store them.
    Kernels start from Xavier's uniform initialisation, as in DETR.
    """

    def __init__(
        self, width: int, heads: int, hidden: int, *, dropout: float, dtype: Any, rngs: nnx.Rngs
    ):
        xavier = jax.nn.initializers.xavier_uniform()

        def attention() -> MultiHeadAttention:
            return MultiHeadAttention(
                width,
                heads,
                dtype=dtype,
                rngs=rngs,
                kernel_init=packed_xavier_uniform,
                output_init=xavier,
            )

        self.self_attention = attention()
        self.self_attention_norm = LayerNorm(width, dtype=dtype)
        self.cross_attention = attention()
        self.cross_attention_norm = LayerNorm(width, dtype=dtype)
        self.mlp = Mlp(
            width,
            hidden,
            activation=jax.nn.relu,
            up_init=xavier,
            down_init=xavier,
            dtype=dtype,
            rngs=rngs,
        )
        self.mlp_norm = LayerNorm(width, dtype=dtype)
        self.dropout = dropout

    def __call__(
        self,
        x: jax.Array,
        places: jax.Array,
        memory: jax.Array,
        memory_places: jax.Array,
        memory_valid: jax.Array | None = None,
        key: jax.Array | None = None,
    ) -> jax.Array:
        """Runs all three steps.

        Args:
            x: queries `[G, Q, width]`.
            places: position encoding of the queries, `[G or 1, Q, width]`.
            memory: `[G, S, width]`.
            memory_places: position encoding of the memory, `[S, width]`.
            memory_valid: bool `[G, S]`, false for padding, to which no query attends.
            key: random key for dropout; `None` means inference.

        Returns:
            `[G, Q, width]`.
        """
        first, second, third = split_key(key, 3)
        x = self.look_at_queries(x, places, first)
        x = self.look_at_memory(x, places, memory, memory_places, memory_valid, second)
        return self.think(x, third)

    def look_at_queries(self, x: jax.Array, places: jax.Array, key: jax.Array | None) -> jax.Array:
        """The self-attention step; arguments and result as in `__call__`."""
        placed = x + places
        mixed = self.self_attention(placed, placed, x)
        return self.self_attention_norm(x + dropout(mixed, self.dropout, key))

    def look_at_memory(
        self,
        x: jax.Array,
        places: jax.Array,
        memory: jax.Array,
        memory_places: jax.Array,
        memory_valid: jax.Array | None,
        key: jax.Array | None,
    ) -> jax.Array:
        """The cross-attention step; arguments and result as in `__call__`."""
        mixed = self.cross_attention(
            x + places, memory + memory_places, memory, key_valid=memory_valid
        )
        return self.cross_attention_norm(x + dropout(mixed, self.dropout, key))

    def think(self, x: jax.Array, key: jax.Array | None) -> jax.Array:
        """The MLP step: `[..., width]` to the same shape."""
        inner, outer = split_key(key, 2)
        hidden = dropout(self.mlp.activation(self.mlp.up(x)), self.dropout, inner)
        return self.mlp_norm(x + dropout(self.mlp.down(hidden), self.dropout, outer))
