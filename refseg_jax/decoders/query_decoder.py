"""The language path of UniLSeg's public code: DETR's decoder, whose one query is the sentence."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from refseg_jax.decoders.post_norm import PostNormLayer
from refseg_jax.layers.batch_norm import NormKind
from refseg_jax.layers.conv_norm import ConvNormRelu
from refseg_jax.layers.dropout import split_key
from refseg_jax.layers.linear import Linear
from refseg_jax.layers.norm import LayerNorm
from refseg_jax.layers.positions import sine_positions_centred
from refseg_jax.layers.transformer import run_block


@dataclasses.dataclass(frozen=True)
class QueryDecoderConfig:
    """Sizes; the defaults are those of UniLSeg's public code.

    Attributes:
        width: channels of the query.
        layers, heads, hidden: of the decoder.
        dropout: rate in the layers.
        norm: of the two projections, a kind of `make_norm`.
        remat: recompute activations inside the layers in the backward pass instead of storing them.
    """

    width: int = 256
    layers: int = 6
    heads: int = 8
    hidden: int = 2048
    dropout: float = 0.1
    norm: NormKind = "batch"
    remat: bool = False


class QueryDecoder(nnx.Module):
    """Layers of DETR's decoder, in which one query reads a map.

        memory = relu(norm(conv3x3(map))),  place = relu(norm(linear(sentence)))
        x = 0;  x = layer(x, place, memory, positions), for each layer
        queries = norm(x) after each layer

    The sentence is the *position* of the query, as in the public code: the query itself starts at zero.
    Self-attention of a single query is a linear map of it; it is kept, because the public weights have
    it. Parameter paths are `visual`, `text`, `layers.<number>` and `norm`.
    """

    def __init__(
        self,
        config: QueryDecoderConfig,
        *,
        map_width: int,
        sentence_width: int,
        dtype: Any,
        rngs: nnx.Rngs,
    ):
        """Creates the layers.

        Args:
            config: sizes.
            map_width: channels of the map.
            sentence_width: channels of the sentence.
            dtype: compute type.
            rngs: random streams for the parameters.
        """
        width = config.width
        unit = {"norm": config.norm, "dtype": dtype, "rngs": rngs}
        self.visual = ConvNormRelu(map_width, width, size=3, **unit)
        self.text = ConvNormRelu(sentence_width, width, size=1, **unit)
        self.layers = nnx.List(
            [
                PostNormLayer(
                    width,
                    config.heads,
                    config.hidden,
                    dropout=config.dropout,
                    dtype=dtype,
                    rngs=rngs,
                )
                for _ in range(config.layers)
            ]
        )
        self.norm = LayerNorm(width, dtype=dtype)
        self.config = config

    def __call__(
        self,
        seen: jax.Array,
        sentence: jax.Array,
        valid: jax.Array | None = None,
        *,
        training: bool = False,
        key: jax.Array | None = None,
    ) -> jax.Array:
        """Computes the queries of G pairs of image and expression.

        Args:
            seen: the map, `[G, h, w, map_width]`.
            sentence: `[G, sentence_width]`.
            valid: bool `[G]`, the pairs that count for batch statistics; all do if absent.
            training: whether batch statistics are those of this call.
            key: random key for dropout; `None` means inference.

        Returns:
            The query after each layer, `[layers, G, width]`.
        """
        memory = self.visual(seen, valid, training=training)
        place = self.text(sentence, valid, training=training)[:, None]
        rows, height, width, channels = memory.shape
        positions = sine_positions_centred(height, width, channels, dtype=memory.dtype)
        tokens = memory.reshape(rows, height * width, channels)
        x, queries = jnp.zeros_like(place), []
        for layer, own in zip(self.layers, split_key(key, len(self.layers)), strict=True):
            x = run_block(
                layer,
                x,
                place,
                tokens,
                positions,
                None,
                own,
                remat=self.config.remat,
            )
            queries.append(self.norm(x)[:, 0])
        return jnp.stack(queries)


class SentenceQuery(nnx.Module):
    """A linear map of the sentence in place of a `QueryDecoder`, for the ablation of the language path.

    It has neither a norm nor a ReLU: mask features are not negative, so logits have both signs only if
    the query has.
    """

    def __init__(self, width: int, *, sentence_width: int, dtype: Any, rngs: nnx.Rngs):
        self.linear = Linear(sentence_width, width, dtype=dtype, rngs=rngs)

    def __call__(
        self,
        seen: jax.Array,
        sentence: jax.Array,
        valid: jax.Array | None = None,
        *,
        training: bool = False,
        key: jax.Array | None = None,
    ) -> jax.Array:
        """As in `QueryDecoder`, for one layer; only the sentence `[G, sentence_width]` is read."""
        del seen, valid, training, key
        return self.linear(sentence)[None]
