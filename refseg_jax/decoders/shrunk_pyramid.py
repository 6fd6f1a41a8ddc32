"""The vision path of UniLSeg's public code: a feature pyramid whose levels attend to themselves."""

import dataclasses
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from refseg_jax.decoders.post_norm import PostNormLayer
from refseg_jax.images.resize import resize_bilinear
from refseg_jax.layers.batch_norm import NormKind
from refseg_jax.layers.conv_norm import ConvNormRelu
from refseg_jax.layers.dropout import dropout, split_key
from refseg_jax.layers.positions import sine_positions_centred, sine_positions_words
from refseg_jax.layers.transformer import run_block


class VisionPath(NamedTuple):
    """Output of a vision path for G pairs of image and expression.

    Attributes:
        masks: mask features `[G, h, w, mask_width]`, the size of the finest map.
        maps: the maps that the language path reads, `[G, h, w, C]` each, the finest first.
    """

    masks: jax.Array
    maps: tuple[jax.Array, ...]


@dataclasses.dataclass(frozen=True)
class PyramidConfig:
    """Sizes; the defaults are those of UniLSeg's public code.

    Attributes:
        width: channels of the levels and of the words.
        mask_width: channels of the mask features.
        heads, hidden: of the layer of each level.
        dropout: rate in the layers.
        norm: after each convolution, a kind of `make_norm`.
        attend: whether the levels have a layer of attention; without it, this is a plain pyramid.
        remat: recompute activations inside the layers in the backward pass instead of storing them.
    """

    width: int = 512
    mask_width: int = 256
    heads: int = 8
    hidden: int = 2048
    dropout: float = 0.1
    norm: NormKind = "batch"
    attend: bool = True
    remat: bool = False


class ShrunkPyramid(nnx.Module):
    """A top-down pyramid; each level has a `ShrunkLayer` before the coarser level is added.

        y = layer(adapter(map), words)
        y = convolution(y + upsampled(y of the coarser level))
        masks = masks(y of the finest level)

    `adapter` (1x1), `convolution` (3x3) and `masks` (3x3) each end in a norm and a ReLU, so that mask
    features are never negative. Parameter paths are `adapters.<level>`, `layers.<level>`,
    `convolutions.<level>` and `masks`, the finest level first.
    """

    def __init__(self, config: PyramidConfig, widths: Sequence[int], *, dtype: Any, rngs: nnx.Rngs):
        """Creates the layers.

        Args:
            config: sizes.
            widths: channels of the maps, the finest first.
            dtype: compute type.
            rngs: random streams for the parameters.
        """
        width = config.width

        def unit(inputs: int, outputs: int, size: int) -> ConvNormRelu:
            return ConvNormRelu(
                inputs, outputs, size=size, norm=config.norm, dtype=dtype, rngs=rngs
            )

        self.adapters = nnx.List([unit(inputs, width, 1) for inputs in widths])
        self.layers = nnx.List(
            [
                ShrunkLayer(
                    width,
                    config.heads,
                    config.hidden,
                    dropout=config.dropout,
                    dtype=dtype,
                    rngs=rngs,
                )
                for _ in (widths if config.attend else ())
            ]
        )
        self.convolutions = nnx.List([unit(width, width, 3) for _ in widths])
        self.masks = unit(width, config.mask_width, 3)
        self.config = config

    def __call__(
        self,
        maps: Sequence[jax.Array],
        words: jax.Array,
        words_valid: jax.Array,
        valid: jax.Array | None = None,
        *,
        training: bool = False,
        key: jax.Array | None = None,
    ) -> VisionPath:
        """Decodes the maps of G pairs of image and expression.

        Args:
            maps: `[G, h, w, C]` each, the finest first, each half the size of the one before it.
            words: `[G, L, width]`.
            words_valid: bool `[G, L]`, false for padding.
            valid: bool `[G]`, the pairs that count for batch statistics; all do if absent.
            training: whether batch statistics are those of this call.
            key: random key for dropout; `None` means inference.

        Returns:
            The mask features, and `maps` as they came: the language path of the public code reads the
            maps after Pre-Fusion.
        """
        levels, y = len(maps), None
        keys = split_key(key, levels)
        for level in reversed(range(levels)):
            x = self.adapters[level](maps[level], valid, training=training)
            if self.config.attend:
                # The coarsest map keeps its size; all others are shrunk to that.
                call = lambda *inputs, level=level: self.layers[level](  # noqa: E731
                    *inputs, ratio=2 ** (levels - 1 - level)
                )
                x = run_block(call, x, words, words_valid, keys[level], remat=self.config.remat)
            if y is not None:
                x = x + resize_bilinear(y, (x.shape[1], x.shape[2]))
            y = self.convolutions[level](x, valid, training=training)
        assert y is not None
        return VisionPath(self.masks(y, valid, training=training), tuple(maps))


class ShrunkLayer(PostNormLayer):
    """A `PostNormLayer` whose queries are the cells of a map, and whose memory are the words.

    The self-attention runs over a shrunk map and the words together, so that its cost does not depend
    on the size of the map:

        q = k = [shrunk(x + positions); words],  v = [shrunk(x); words]
        x = norm(x + drop(enlarged(self_attention(q, k, v)[: cells])))

    Both resizes are bilinear (torch's, without antialiasing). The words have positions in the
    cross-attention only.
    """

    def __call__(  # pyright: ignore[reportIncompatibleMethodOverride]
        self,
        x: jax.Array,
        words: jax.Array,
        words_valid: jax.Array,
        key: jax.Array | None = None,
        *,
        ratio: int,
    ) -> jax.Array:
        """Runs all three steps.

        Args:
            x: `[G, h, w, width]`.
            words: `[G, L, width]`.
            words_valid: bool `[G, L]`, false for padding, to which nothing attends.
            key: random key for dropout; `None` means inference.
            ratio: factor by which the map is shrunk, rounded down to whole cells; 1 for not at all.

        Returns:
            `[G, h, w, width]`.
        """
        height, width, channels = x.shape[1:]
        first, second, third = split_key(key, 3)
        places = sine_positions_centred(height, width, channels, dtype=x.dtype)
        word_places = jnp.asarray(sine_positions_words(words.shape[1], channels), x.dtype)
        mixed = self._mix(x, places, words, words_valid, ratio)
        x = self.self_attention_norm(x + dropout(mixed, self.dropout, first))
        tokens = x.reshape(x.shape[0], height * width, channels)
        tokens = self.look_at_memory(tokens, places, words, word_places, words_valid, second)
        return self.think(tokens, third).reshape(x.shape)

    def _mix(
        self, x: jax.Array, places: jax.Array, words: jax.Array, valid: jax.Array, ratio: int
    ) -> jax.Array:
        """The output of the self-attention at the size of the map, `[G, h, w, width]`."""
        rows, height, width, channels = x.shape
        small = (height // ratio, width // ratio)
        cells = small[0] * small[1]

        shrunk = resize_bilinear(x, small).reshape(rows, cells, channels)
        # Resizing is linear, so the positions can be resized on their own.
        grid = places.reshape(1, height, width, channels)
        placed = shrunk + resize_bilinear(grid, small).reshape(cells, channels)
        key, value = (jnp.concatenate([y, words], 1) for y in (placed, shrunk))
        visible = jnp.concatenate([jnp.ones((rows, cells), bool), valid], 1)
        # What the words would gather is not used, so they are no queries.
        query = self.self_attention.project_query(placed)
        mixed = self.self_attention.attend(query, key, value, key_valid=visible)
        return resize_bilinear(mixed.reshape(rows, *small, channels), (height, width))
