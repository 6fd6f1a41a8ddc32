"""UniLSeg's Pre-Fusion: pixels of each scale attend to the words before anything is decoded."""

from collections.abc import Sequence
from typing import Any

import jax
from flax import nnx

from refseg_jax.layers.attention import MultiHeadAttention
from refseg_jax.layers.linear import Linear, packed_xavier_uniform
from refseg_jax.layers.positions import sine_positions_centred
from refseg_jax.layers.rows import repeat_rows
from refseg_jax.layers.transformer import run_block


class PreFusion(nnx.Module):
    """One attention to the words for each scale of the backbone, in UniLSeg's public form.

        w = linear(words)
        map = map + attention(q = map + positions, k = v = w)

    There is neither a norm nor an MLP. Nothing is dropped: the public code drops attention weights here
    and nothing else, and attention weights are not dropped in this code base (see `PostNormLayer`).
    Parameter paths are `words.<scale>` and `attentions.<scale>`, the finest scale first.
    """

    def __init__(
        self,
        widths: Sequence[int],
        word_width: int,
        heads: int,
        *,
        dtype: Any,
        remat: bool,
        rngs: nnx.Rngs,
    ):
        """Creates the layers.

        Args:
            widths: channels of the maps, the finest first.
            word_width: channels of the words.
            heads: attention heads at every scale.
            dtype: compute type.
            remat: recompute activations in the backward pass instead of storing them.
            rngs: random streams for the parameters.
        """
        self.words = nnx.List(
            [Linear(word_width, width, dtype=dtype, rngs=rngs) for width in widths]
        )
        self.attentions = nnx.List(
            [
                MultiHeadAttention(
                    width, heads, dtype=dtype, rngs=rngs, kernel_init=packed_xavier_uniform
                )
                for width in widths
            ]
        )
        self.remat = remat

    def __call__(
        self, maps: Sequence[jax.Array], words: jax.Array, valid: jax.Array
    ) -> tuple[jax.Array, ...]:
        """Fuses the words of G pairs of image and expression.

        The queries do not depend on the words, so they are computed once for each map.

        Args:
            maps: `[G / K, h, w, C]` each, the finest first; every map has K expressions.
            words: `[G, L, word_width]`, the K expressions of a map one after the other.
            valid: bool `[G, L]`, false for padding, to which no pixel attends.

        Returns:
            `[G, h, w, C]` each.
        """
        layers = zip(maps, self.words, self.attentions, strict=True)
        return tuple(
            run_block(
                lambda x, w, v, layer=layer, attention=attention: _fuse(x, layer(w), v, attention),
                x,
                words,
                valid,
                remat=self.remat,
            )
            for x, layer, attention in layers
        )


def _fuse(
    x: jax.Array, words: jax.Array, valid: jax.Array, attention: MultiHeadAttention
) -> jax.Array:
    rows, height, width, channels = x.shape
    count = words.shape[0] // rows
    tokens = x.reshape(rows, height * width, channels)
    places = sine_positions_centred(height, width, channels, dtype=x.dtype)
    query = repeat_rows(attention.project_query(tokens + places), count)
    mixed = attention.attend(query, words, words, key_valid=valid)
    return (repeat_rows(tokens, count) + mixed).reshape(-1, height, width, channels)
