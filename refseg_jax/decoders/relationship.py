"""The relationship block of the ReLA paper (Liu, Ding and Jiang, CVPR 2023, section 4.2).

The public code has a different block of the same name, see `decoders.masked_relationship`.
"""

import dataclasses
import itertools
import math
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple, TypeAlias, get_args

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from refseg_jax import naming
from refseg_jax.decoders.pixel_decoder import PixelFeatures
from refseg_jax.layers.attention import MultiHeadAttention, attention
from refseg_jax.layers.linear import Linear, fan_in_uniform, gaussian, packed_xavier_uniform
from refseg_jax.layers.positions import sine_positions_relative
from refseg_jax.layers.transformer import recomputed_gelu

#: How region features are collected: by attention (equation 2), or by average pooling of the map to
#: `side * side` cells (Table 2, "hard split, decoder").
RegionSource: TypeAlias = Literal["attention", "pool"]


class Regions(NamedTuple):
    """Output of a relationship block: `R = side * side` regions of G pairs of image and expression.

    The mask of the targets is `sum over n of weights[n] * mask[n]` (equation 1). `mask[n]` is the
    product of the filter of region n and the mask features of the pixel decoder.

    Attributes:
        filters: region filters `[G, R, C]`.
        weights: weights of the regions in equation 1, f32 `[G, R]`.
        minimap_logits: f32 `[G, R]`, positive if the region contains targets.
        present_logits: f32 `[G]`, positive if there is any target.
    """

    filters: jax.Array
    weights: jax.Array
    minimap_logits: jax.Array
    present_logits: jax.Array

    def target_filter(self) -> jax.Array:
        """The filter of the targets' mask, f32 `[G, C]`: equation 1, summed before the mask product."""
        return jnp.einsum("gr,grc->gc", self.weights, self.filters.astype(jnp.float32))


@dataclasses.dataclass(frozen=True)
class RelationshipConfig:
    """Sizes and choices of the block; the ablations of the paper are fields.

    Attributes:
        width: C, channels of all features.
        side: P, regions along a side of the minimap (10 is best in Table 4).
        heads: heads of the attention among regions; not stated in the paper, 8 as in Mask2Former.
        level: level of the pixel decoder from which region features are collected, counted from the
            finest (0: stride 8). Not stated in the paper; stride 16 is fine enough to tell regions
            apart, and costs a quarter of stride 8.
        regions: see `RegionSource`.
        region_attention: regions attend to each other (Table 3).
        language_attention: regions attend to the words (Table 3); if false, they are multiplied by
            the mean of the words.
        zero_filters: initialise the region filters with zeros, see `ReLAConfig`.
    """

    width: int = 256
    side: int = 10
    heads: int = 8
    level: int = 1
    regions: RegionSource = "attention"
    region_attention: bool = True
    language_attention: bool = True
    zero_filters: bool = False

    def __post_init__(self) -> None:
        """Checks the fields.

        Raises:
            ValueError: the sizes do not fit together, or a name is unknown.
        """
        if self.regions not in get_args(RegionSource):
            raise ValueError(
                naming.unknown("source of regions", self.regions, ("attention", "pool"))
            )
        if self.width % self.heads:
            raise ValueError(f"heads={self.heads} does not divide width={self.width}")
        if self.side < 1 or self.level < 0:
            raise ValueError(
                f"side={self.side} and level={self.level} must not be negative or zero"
            )


class Relationship(nnx.Module):
    """Region-image attention (RIA), then region-language attention (RLA).

        A   = softmax(Q gelu(F W_k)^T)                        equation 2
        R'  = A gelu(F W_v)
        R1  = self_attention(R')
        R2  = softmax(gelu(R' W_q) gelu(T W_l)^T) T           equation 3
        R   = mlp(R' + R1 + R2)

    F is the image feature, T the words, and Q the learned region queries. Region filters are computed
    from `R'`, minimap and presence from `R`.

    Not stated in the paper, and decided here: keys contain sine positions, as in Mask2Former, because
    otherwise a region can hardly find its cell of the minimap; words of padding are masked; filters,
    fusion and presence are MLPs of two layers; the weight of a region in equation 1 is its probability.
    """

    def __init__(
        self,
        config: RelationshipConfig,
        *,
        text_width: int,
        mask_width: int,
        dtype: Any,
        rngs: nnx.Rngs,
    ):
        """Creates the parameters.

        Args:
            config: sizes and choices.
            text_width: channels of the words.
            mask_width: channels of the mask features of the pixel decoder.
            dtype: compute type.
            rngs: random streams for the parameters.
        """
        width = config.width
        self.words = Linear(text_width, width, dtype=dtype, rngs=rngs)
        linear = lambda outputs=width: Linear(width, outputs, dtype=dtype, rngs=rngs)  # noqa: E731
        pools = config.regions == "pool"
        shape = (config.side**2, width)
        self.queries = (
            None if pools else nnx.Param(gaussian(width**-0.5)(rngs.params(), shape, jnp.float32))
        )
        self.image_key = None if pools else linear()
        self.image_value = linear()
        self.filter = Perceptron(
            (width, width, mask_width), dtype=dtype, rngs=rngs, zero=config.zero_filters
        )
        self.region_attention = (
            MultiHeadAttention(
                width, config.heads, dtype=dtype, rngs=rngs, kernel_init=packed_xavier_uniform
            )
            if config.region_attention
            else None
        )
        self.language_query = linear() if config.language_attention else None
        self.language_key = linear() if config.language_attention else None
        self.fusion = Perceptron((width, width, width), dtype=dtype, rngs=rngs)
        self.minimap = linear(2)
        self.presence = Perceptron((width, width, 2), dtype=dtype, rngs=rngs)
        self.config = config

    def __call__(self, pixels: PixelFeatures, words: jax.Array, valid: jax.Array) -> Regions:
        """Computes the regions of G pairs of image and expression.

        Args:
            pixels: output of the pixel decoder for the G pairs, with levels of `width` channels.
            words: `[G, L, text_width]`.
            valid: bool `[G, L]`, false for padding.
        """
        collected = self._collect(pixels.levels[-1 - self.config.level])
        features = self.fusion(self._relate(collected, self.words(words), valid))
        minimap = difference(self.minimap(features))
        present = -difference(self.presence(jnp.mean(features, 1)))
        return Regions(self.filter(collected), jax.nn.sigmoid(minimap), minimap, present)

    def _collect(self, image: jax.Array) -> jax.Array:
        """RIA: the region features `R'`, `[G, R, width]`."""
        rows, height, width, channels = image.shape
        flat = image.reshape(rows, height * width, channels)
        if self.image_key is None or self.queries is None:
            cells = _cells(height, width, self.config.side)
            return recomputed_gelu(self.image_value(jnp.einsum("rs,gsc->grc", cells, flat)))
        positions = jnp.asarray(sine_positions_relative(height, width, channels))
        keys = recomputed_gelu(self.image_key(flat + positions.astype(flat.dtype)))
        queries = jnp.broadcast_to(self.queries[...], (rows, *self.queries[...].shape))
        return _attend(queries.astype(keys.dtype), keys, recomputed_gelu(self.image_value(flat)))

    def _relate(self, regions: jax.Array, words: jax.Array, valid: jax.Array) -> jax.Array:
        """RLA before its MLP: `R' + R1 + R2`, `[G, R, width]`."""
        total = regions
        if self.region_attention is not None:
            total = total + self.region_attention(regions, regions, regions)
        if self.language_query is None or self.language_key is None:
            return total * _mean_of_words(words, valid)[:, None]
        queries = recomputed_gelu(self.language_query(regions))
        keys = recomputed_gelu(self.language_key(words))
        return total + _attend(queries, keys, words, valid)


class Perceptron(nnx.Module):
    """A multilayer perceptron: linear layers with ReLUs between them."""

    def __init__(self, widths: Sequence[int], *, dtype: Any, rngs: nnx.Rngs, zero: bool = False):
        """Creates the layers.

        Args:
            widths: channels of the input, of each hidden layer and of the output.
            dtype: compute type.
            rngs: random streams for the parameters.
            zero: initialise the last kernel with zeros, so that the output is zero at first.
        """
        *hidden, last = itertools.pairwise(widths)
        start = jax.nn.initializers.zeros if zero else fan_in_uniform
        self.layers = nnx.List(
            [
                *(Linear(*pair, dtype=dtype, rngs=rngs) for pair in hidden),
                Linear(*last, dtype=dtype, rngs=rngs, kernel_init=start),
            ]
        )

    def __call__(self, x: jax.Array) -> jax.Array:
        """`[..., widths[0]]` to `[..., widths[-1]]`."""
        *hidden, last = self.layers
        for layer in hidden:
            x = jax.nn.relu(layer(x))
        return last(x)


def difference(two_classes: jax.Array) -> jax.Array:
    """The logit of the second of two classes: `[..., 2]` to f32 `[...]`.

    ReLA predicts two scores each for masks, minimap and "no target". Their cross-entropy depends only
    on the difference of the two scores.

    Its decisions are the argmax of the two sigmoids in f32 (`refer_inference` in `GRES.py`, then its
    evaluator). That is the sign of the difference as long as the sigmoids differ. Above 16.7 both are 1
    in f32, and argmax takes the first class (background, or "there is a target"); at 10, scores that
    differ by less than 0.001 can be equal, too. Here the difference decides in these cases as well.
    """
    scores = two_classes.astype(jnp.float32)
    return scores[..., 1] - scores[..., 0]


def _attend(
    query: jax.Array, key: jax.Array, value: jax.Array, valid: jax.Array | None = None
) -> jax.Array:
    """`softmax(Q K^T) V` with one head; equations 2 and 3 have no `1 / sqrt(C)`, so it is undone."""
    scaled = query * math.sqrt(query.shape[-1])
    one_head = (x[:, :, None] for x in (scaled, key, value))
    return attention(*one_head, key_valid=valid)[:, :, 0]


def _mean_of_words(words: jax.Array, valid: jax.Array) -> jax.Array:
    """The mean of the valid words: `[G, L, C]` to `[G, C]`."""
    weights = valid.astype(words.dtype)[..., None]
    return (words * weights).sum(1) / jnp.maximum(weights.sum(1), 1)


def _cells(height: int, width: int, side: int) -> np.ndarray:
    """The matrix that averages each of `side * side` cells, f32 `[side * side, height * width]`."""

    def along(size: int) -> np.ndarray:
        cells = np.zeros((side, size), np.float32)
        for cell in range(side):
            start, stop = cell * size // side, -(-(cell + 1) * size // side)
            cells[cell, start:stop] = 1.0 / (stop - start)
        return cells

    return np.kron(along(height), along(width))
