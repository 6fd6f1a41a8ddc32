"""CLIP's text transformer, which returns features of the words and of the sentence."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from refseg_jax.layers.linear import Embedding, Linear, gaussian
from refseg_jax.layers.norm import LayerNorm
from refseg_jax.layers.transformer import BlockScales, TransformerBlock, run_block


class ClipText(nnx.Module):
    """CLIP's text encoder with a causal mask; padding is not masked, as in CLIP's training.

    A word attends only to itself and the words before it, so padding at the end changes neither words
    nor sentence. The whole table of positions is kept, so that the tower can be exported again in
    CLIP's format.
    """

    def __init__(
        self,
        *,
        vocab_size: int,
        positions: int,
        width: int,
        layers: int,
        heads: int,
        output_width: int,
        activation: str,
        eos_id: int,
        dtype: Any,
        remat: bool,
        rngs: nnx.Rngs,
    ):
        scales = BlockScales.of(width, layers)
        self.token_embedding = Embedding(vocab_size, width, stddev=0.02, dtype=dtype, rngs=rngs)
        self.position_embedding = nnx.Param(
            0.01 * jax.random.normal(rngs.params(), (positions, width), jnp.float32)
        )
        self.blocks = nnx.List(
            [
                TransformerBlock(
                    width, heads, activation=activation, scales=scales, dtype=dtype, rngs=rngs
                )
                for _ in range(layers)
            ]
        )
        self.final_norm = LayerNorm(width, dtype=dtype)
        self.projection = Linear(
            width,
            output_width,
            dtype=dtype,
            rngs=rngs,
            use_bias=False,
            kernel_init=gaussian(width**-0.5),
        )
        self.eos_id = eos_id
        self.remat = remat

    def __call__(self, ids: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Encodes texts.

        Args:
            ids: i32 `[B, L]`, L at most the number of positions.

        Returns:
            Words `[B, L, width]` after the final norm, not projected; and the sentence
            `[B, output_width]`, the projected word at the first EOS (at position 0 if there is none).

        Raises:
            ValueError: L is more than the number of positions.
        """
        length, positions = ids.shape[1], self.position_embedding.shape[0]
        if length > positions:
            raise ValueError(f"{length} text positions asked for, but the table has {positions}")
        words = self.token_embedding(ids)
        words = words + self.position_embedding[:length].astype(words.dtype)
        for block in self.blocks:
            words = run_block(block, words, remat=self.remat, causal=True)
        words = self.final_norm(words)
        end = jnp.argmax(ids == self.eos_id, axis=1)
        sentence = jnp.take_along_axis(words, end[:, None, None], axis=1)[:, 0]
        return words, self.projection(sentence)
