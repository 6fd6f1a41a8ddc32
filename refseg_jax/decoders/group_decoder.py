"""GRSer's decoder (Wu et al. 2023, sections 3.1 to 3.3): features of a group to masks and distances."""

import dataclasses
import itertools
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple, TypeAlias, get_args

import jax
import jax.numpy as jnp
from flax import nnx

from refseg_jax.decoders.feature_pyramid import FeaturePyramid
from refseg_jax.decoders.heatmap_hierarchy import (
    Channels,
    Rank,
    check_rank,
    expert_order,
    ranks_of_channels,
    rearrange,
    total_ranks,
)
from refseg_jax.decoders.triphasic_query import TriphasicQuery, distance, unit, vision_heatmaps
from refseg_jax.layers.conv_norm import ConvNormRelu
from refseg_jax.layers.linear import Linear
from refseg_jax.naming import unknown

#: How a map of features becomes a vector, see `GroupDecoderConfig.pooling`.
Pooling: TypeAlias = Literal["mean", "mask", "max"]

#: Which vectors are compared, see `GroupDecoderConfig.distance`.
Distance: TypeAlias = Literal["unit", "raw"]


@dataclasses.dataclass(frozen=True)
class GroupDecoderConfig:
    """Sizes and choices. None of them but `width` and `group_size` is stated in the paper.

    Attributes:
        width: C_v, channels of the visual features (512, section 5.2).
        group_size: channels of the mask predictor for ordered heatmaps (N = 8, section 5.2). A row may
            have fewer or more images, see `channels`.
        predictor_width, predictor_layers: of the 3x3 convolutions of the mask predictor. Each level of
            LAVT's decoder, which the encoder descends from, has two of them.
        language_heatmap: whether the mask predictor sees the language heatmap M^l beside the ordered
            vision heatmaps. Equation 4 orders M^v alone, but Figure 4 shows both, and features without
            M^l would have two phases, not three.
        rank: order of the experts in training, see `total_ranks`.
        inference_rank: the same at inference; Table 4 crosses the two.
        channels: which experts the channels show, see `ranks_of_channels`.
        pooling: how z_n, a map, becomes a vector that can be compared with L: one or several of `mean`
            over the cells, `mask`: mean weighted by the predicted mask (or by 1 - mask, whichever role
            it plays), `max`. One after the other. A small target hardly changes a plain mean.
        distance: the vectors whose Euclidean distance is taken, for ranks and the triplet loss alike:
            `unit`: vectors of length 1, whose distance lies in 0..2 at any width, so that a margin of 1
            is half of what can be reached. `raw`: as they are; the margin then depends on the scale of
            the initial weights.
    """

    width: int = 512
    group_size: int = 8
    predictor_width: int = 512
    predictor_layers: int = 2
    language_heatmap: bool = True
    rank: Rank = "both"
    inference_rank: Rank = "both"
    channels: Channels = "spread"
    pooling: tuple[str, ...] = ("mask", "max")
    distance: Distance = "unit"

    def __post_init__(self) -> None:
        """Checks the fields.

        Raises:
            ValueError: a name is unknown, or a size is less than 1.
        """
        check_rank(self.rank)
        check_rank(self.inference_rank)
        named = (
            ("channels", (self.channels,), get_args(Channels)),
            ("distance", (self.distance,), get_args(Distance)),
            ("pooling", self.pooling, get_args(Pooling)),
        )
        for field, values, known in named:
            for value in values:
                if value not in known:
                    raise ValueError(unknown(field, value, known))
        if not self.pooling:
            raise ValueError("pooling=(): name at least one of mean, mask, max")
        for size in ("width", "group_size", "predictor_width", "predictor_layers"):
            if getattr(self, size) < 1:
                raise ValueError(f"{size}={getattr(self, size)} is less than 1")


class GroupAnswer(NamedTuple):
    """What a group of images answers to an expression (or to its anti-expression).

    Attributes:
        mask_logits: f32 `[B, N, K, h, w]`.
        embedding: z_n in the space of L', f32 `[B, N, K, width]`.
        language_heatmap: M^l, f32 `[B, N, K, h, w]` in [-1, 1].
        vision_heatmaps: M^v in the order of the predictor's channels, f32 `[B, N, K, h, w, G]`.
        shown: i32 `[B, G, K]`, the image whose heatmap each channel has.
        order: i32 `[B, I, K]`, the images from the most to the least trusted expert.
    """

    mask_logits: jax.Array
    embedding: jax.Array
    language_heatmap: jax.Array
    vision_heatmaps: jax.Array
    shown: jax.Array
    order: jax.Array


class VisualFeatures(nnx.Module):
    """V: the maps of all stages joined from the coarsest to the finest.

        V = out(pyramid(projections(maps)))

    Not stated in the paper, which follows LAVT "to perform visual encoding". LAVT's decoder concatenates
    instead of adding, which costs as much as the backbone. The last map is linear, because cosines of
    features that a ReLU has made positive are never negative. Norms are GroupNorm: batch statistics
    would mix the images of a group with the mirror branch.
    """

    def __init__(self, widths: Sequence[int], width: int, *, dtype: Any, rngs: nnx.Rngs):
        self.projections = nnx.List([Linear(w, width, dtype=dtype, rngs=rngs) for w in widths])
        self.pyramid = FeaturePyramid(
            len(widths), width, width, norm="group", dtype=dtype, rngs=rngs
        )
        self.out = Linear(width, width, dtype=dtype, rngs=rngs)

    def __call__(self, maps: Sequence[jax.Array]) -> jax.Array:
        """Maps `[G, h, w, C]`, the finest first, to `[G, h, w, width]` at the finest stride."""
        own = [project(x) for project, x in zip(self.projections, maps, strict=True)]
        return self.out(self.pyramid(own))


class MaskPredictor(nnx.Module):
    """Convolutions from the triphasic features to one logit for each cell."""

    def __init__(self, inputs: int, width: int, layers: int, *, dtype: Any, rngs: nnx.Rngs):
        widths = (inputs, *[width] * layers)
        self.layers = nnx.List(
            [
                ConvNormRelu(i, o, size=3, norm="group", dtype=dtype, rngs=rngs)
                for i, o in itertools.pairwise(widths)
            ]
        )
        self.out = Linear(width, 1, dtype=dtype, rngs=rngs)

    def __call__(self, triphasic: jax.Array) -> jax.Array:
        """`[G, h, w, inputs]` to logits f32 `[G, h, w]`."""
        x = triphasic
        for layer in self.layers:
            x = layer(x, None, training=False)
        return self.out(x).astype(jnp.float32)[..., 0]


class GroupDecoder(nnx.Module):
    """Triphasic queries, ordered heatmaps, mask predictor, and the embedding of z_n.

        heatmap, prototypes = query(V, L')                          equations 1 and 2
        order = experts by distance(prototypes, L') and distance(prototypes, L'_anti)
        z = [V; heatmap; vision heatmaps in order]                  equations 3 and 4
        logits = predictor(z)
        embedding = embed(pooled z)

    One space holds everything that is compared: that of L' = w_l(L), which has the width of the
    prototypes. The paper compares prototypes and z_n with L, of another width.
    """

    def __init__(
        self,
        config: GroupDecoderConfig,
        widths: Sequence[int],
        text_width: int,
        *,
        dtype: Any,
        rngs: nnx.Rngs,
    ):
        """Creates the modules.

        Args:
            config: sizes and choices.
            widths: channels of the maps of the backbone, the finest first.
            text_width: C_l, channels of L.
            dtype: compute type; heatmaps, distances and logits are f32.
            rngs: random streams for the parameters.
        """
        triphasic = config.width + config.group_size + config.language_heatmap
        self.visual = VisualFeatures(widths, config.width, dtype=dtype, rngs=rngs)
        self.query = TriphasicQuery(text_width, config.width, dtype=dtype, rngs=rngs)
        self.predictor = MaskPredictor(
            triphasic,
            config.predictor_width,
            config.predictor_layers,
            dtype=dtype,
            rngs=rngs,
        )
        pooled = triphasic * len(config.pooling)
        self.embed = Linear(pooled, config.width, dtype=dtype, rngs=rngs)
        self.config = config
        self.dtype = dtype

    def look(self, maps: Sequence[jax.Array], pairs: tuple[int, int, int]) -> jax.Array:
        """V of all pairs.

        Args:
            maps: maps of the backbone, `[B * N * K, h, w, C]` each, the finest first.
            pairs: B, N and K.

        Returns:
            `[B, N, K, h, w, width]`.
        """
        visual = self.visual(maps)
        return visual.reshape(*pairs, *visual.shape[1:])

    def __call__(
        self,
        visual: jax.Array,
        language: jax.Array,
        anti: jax.Array,
        valid: jax.Array,
        *,
        training: bool = False,
        key: jax.Array | None = None,
    ) -> GroupAnswer:
        """Answers for every image of every row; with L and L_anti swapped, this is the mirror branch.

        Args:
            visual: V, `[B, N, K, h, w, width]`.
            language: the expression that asks, L' or (mirrored) L'_anti, f32 `[B, K, width]`.
            anti: the other one of the two. The roles decide the order, too: the mirror branch ranks
                experts by small distances to L'_anti and large ones to L'.
            valid: bool `[B, N, K]`, false for images that must not act as experts.
            training: whether `config.rank` applies, else `config.inference_rank`.
            key: random key for the rank `random` in training.
        """
        config = self.config
        height, width = visual.shape[3:5]
        flat = visual.reshape(*visual.shape[:3], height * width, visual.shape[-1])
        heatmap, prototypes = self.query(flat, language)
        order = self._order(prototypes, language, anti, valid, training, key)
        places = ranks_of_channels(valid, config.group_size, config.channels)
        ordered = vision_heatmaps(flat, rearrange(prototypes, order, places))
        seen = (heatmap[..., None], ordered) if config.language_heatmap else (ordered,)
        triphasic = jnp.concatenate((flat, *(x.astype(self.dtype) for x in seen)), -1)
        logits = self._masks(triphasic, height, width)
        cells = (*visual.shape[:3], height, width)
        return GroupAnswer(
            logits.reshape(cells),
            self.embed(self._pool(triphasic, logits)).astype(jnp.float32),
            heatmap.reshape(cells),
            ordered.reshape(*cells, config.group_size),
            jnp.take_along_axis(order, places, 1),
            order,
        )

    def distance(self, a: jax.Array, b: jax.Array) -> jax.Array:
        """Distances of vectors `[..., width]`, f32 `[...]`, see `GroupDecoderConfig.distance`."""
        if self.config.distance == "unit":
            a, b = unit(a), unit(b)
        return distance(a, b)

    def _order(
        self,
        prototypes: jax.Array,
        language: jax.Array,
        anti: jax.Array,
        valid: jax.Array,
        training: bool,
        key: jax.Array | None,
    ) -> jax.Array:
        """The experts of each row and expression in order, i32 `[B, I, K]`; without gradients."""
        rank = self.config.rank if training else self.config.inference_rank
        positive, negative = (self.distance(prototypes, x[:, None]) for x in (language, anti))
        total = total_ranks(positive, negative, valid, rank, key if training else None)
        return expert_order(jax.lax.stop_gradient(total))

    def _masks(self, triphasic: jax.Array, height: int, width: int) -> jax.Array:
        """`[B, N, K, P, C]` to logits f32 `[B, N, K, P]`."""
        maps = triphasic.reshape(-1, height, width, triphasic.shape[-1])
        return self.predictor(maps).reshape(triphasic.shape[:-1])

    def _pool(self, triphasic: jax.Array, logits: jax.Array) -> jax.Array:
        """z_n as vectors, f32 `[B, N, K, C]`; the masks get no gradient from here."""
        wide = triphasic.astype(jnp.float32)
        pooled = []
        for kind in self.config.pooling:
            if kind == "mean":
                pooled.append(wide.mean(-2))
            elif kind == "max":
                pooled.append(wide.max(-2))
            else:
                share = jax.nn.softmax(jax.nn.log_sigmoid(jax.lax.stop_gradient(logits)), -1)
                pooled.append(jnp.einsum("bnkp,bnkpc->bnkc", share, wide))
        return jnp.concatenate(pooled, -1)
