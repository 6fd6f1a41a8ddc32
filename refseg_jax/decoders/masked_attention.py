"""Mask2Former's decoder layer: queries look where the last masks are (Cheng et al. 2022)."""

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
    """Which cells of a map each query may look at: where its mask is foreground.

    The logits are resized bilinearly without antialiasing, as in Mask2Former; a cell counts where
    `sigmoid >= 1/2`. A query whose mask is empty at this size sees all cells. No gradient passes.

    Args:
        mask_logits: `[B, Q, h, w]`.
        size: height and width of the map.

    Returns:
        bool `[B, Q, height * width]`.
    """
    logits = jax.lax.stop_gradient(mask_logits)
    resized = resize_bilinear(logits.transpose(0, 2, 3, 1), size).transpose(0, 3, 1, 2)
    inside = resized.reshape(*resized.shape[:2], -1) >= 0.0
    return inside | ~jnp.any(inside, -1, keepdims=True)


class MaskedAttentionLayer(nnx.Module):
    """Cross-attention within masks, self-attention and MLP, the norms behind the sums.

        x = norm(x + cross_attention(q = x + places, k = memory + its places, v = memory))
        x = norm(x + self_attention(q = k = x + places, v = x))
        x = norm(x + mlp(x))

    The three steps are methods too, because ReLA's official code lets its first layer's queries
    look at the words after the first of them. No dropout, as in Mask2Former and ReLA.
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
        """All three steps.

        Args:
            x: queries `[B, Q, width]`.
            places: of the queries, `[Q, width]` (learned).
            memory: a map's tokens `[B, S, width]`.
            memory_places: `[S, width]`.
            visible: bool `[B, Q, S]`, see `visible_cells`; without it all cells are.

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
