"""CRIS's vision-language decoder, in which image tokens attend to each other and to a memory."""

from typing import Any

import jax
from flax import nnx

from refseg_jax.layers.attention import MultiHeadAttention
from refseg_jax.layers.dropout import dropout, split_key
from refseg_jax.layers.linear import Linear, packed_xavier_uniform
from refseg_jax.layers.norm import LayerNorm
from refseg_jax.layers.rows import repeat_rows
from refseg_jax.layers.transformer import run_block


class DecoderMlp(nnx.Module):
    """CRIS's MLP, with a norm inside: `down(norm(dropout(relu(up(x)))))`."""

    def __init__(self, width: int, hidden: int, *, dropout: float, dtype: Any, rngs: nnx.Rngs):
        self.up = Linear(width, hidden, dtype=dtype, rngs=rngs)
        self.norm = LayerNorm(hidden, dtype=dtype)
        self.down = Linear(hidden, width, dtype=dtype, rngs=rngs)
        self.dropout = dropout

    def __call__(self, x: jax.Array, key: jax.Array | None) -> jax.Array:
        """`[..., width]` to the same shape."""
        hidden = dropout(jax.nn.relu(self.up(x)), self.dropout, key)
        return self.down(self.norm(hidden))


class DecoderLayer(nnx.Module):
    """CRIS's layer: pre-norm, with an additional norm on the output of each attention.

        x += drop(norm(self_attention(q = k = norm(x) + positions, v = norm(x))))
        x += drop(norm(cross_attention(q = norm(x) + positions, k = memory_key, v = memory)))
        x += drop(mlp(norm(x)))

    Unlike in CRIS, attention weights are not dropped, because flash kernels never store them.
    """

    def __init__(
        self, width: int, heads: int, hidden: int, *, dropout: float, dtype: Any, rngs: nnx.Rngs
    ):
        def attention() -> MultiHeadAttention:
            return MultiHeadAttention(
                width, heads, dtype=dtype, rngs=rngs, kernel_init=packed_xavier_uniform
            )

        self.self_attention_norm = LayerNorm(width, dtype=dtype)
        self.self_attention = attention()
        self.self_attention_output_norm = LayerNorm(width, dtype=dtype)
        self.cross_attention_norm = LayerNorm(width, dtype=dtype)
        self.cross_attention = attention()
        self.cross_attention_output_norm = LayerNorm(width, dtype=dtype)
        self.mlp_norm = LayerNorm(width, dtype=dtype)
        self.mlp = DecoderMlp(width, hidden, dropout=dropout, dtype=dtype, rngs=rngs)
        self.dropout = dropout

    def look_at_itself(
        self, x: jax.Array, positions: jax.Array, key: jax.Array | None
    ) -> jax.Array:
        """The self-attention branch.

        Args:
            x: `[G, P, width]`.
            positions: `[P, width]`.
            key: random key for dropout; `None` means inference.

        Returns:
            `[G, P, width]`.
        """
        normed = self.self_attention_norm(x)
        placed = normed + positions
        y = self.self_attention_output_norm(self.self_attention(placed, placed, normed))
        return x + dropout(y, self.dropout, key)

    def look_at_memory(
        self,
        x: jax.Array,
        positions: jax.Array,
        memory_key: jax.Array,
        memory: jax.Array,
        valid: jax.Array | None,
        key: jax.Array | None,
    ) -> jax.Array:
        """The cross-attention branch and the MLP branch.

        Args:
            x: `[G, P, width]`.
            positions: `[P, width]`.
            memory_key, memory: keys and values `[G * K, S, width]`, K memories for each row of `x`.
            valid: bool `[G * K, S]`, false for padding; `None` if there is none.
            key: random key for dropout; `None` means inference.

        Returns:
            `[G * K, P, width]`.
        """
        repeats = memory.shape[0] // x.shape[0]
        keys = split_key(key, 3)
        query = self.cross_attention.project_query(self.cross_attention_norm(x) + positions)
        x, query = repeat_rows(x, repeats), repeat_rows(query, repeats)
        y = self.cross_attention.attend(query, memory_key, memory, key_valid=valid)
        x = x + dropout(self.cross_attention_output_norm(y), self.dropout, keys[0])
        return x + dropout(self.mlp(self.mlp_norm(x), keys[1]), self.dropout, keys[2])


class VisionLanguageDecoder(nnx.Module):
    """A stack of decoder layers and a final norm."""

    def __init__(
        self,
        *,
        layers: int,
        width: int,
        heads: int,
        hidden: int,
        dropout: float,
        dtype: Any,
        remat: bool,
        rngs: nnx.Rngs,
    ):
        self.layers = nnx.List(
            [
                DecoderLayer(width, heads, hidden, dropout=dropout, dtype=dtype, rngs=rngs)
                for _ in range(layers)
            ]
        )
        self.final_norm = LayerNorm(width, dtype=dtype)
        self.remat = remat

    def __call__(
        self,
        x: jax.Array,
        positions: jax.Array,
        memory_key: jax.Array,
        memory: jax.Array,
        *,
        valid: jax.Array | None = None,
        key: jax.Array | None = None,
    ) -> jax.Array:
        """Decodes image tokens; arguments and result are as in `DecoderLayer.look_at_memory`.

        The self-attention of the first layer does not depend on the memory, so it runs once per row of
        `x`, not K times.
        """
        positions = positions.astype(x.dtype)
        for layer, layer_key in zip(self.layers, split_key(key, len(self.layers)), strict=True):
            first, second = split_key(layer_key, 2)
            x = run_block(layer.look_at_itself, x, positions, first, remat=self.remat)
            x = run_block(
                layer.look_at_memory,
                x,
                positions,
                memory_key,
                memory,
                valid,
                second,
                remat=self.remat,
            )
        return self.final_norm(x)
