"""The two paths of the UniLSeg paper (Liu et al., CVPR 2024, section 3.1).

The public code has other paths of the same names.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from refseg_jax.decoders.feature_pyramid import FeaturePyramid
from refseg_jax.decoders.multi_modal import MultiModalLayer, SymmetricLayer
from refseg_jax.decoders.shrunk_pyramid import VisionPath
from refseg_jax.layers.batch_norm import NormKind
from refseg_jax.layers.dropout import split_key
from refseg_jax.layers.linear import Linear
from refseg_jax.layers.positions import sine_positions_relative
from refseg_jax.layers.rows import repeat_rows
from refseg_jax.layers.transformer import run_block


@dataclasses.dataclass(frozen=True)
class PathConfig:
    """Sizes of a path; none of them is stated in the paper, the defaults are those of the public code.

    Attributes:
        width: channels of the tokens; divisible by 4, for their positions.
        mask_width: channels of the mask features and of the queries.
        heads: heads of all attentions.
        hidden: width inside the MLPs.
        layers: number of layers; in the vision path, of each map, and 0 leaves a plain pyramid.
        dropout: rate behind each attention and MLP.
        norm: of the pyramid, a kind of `make_norm`.
        remat: recompute activations inside the layers in the backward pass instead of storing them.
    """

    width: int = 512
    mask_width: int = 256
    heads: int = 8
    hidden: int = 2048
    layers: int = 1
    dropout: float = 0.1
    norm: NormKind = "batch"
    remat: bool = False

    def __post_init__(self) -> None:
        """Checks the fields.

        Raises:
            ValueError: the sizes do not fit together.
        """
        for field in ("width", "mask_width", "heads", "hidden"):
            if getattr(self, field) < 1:
                raise ValueError(f"{field}={getattr(self, field)} is less than 1")
        if self.width % self.heads:
            raise ValueError(f"{self.heads} heads do not divide the width {self.width}")
        if self.width % 4:
            raise ValueError(f"width={self.width} is not divisible by 4")


class MultiModalPyramid(nnx.Module):
    """The vision path: the multi-modal transformer on each activated map, and a pyramid over all maps.

    Not stated in the paper: the linear maps of image and words to one width; the number of layers;
    whether maps have layers of their own (they do, as in the public code); and the way into the pyramid
    of the finest map, whose scale has neither Pre-Fusion nor transformer (a linear map). Self-attention
    is over all cells; the public code shrinks the maps before it.
    """

    def __init__(
        self,
        config: PathConfig,
        widths: Sequence[int],
        word_width: int,
        *,
        dtype: Any,
        rngs: nnx.Rngs,
    ):
        """Creates the layers.

        Args:
            config: sizes.
            widths: channels of the maps, the finest first; at least two.
            word_width: channels of the words.
            dtype: compute type.
            rngs: random streams for the parameters.
        """
        self.words = (
            Linear(word_width, config.width, dtype=dtype, rngs=rngs) if config.layers else None
        )
        self.maps = nnx.List([Linear(w, config.width, dtype=dtype, rngs=rngs) for w in widths])

        def layer() -> MultiModalLayer:
            return MultiModalLayer(
                config.width,
                config.heads,
                config.hidden,
                dropout=config.dropout,
                dtype=dtype,
                rngs=rngs,
            )

        self.levels = nnx.List(
            [nnx.List([layer() for _ in range(config.layers)]) for _ in widths[1:]]
        )
        self.pyramid = FeaturePyramid(
            len(widths), config.width, config.mask_width, norm=config.norm, dtype=dtype, rngs=rngs
        )
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
        """Aligns the maps with the words.

        Args:
            maps: `[I, h, w, C]` each, the finest first, with a row for each image, or (I = G) for each
                pair.
            words: `[G, L, word_width]`.
            words_valid: bool `[G, L]`, false for padding.
            valid: bool `[G]`, the pairs that count for batch statistics; all do if absent.
            training: whether batch statistics are those of this call.
            key: random key for dropout; `None` means inference.

        Returns:
            The mask features, and `maps` as they came, which the language path reads.
        """
        pairs = words.shape[0]
        finest, *others = (linear(x) for linear, x in zip(self.maps, maps, strict=True))
        others = [repeat_rows(x, pairs // x.shape[0]) for x in others]
        if self.words is not None:
            told = self.words(words)
            keys = split_key(key, len(others))
            others = [
                self._align(layers, x, told, words_valid, own)
                for layers, x, own in zip(self.levels, others, keys, strict=True)
            ]
        masks = self.pyramid([finest, *others], valid, training=training)
        return VisionPath(masks, tuple(maps))

    def _align(
        self,
        layers: nnx.List,
        image: jax.Array,
        words: jax.Array,
        valid: jax.Array,
        key: jax.Array | None,
    ) -> jax.Array:
        """The multi-modal transformer on one map, `[G, h, w, width]` to the same shape."""
        rows, height, width, channels = image.shape
        positions = _positions(height, width, channels, image.dtype)
        x = image.reshape(rows, height * width, channels)
        for layer, own in zip(layers, split_key(key, len(layers)), strict=True):
            x = run_block(layer, x, positions, words, valid, own, remat=self.config.remat)
        return x.reshape(image.shape)


class SymmetricTransformer(nnx.Module):
    """The language path: the sentence attends to the image, then to the prompt that it was.

    Not stated in the paper: the number of layers; the scales to which the sentence attends (all
    activated ones); and what the "initial language prompt" consists of (the sentence and its words). A
    linear map takes the result of each layer to the channels of the mask features. It starts at zero,
    so that the first masks are undecided.
    """

    def __init__(
        self,
        config: PathConfig,
        widths: Sequence[int],
        word_width: int,
        sentence_width: int,
        *,
        dtype: Any,
        rngs: nnx.Rngs,
    ):
        """Creates the layers.

        Args:
            config: sizes.
            widths: channels of the maps, the finest first; at least two.
            word_width: channels of the words.
            sentence_width: channels of the sentence.
            dtype: compute type.
            rngs: random streams for the parameters.
        """
        self.sentence = Linear(sentence_width, config.width, dtype=dtype, rngs=rngs)
        self.words = Linear(word_width, config.width, dtype=dtype, rngs=rngs)
        self.maps = nnx.List([Linear(w, config.width, dtype=dtype, rngs=rngs) for w in widths[1:]])
        self.layers = nnx.List(
            [
                SymmetricLayer(
                    config.width,
                    config.heads,
                    config.hidden,
                    dropout=config.dropout,
                    dtype=dtype,
                    rngs=rngs,
                )
                for _ in range(config.layers)
            ]
        )
        self.query = Linear(
            config.width,
            config.mask_width,
            dtype=dtype,
            rngs=rngs,
            kernel_init=jax.nn.initializers.zeros,
        )
        self.config = config

    def __call__(
        self,
        maps: Sequence[jax.Array],
        words: jax.Array,
        words_valid: jax.Array,
        sentence: jax.Array,
        *,
        key: jax.Array | None = None,
    ) -> jax.Array:
        """Makes the prompts aware of the image.

        Args:
            maps: `[I, h, w, C]` each, the finest first: a row for each image, or (I = G) for each pair.
            words: `[G, L, word_width]`.
            words_valid: bool `[G, L]`, false for padding.
            sentence: `[G, sentence_width]`.
            key: random key for dropout; `None` means inference.

        Returns:
            `[layers, G, mask_width]`, the queries after each layer.
        """
        image, positions = self._cells(maps[1:])
        x = self.sentence(sentence)[:, None]
        prompt = jnp.concatenate([x, self.words(words)], 1)
        valid = jnp.concatenate([jnp.ones((x.shape[0], 1), bool), words_valid], 1)
        queries = []
        for layer, own in zip(self.layers, split_key(key, len(self.layers)), strict=True):
            x = run_block(layer, x, image, positions, prompt, valid, own, remat=self.config.remat)
            queries.append(self.query(x[:, 0]))
        return jnp.stack(queries)

    def _cells(self, maps: Sequence[jax.Array]) -> tuple[jax.Array, jax.Array]:
        """The cells of all maps `[I, S, width]`, and their positions `[S, width]`."""
        projected = [linear(x) for linear, x in zip(self.maps, maps, strict=True)]
        cells = [x.reshape(x.shape[0], -1, x.shape[-1]) for x in projected]
        positions = [_positions(x.shape[1], x.shape[2], x.shape[3], x.dtype) for x in projected]
        return jnp.concatenate(cells, 1), jnp.concatenate(positions)


def _positions(height: int, width: int, channels: int, dtype: Any) -> jax.Array:
    return jnp.asarray(sine_positions_relative(height, width, channels)).astype(dtype)
