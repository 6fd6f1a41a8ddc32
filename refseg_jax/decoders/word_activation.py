"""Pre-Fusion of the UniLSeg paper, in which the cells of a map attend to the words (equation 1)."""

from collections.abc import Sequence
from typing import Any

import jax
from flax import nnx

from refseg_jax.layers.attention import MultiHeadAttention
from refseg_jax.layers.linear import Linear, packed_xavier_uniform
from refseg_jax.layers.rows import repeat_rows


class WordActivation(nnx.Module):
    """Multi-head cross-attention from the cells of one map to the words.

        f_c = attention(q = f_v, k = v = linear(f_w))

    Liu et al. 2024, section 3.1, "Pre-Fusion". Equation 1 has no residual, so the image enters the
    result through the attention weights alone; `residual` adds `f_v`, as the public code does.

    Not stated in the paper: the number of heads, and the projection behind the heads, which is that
    of every multi-head attention. The joint space has the channels of the map.
    """

    def __init__(
        self,
        width: int,
        word_width: int,
        heads: int,
        *,
        residual: bool,
        dtype: Any,
        rngs: nnx.Rngs,
    ):
        self.words = Linear(word_width, width, dtype=dtype, rngs=rngs)
        self.attention = MultiHeadAttention(
            width, heads, dtype=dtype, rngs=rngs, kernel_init=packed_xavier_uniform
        )
        self.residual = residual

    def __call__(self, image: jax.Array, words: jax.Array, valid: jax.Array) -> jax.Array:
        """Activates a map by each of K expressions.

        Args:
            image: `[I, h, w, width]`, a row for each image.
            words: `[I * K, L, word_width]`.
            valid: bool `[I * K, L]`, false for padding.

        Returns:
            `[I * K, h, w, width]`.
        """
        rows, height, width, channels = image.shape
        repeats = words.shape[0] // rows
        cells = image.reshape(rows, height * width, channels)
        memory = self.words(words)
        query = repeat_rows(self.attention.project_query(cells), repeats)
        activated = self.attention.attend(query, memory, memory, key_valid=valid)
        if self.residual:
            activated = activated + repeat_rows(cells, repeats)
        return activated.reshape(-1, height, width, channels)


class WordActivations(nnx.Module):
    """Pre-Fusion of all maps but the finest, which the paper leaves as it is (its scales are 2 to 4)."""

    def __init__(
        self,
        widths: Sequence[int],
        word_width: int,
        heads: int,
        *,
        residual: bool,
        dtype: Any,
        rngs: nnx.Rngs,
    ):
        """Creates one attention a map.

        Args:
            widths: channels of the maps, the finest first.
            word_width: channels of the words.
            heads: heads of each attention.
            residual: see `WordActivation`.
            dtype: compute type.
            rngs: random streams for the parameters.
        """
        self.levels = nnx.List(
            [
                WordActivation(width, word_width, heads, residual=residual, dtype=dtype, rngs=rngs)
                for width in widths[1:]
            ]
        )

    def __call__(
        self, maps: Sequence[jax.Array], words: jax.Array, valid: jax.Array
    ) -> tuple[jax.Array, ...]:
        """Activates maps by each of K expressions; arguments are as in `WordActivation`.

        Returns:
            The finest map as it came, `[I, h, w, C]`, and the others `[I * K, h, w, C]`.
        """
        finest, *others = maps
        activated = (level(x, words, valid) for level, x in zip(self.levels, others, strict=True))
        return finest, *activated
