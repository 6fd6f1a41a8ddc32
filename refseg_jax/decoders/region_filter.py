"""UniRES's language-guided region filter (LRF), in which group tokens attend to the words."""

from typing import Any

import jax
from flax import nnx

from refseg_jax.layers.attention import MultiHeadAttention
from refseg_jax.layers.linear import Linear, packed_xavier_uniform
from refseg_jax.layers.norm import LayerNorm


class RegionFilter(nnx.Module):
    """The region filter of one level of group tokens.

        x = input(tokens);  x += attention(x, words);  x += down(relu(up(x)))

    From Figure 4 of the UniRES paper: group tokens are the query, words are key and value; there are
    two residuals and no norms, and the number of tokens stays the same. Each level has its own filter.

    Not stated in the paper, and decided here: the number of heads, the hidden width, ReLU, and
    `input`. The tokens come from a residual stream of another width and scale, so `input` is a norm
    (unless `input_norm` is false) and a linear map.
    """

    def __init__(
        self,
        *,
        token_width: int,
        width: int,
        heads: int,
        hidden: int,
        input_norm: bool,
        dtype: Any,
        rngs: nnx.Rngs,
    ):
        self.input_norm = LayerNorm(token_width, dtype=dtype) if input_norm else None
        self.input = Linear(token_width, width, dtype=dtype, rngs=rngs)
        self.attention = MultiHeadAttention(
            width, heads, dtype=dtype, rngs=rngs, kernel_init=packed_xavier_uniform
        )
        self.up = Linear(width, hidden, dtype=dtype, rngs=rngs)
        self.down = Linear(hidden, width, dtype=dtype, rngs=rngs)

    def project(self, tokens: jax.Array) -> jax.Array:
        """`input`, which does not depend on the text: `[B, T, token_width]` to `[B, T, width]`."""
        return self.input(tokens if self.input_norm is None else self.input_norm(tokens))

    def __call__(self, projected: jax.Array, words: jax.Array, valid: jax.Array) -> jax.Array:
        """Filters projected tokens by the words.

        Args:
            projected: `[B, T, width]`, the output of `project`.
            words: `[B, L, width]`.
            valid: bool `[B, L]`, false for padding.

        Returns:
            `[B, T, width]`.
        """
        x = projected + self.attention(projected, words, words, key_valid=valid)
        return x + self.down(jax.nn.relu(self.up(x)))
