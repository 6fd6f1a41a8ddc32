"""The relationship block of ReLA's public code: Mask2Former's decoder with attention to the words."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from refseg_jax.decoders.masked_attention import MaskedAttentionLayer, visible_cells
from refseg_jax.decoders.pixel_decoder import PixelFeatures
from refseg_jax.decoders.relationship import Perceptron, Regions, difference
from refseg_jax.images.resize import resize_bilinear
from refseg_jax.layers.attention import MultiHeadAttention
from refseg_jax.layers.linear import Linear, packed_xavier_uniform
from refseg_jax.layers.norm import LayerNorm
from refseg_jax.layers.positions import sine_positions_relative
from refseg_jax.layers.transformer import run_block

#: Constant factor of the output of the attention to words in the public code, beside its learned gate.
WORDS_SHARE = 0.1


@dataclasses.dataclass(frozen=True)
class MaskedRelationshipConfig:
    """Sizes; the defaults are those of the public code.

    Attributes:
        width: channels of all features.
        side: regions along a side of the minimap.
        heads: attention heads of the layers.
        hidden: width inside the MLPs of the layers.
        layers: number of layers; they attend to the levels of the pixel decoder in turn, the coarsest
            first.
        mask_padding: keep regions from attending to padding. In the public code they attend to it, so
            its weights need `False`.
        zero_filters: initialise the region filters with zeros, see `ReLAConfig`.
        remat: recompute activations inside the layers in the backward pass instead of storing them.
    """

    width: int = 256
    side: int = 10
    heads: int = 8
    hidden: int = 2048
    layers: int = 9
    mask_padding: bool = False
    zero_filters: bool = False
    remat: bool = False

    def __post_init__(self) -> None:
        """Checks the fields.

        Raises:
            ValueError: the sizes do not fit together.
        """
        for field in ("width", "side", "heads", "hidden", "layers"):
            if getattr(self, field) < 1:
                raise ValueError(f"{field}={getattr(self, field)} is less than 1")
        if self.width % self.heads:
            raise ValueError(f"heads={self.heads} does not divide width={self.width}")


class MaskedRelationship(nnx.Module):
    """Region queries attend to the image within their masks, once to the words, and to each other.

    Each layer has cross-attention to one level of the pixel decoder, restricted to the foreground of
    the query's mask, then self-attention and an MLP. In the first layer, attention to the words follows
    the cross-attention:

        y = norm(x + attention(q = x, k = v = linear(words)));  x += 0.1 sigmoid(gate) y

    `linear` and `gate` start at zero. Region filters, minimap and presence are computed from `norm(x)`
    after the last layer. The weight of a region is the difference of its two minimap scores, not a
    probability; presence is the mean over all regions. Filters are also computed before every layer,
    for the attention masks, which have no loss of their own, as in the public code.

    The attention masks are computed at the size of each level: resizing the mask features once gives
    the same numbers as resizing every mask, because both steps are linear.
    """

    def __init__(
        self,
        config: MaskedRelationshipConfig,
        *,
        levels: int,
        text_width: int,
        mask_width: int,
        dtype: Any,
        rngs: nnx.Rngs,
    ):
        """Creates the layers, the attention to words and the outputs.

        Args:
            config: sizes.
            levels: number of levels of the pixel decoder.
            text_width: channels of the words.
            mask_width: channels of the mask features of the pixel decoder.
            dtype: compute type.
            rngs: random streams for the parameters.
        """
        width, regions = config.width, config.side**2
        # torch's Embedding starts with a standard deviation of 1.
        table = lambda count: nnx.Param(jax.random.normal(rngs.params(), (count, width)))  # noqa: E731
        self.queries, self.places = table(regions), table(regions)
        self.level_embedding = table(levels)
        self.layers = nnx.List(
            [
                MaskedAttentionLayer(width, config.heads, config.hidden, dtype=dtype, rngs=rngs)
                for _ in range(config.layers)
            ]
        )
        zeros = jax.nn.initializers.zeros
        self.words = Linear(
            text_width, width, dtype=dtype, rngs=rngs, use_bias=False, kernel_init=zeros
        )
        self.words_attention = MultiHeadAttention(
            width,
            config.heads,
            dtype=dtype,
            rngs=rngs,
            kernel_init=packed_xavier_uniform,
            output_init=jax.nn.initializers.xavier_uniform(),
        )
        self.words_norm = LayerNorm(width, dtype=dtype)
        self.words_gate = nnx.Param(jnp.zeros((1,), jnp.float32))
        self.norm = LayerNorm(width, dtype=dtype)
        self.filter = Perceptron(
            (width, width, width, mask_width), dtype=dtype, rngs=rngs, zero=config.zero_filters
        )
        self.minimap = Linear(width, 2, dtype=dtype, rngs=rngs)
        self.presence = Perceptron((width, width, 2), dtype=dtype, rngs=rngs)
        self.config = config
        self.dtype = dtype

    def __call__(self, pixels: PixelFeatures, words: jax.Array, valid: jax.Array) -> Regions:
        """Computes the regions of G pairs of image and expression.

        Args:
            pixels: output of the pixel decoder for the G pairs, with levels of `width` channels.
            words: `[G, L, text_width]`.
            valid: bool `[G, L]`, false for padding.
        """
        rows = words.shape[0]
        memories = [self._memory(level, index) for index, level in enumerate(pixels.levels)]
        sizes = [(level.shape[1], level.shape[2]) for level in pixels.levels]
        masks = [resize_bilinear(pixels.masks, size) for size in sizes]
        queries, places = (t[...].astype(self.dtype) for t in (self.queries, self.places))
        x = jnp.broadcast_to(queries, (rows, *queries.shape))
        for number, layer in enumerate(self.layers):
            level = number % len(memories)
            visible = self._visible(x, masks[level])
            x = run_block(
                layer.look_at_memory, x, places, *memories[level], visible, remat=self.config.remat
            )
            if number == 0:
                x = x + self._look_at_words(x, words, valid)
            x = run_block(
                lambda x, p, layer=layer: layer.think(layer.look_at_queries(x, p)),
                x,
                places,
                remat=self.config.remat,
            )
        return self._read(self.norm(x))

    def _memory(self, level: jax.Array, index: int) -> tuple[jax.Array, jax.Array]:
        """The tokens `[G, S, width]` of a level, and their position encodings `[S, width]`.

        The level embedding is added to the tokens and not to the positions, so values contain it too.
        """
        rows, height, width, channels = level.shape
        tokens = level.reshape(rows, height * width, channels) + self.level_embedding[...][index]
        places = jnp.asarray(sine_positions_relative(height, width, channels))
        return tokens.astype(self.dtype), places.astype(self.dtype)

    def _visible(self, x: jax.Array, masks: jax.Array) -> jax.Array:
        """bool `[G, R, S]`, true for the cells of a level where the mask of a region is foreground."""
        filters = self.filter(self.norm(jax.lax.stop_gradient(x)))
        logits = jnp.einsum("grc,ghwc->grhw", filters, masks, preferred_element_type=jnp.float32)
        return visible_cells(logits, (masks.shape[1], masks.shape[2]))

    def _look_at_words(self, x: jax.Array, words: jax.Array, valid: jax.Array) -> jax.Array:
        memory = self.words(words)
        key_valid = valid if self.config.mask_padding else None
        y = self.words_norm(x + self.words_attention(x, memory, memory, key_valid=key_valid))
        return (WORDS_SHARE * jax.nn.sigmoid(self.words_gate[...])).astype(y.dtype) * y

    def _read(self, x: jax.Array) -> Regions:
        minimap = difference(self.minimap(x))
        present = -difference(jnp.mean(self.presence(x).astype(jnp.float32), 1))
        return Regions(self.filter(x), minimap, minimap, present)
