"""Mask2Former's decoder layer, with attention masked by the previous masks (Cheng et al. 2022)."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from refseg_jax.images.resize import resize_bilinear
from refseg_jax.layers.attention import MultiHeadAttention
from refseg_jax.layers.linear import packed_xavier_uniform
from refseg_jax.layers.norm import LayerNorm
from refseg_jax.layers.transformer import Mlp


def visible_cells(mask_logits: jax.Array, size: tuple[int, int]) -> jax.Array:
    """The cells of a map to which each query may attend: those where its mask is foreground.

    As in Mask2Former, the logits are resized bilinearly without antialiasing, and a cell is foreground
    if `sigmoid(logit) >= 1/2`. A query whose mask is empty at this size attends to all cells. No
    gradient flows back to the logits.

    Args:
        mask_logits: `[B, Q, h, w]`, one mask per query.
        size: height and width of the map.

    Returns:
        bool `[B, Q, height * width]`.
    """
    logits = jax.lax.stop_gradient(mask_logits)
    resized = resize_bilinear(logits.transpose(0, 2, 3, 1), size).transpose(0, 3, 1, 2)
    inside = resized.reshape(*resized.shape[:2], -1) >= 0.0
    return inside | ~jnp.any(inside, -1, keepdims=True)


class MaskedAttentionLayer(nnx.Module):
    """A post-norm layer of masked cross-attention, self-attention and MLP.

        x = norm(x + cross_attention(q = x + places, k = memory + memory_places, v = memory))
        x = norm(x + self_attention(q = k = x + places, v = x))
        x = norm(x + mlp(x))

    Each step is also a method of its own, because ReLA's public code inserts attention to the words
    after the first step of its first layer. There is no dropout, as in Mask2Former and ReLA.
    """

    def __init__(self, width: int, heads: int, hidden: int, *, dtype: Any, rngs: nnx.Rngs):
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

        self.cross_attention = attention()
        self.cross_attention_norm = LayerNorm(width, dtype=dtype)
        self.self_attention = attention()
        self.self_attention_norm = LayerNorm(width, dtype=dtype)
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

    def __call__(
        self,
        x: jax.Array,
        places: jax.Array,
        memory: jax.Array,
        memory_places: jax.Array,
        visible: jax.Array | None = None,
    ) -> jax.Array:
        """Runs all three steps.

        Args:
            x: queries `[B, Q, width]`.
            places: learned position embedding of the queries, `[Q, width]`.
            memory: tokens of a map, `[B, S, width]`.
            memory_places: position encoding of the tokens, `[S, width]`.
            visible: bool `[B, Q, S]`, see `visible_cells`; all cells are visible if absent.

        Returns:
            `[B, Q, width]`.
        """
        x = self.look_at_memory(x, places, memory, memory_places, visible)
        return self.think(self.look_at_queries(x, places))

    def look_at_memory(
        self,
        x: jax.Array,
        places: jax.Array,
        memory: jax.Array,
        memory_places: jax.Array,
        visible: jax.Array | None = None,
    ) -> jax.Array:
        """The cross-attention step; arguments and result as in `__call__`."""
        mixed = self.cross_attention(x + places, memory + memory_places, memory, visible=visible)
        return self.cross_attention_norm(x + mixed)

    def look_at_queries(self, x: jax.Array, places: jax.Array) -> jax.Array:
        """The self-attention step: `[B, Q, width]` to the same shape."""
        placed = x + places
        return self.self_attention_norm(x + self.self_attention(placed, placed, x))

    def think(self, x: jax.Array) -> jax.Array:
        """The MLP step: `[B, Q, width]` to the same shape."""
        return self.mlp_norm(x + self.mlp(x))
