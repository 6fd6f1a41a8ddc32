"""CRIS's vision-language decoder: image tokens look at themselves and at a memory."""

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
    """`down(norm(dropout(relu(up(x)))))`: CRIS has a norm inside."""

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
    """CRIS's layer: pre-norm, and one more norm on what each attention gives.

        x += drop(norm(self_attention(q = k = norm(x) + positions, v = norm(x))))
        x += drop(norm(cross_attention(q = norm(x) + positions, k = memory_key, v = memory)))
        x += drop(mlp(norm(x)))

    Attention weights are not dropped (flash kernels have no weights to drop).
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
        """The self-attention branch: `[G, P, width]` to the same shape."""
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
        """The other two branches.

        Args:
            x: `[G, P, width]`.
            positions: `[P, width]`.
            memory_key, memory: `[G * K, S, width]`, K memories for each row of `x`.
            valid: bool `[G * K, S]`, false for padding, or `None`.
            key: for dropout.

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
    """Some layers and a last norm."""

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
        """Decodes; arguments and result as in `DecoderLayer.look_at_memory`.

        Until the first layer looks at the memory, a row of `x` is worked on once, not K times.
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
