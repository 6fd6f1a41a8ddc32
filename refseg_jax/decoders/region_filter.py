"""UniRES's language-guided region filter (LRF): group tokens ask the words what matters."""

from typing import Any

import jax
from flax import nnx

from refseg_jax.layers.attention import MultiHeadAttention
from refseg_jax.layers.linear import Linear, packed_xavier_uniform
from refseg_jax.layers.norm import LayerNorm


class RegionFilter(nnx.Module):
    """`x = input(tokens); x += attention(x, words); x += down(relu(up(x)))`.

    From the paper's Figure 4: group tokens are the query, words key and value; two residuals, no
    norms, the count of tokens stays; one filter a level. Not stated there, hence chosen: the tokens
    come as a residual stream of another width and scale, so that `input` is a norm (unless
    `input_norm` is off) and a linear map; heads; hidden width; ReLU.
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
        """The part that does not look at the text: `[B, T, token_width]` to `[B, T, width]`."""
        return self.input(tokens if self.input_norm is None else self.input_norm(tokens))

    def __call__(self, projected: jax.Array, words: jax.Array, valid: jax.Array) -> jax.Array:
        """Filters tokens that `project` has projected.

        Args:
            projected: `[B, T, width]`.
            words: `[B, L, width]`.
            valid: bool `[B, L]`, false for padding.

        Returns:
            `[B, T, width]`.
        """
        x = projected + self.attention(projected, words, words, key_valid=valid)
        return x + self.down(jax.nn.relu(self.up(x)))
