"""The multi-modal transformer of the UniLSeg paper, and its mirror image (equations 2 to 5)."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from refseg_jax.layers.attention import MultiHeadAttention
from refseg_jax.layers.dropout import dropout, split_key
from refseg_jax.layers.linear import packed_xavier_uniform
from refseg_jax.layers.norm import LayerNorm
from refseg_jax.layers.transformer import Mlp


class TwoAttentions(nnx.Module):
    """Two attentions and an MLP, each with a norm before its residual, `x += norm(branch(x))`.

    Equation 5 states this for self-attention. Not stated in the paper: the same norm and residual for
    the other attention; and an MLP, which the paper does not name ("mainly composed of" two attentions)
    and the public code has.
    """

    def __init__(
        self, width: int, heads: int, hidden: int, *, dropout: float, dtype: Any, rngs: nnx.Rngs
    ):
        """Creates the layer.

        Args:
            width: channels.
            heads: heads of both attentions.
            hidden: width inside the MLP.
            dropout: rate behind each branch.
            dtype: compute type.
            rngs: random streams for the parameters.
        """

        def attention() -> MultiHeadAttention:
            return MultiHeadAttention(
                width, heads, dtype=dtype, rngs=rngs, kernel_init=packed_xavier_uniform
            )

        self.self_attention = attention()
        self.self_attention_norm = LayerNorm(width, dtype=dtype)
        self.cross_attention = attention()
        self.cross_attention_norm = LayerNorm(width, dtype=dtype)
        xavier = jax.nn.initializers.xavier_uniform()
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

    def _look(self, first: jax.Array, second: jax.Array, valid: jax.Array) -> jax.Array:
        """Self-attention over the concatenation of two lists of tokens, of which the first is kept.

        The discarded tokens are computed as keys and values only, which is exact.

        Args:
            first: `[G, T, width]`, all of them valid.
            second: `[G, S, width]`.
            valid: bool `[G, S]`, false for padding.

        Returns:
            `[G, T, width]`.
        """
        tokens = jnp.concatenate([first, second], 1)
        key_valid = jnp.concatenate([jnp.ones(first.shape[:2], bool), valid], 1)
        return self.self_attention(first, tokens, tokens, key_valid=key_valid)

    def _think(self, x: jax.Array, key: jax.Array | None) -> jax.Array:
        return x + dropout(self.mlp_norm(self.mlp(x)), self.dropout, key)


class MultiModalLayer(TwoAttentions):
    """The layer of the vision path: self-attention over cells and words, then attention to the words.

        f_m = [f_c + Pos ; f_w]                                           equations 2 and 3
        f_b = norm(self_attention(f_m)[:cells]) + f_c                      equations 4 and 5
        f_b = norm(cross_attention(q = f_b, k = v = f_w)) + f_b
        f_b = norm(mlp(f_b)) + f_b

    Liu et al. 2024, section 3.1, "Vision Path".
    """

    def __call__(
        self,
        x: jax.Array,
        positions: jax.Array,
        words: jax.Array,
        valid: jax.Array,
        key: jax.Array | None = None,
    ) -> jax.Array:
        """Runs the layer.

        Args:
            x: the cells of a map, `[G, P, width]`.
            positions: `[P, width]`.
            words: `[G, L, width]`.
            valid: bool `[G, L]`, false for padding.
            key: random key for dropout; `None` means inference.

        Returns:
            `[G, P, width]`.
        """
        keys = split_key(key, 3)
        seen = self.self_attention_norm(self._look(x + positions, words, valid))
        x = x + dropout(seen, self.dropout, keys[0])
        told = self.cross_attention(x, words, words, key_valid=valid)
        x = x + dropout(self.cross_attention_norm(told), self.dropout, keys[1])
        return self._think(x, keys[2])


class SymmetricLayer(TwoAttentions):
    """The layer of the language path: attention to the image, then self-attention with the prompt.

        s = norm(cross_attention(q = s, k = f_c + Pos, v = f_c)) + s
        s = norm(self_attention([s ; initial prompt])[:1]) + s
        s = norm(mlp(s)) + s

    Liu et al. 2024, section 3.1, "Language Path". Not stated in the paper: positions of the keys,
    which are those of equation 2 here.
    """

    def __call__(
        self,
        x: jax.Array,
        image: jax.Array,
        positions: jax.Array,
        prompt: jax.Array,
        valid: jax.Array,
        key: jax.Array | None = None,
    ) -> jax.Array:
        """Runs the layer.

        Args:
            x: the content-aware sentence, `[I * K, 1, width]`.
            image: cells `[I, S, width]`, or a row for each pair, `[I * K, S, width]`.
            positions: of the cells, `[S, width]`.
            prompt: tokens of the initial prompt, `[I * K, T, width]`.
            valid: bool `[I * K, T]`, false for padding.
            key: random key for dropout; `None` means inference.

        Returns:
            `[I * K, 1, width]`.
        """
        keys = split_key(key, 3)
        rows, _, width = image.shape
        # The expressions of an image are queries beside each other, which do not see one another.
        beside = x.reshape(rows, -1, width)
        seen = self.cross_attention(beside, image + positions, image).reshape(x.shape)
        x = x + dropout(self.cross_attention_norm(seen), self.dropout, keys[0])
        joined = self.self_attention_norm(self._look(x, prompt, valid))
        x = x + dropout(joined, self.dropout, keys[1])
        return self._think(x, keys[2])
