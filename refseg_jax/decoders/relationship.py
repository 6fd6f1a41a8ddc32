"""ReLA's relationship block as the paper has it (Liu, Ding and Jiang, CVPR 2023, section 4.2).

The public code does something else under the same name: see `decoders.masked_relationship`.
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
from refseg_jax.layers.transformer import exact_gelu

#: How region features are collected: by attention (equation 2), or as the mean of each of the map's
#: `side * side` cells (Table 2, "hard split, decoder").
RegionSource: TypeAlias = Literal["attention", "pool"]


class Regions(NamedTuple):
    """What a relationship block says of `R = side * side` regions, G pairs of image and expression.

    The mask of the targets is `sum over n of weights[n] * mask[n]`, with `mask[n]` the product of
    region n's filter and the pixel decoder's mask features (equation 1).

    Attributes:
        filters: `[G, R, C]`.
        weights: f32 `[G, R]`.
        minimap_logits: f32 `[G, R]`: does the region hold targets.
        present_logits: f32 `[G]`: is there any target at all.
    """

    filters: jax.Array
    weights: jax.Array
    minimap_logits: jax.Array
    present_logits: jax.Array

    def target_filter(self) -> jax.Array:
        """The filter of the targets' mask, f32 `[G, C]`: equation 1, summed before the product."""
        return jnp.einsum("gr,grc->gc", self.weights, self.filters.astype(jnp.float32))


@dataclasses.dataclass(frozen=True)
class RelationshipConfig:
    """The block's choices; those that the paper compares are fields.

    Attributes:
        width: C, of everything inside.
        side: P, regions along a side (Table 4; 10).
        heads: of the attention of regions to regions; not stated in the paper, Mask2Former's 8.
        level: which of the pixel decoder's mixed maps the regions are collected from, counted from
            the finest (0: stride 8); not stated in the paper. Stride 16 tells regions apart and
            costs a quarter.
        regions: see `RegionSource`.
        region_attention: regions look at regions (Table 3).
        language_attention: regions look at words (Table 3); without it they are multiplied by the
            mean of the words.
        zero_filters: region filters start as zeros, see `ReLAConfig`.
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
        """Checks what would else fail late.

        Raises:
            ValueError: sizes that do not fit together, or an unknown name.
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

    Region filters come from `R'`, probabilities and presence from `R`. Chosen where the paper is
    silent: `F W_k` looks at sine positions too (as Mask2Former's keys do), without which a region can
    hardly find its cell of the minimap; words without padding; filters, fusion and presence are MLPs
    of two layers; a region's weight in equation 1 is its probability.
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
        """`text_width`: channels of the words; `mask_width`: of the pixel decoder's mask features."""
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
        """Relates regions to each other and to words.

        Args:
            pixels: of the pixel decoder, with levels of `width` channels.
            words: `[G, L, text_width]`.
            valid: bool `[G, L]`, false for padding.
        """
        collected = self._collect(pixels.levels[-1 - self.config.level])
        features = self.fusion(self._relate(collected, self.words(words), valid))
        minimap = difference(self.minimap(features))
        present = -difference(self.presence(jnp.mean(features, 1)))
        return Regions(self.filter(collected), jax.nn.sigmoid(minimap), minimap, present)

    def _collect(self, image: jax.Array) -> jax.Array:
        """RIA: `[G, R, width]`."""
        rows, height, width, channels = image.shape
        flat = image.reshape(rows, height * width, channels)
        if self.image_key is None or self.queries is None:
            cells = _cells(height, width, self.config.side)
            return exact_gelu(self.image_value(jnp.einsum("rs,gsc->grc", cells, flat)))
        positions = jnp.asarray(sine_positions_relative(height, width, channels))
        keys = exact_gelu(self.image_key(flat + positions.astype(flat.dtype)))
        queries = jnp.broadcast_to(self.queries[...], (rows, *self.queries[...].shape))
        return _attend(queries.astype(keys.dtype), keys, exact_gelu(self.image_value(flat)))

    def _relate(self, regions: jax.Array, words: jax.Array, valid: jax.Array) -> jax.Array:
        """RLA before its MLP: `R' + R1 + R2`."""
        total = regions
        if self.region_attention is not None:
            total = total + self.region_attention(regions, regions, regions)
        if self.language_query is None or self.language_key is None:
            return total * _mean_of_words(words, valid)[:, None]
        queries = exact_gelu(self.language_query(regions))
        keys = exact_gelu(self.language_key(words))
        return total + _attend(queries, keys, words, valid)


class Perceptron(nnx.Module):
    """Linear layers with ReLUs between them."""

    def __init__(self, widths: Sequence[int], *, dtype: Any, rngs: nnx.Rngs, zero: bool = False):
        """`widths`: of the input, of each hidden layer, of the output; `zero`: it starts with 0."""
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

    ReLA's masks, minimaps and "no target" are of two classes each. Their cross entropy and their
    argmax depend on the difference of the two scores alone.
    """
    scores = two_classes.astype(jnp.float32)
    return scores[..., 1] - scores[..., 0]


def _attend(
    query: jax.Array, key: jax.Array, value: jax.Array, valid: jax.Array | None = None
) -> jax.Array:
    """`softmax(Q K^T) V` of one head; the equations have no `1 / sqrt(C)`, which is undone here."""
    scaled = query * math.sqrt(query.shape[-1])
    one_head = (x[:, :, None] for x in (scaled, key, value))
    return attention(*one_head, key_valid=valid)[:, :, 0]


def _mean_of_words(words: jax.Array, valid: jax.Array) -> jax.Array:
    """`[G, L, C]` to `[G, C]`, without padding."""
    weights = valid.astype(words.dtype)[..., None]
    return (words * weights).sum(1) / jnp.maximum(weights.sum(1), 1)


def _cells(height: int, width: int, side: int) -> np.ndarray:
    """The mean of each cell of a map as a matrix, f32 `[side * side, height * width]`."""

    def along(size: int) -> np.ndarray:
        cells = np.zeros((side, size), np.float32)
        for cell in range(side):
            start, stop = cell * size // side, -(-(cell + 1) * size // side)
            cells[cell, start:stop] = 1.0 / (stop - start)
        return cells

    return np.kron(along(height), along(width))
