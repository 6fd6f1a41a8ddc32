"""GRSer (Wu et al., "Advancing Referring Expression Segmentation Beyond Single Image", ICCV 2023).

The paper's code was never released. What it leaves open is a field of `GRSerConfig` or
`GroupDecoderConfig`, whose docstrings give the reasons for the defaults.
"""

from collections.abc import Mapping
from typing import ClassVar, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from refseg_jax.batch import Array, Batch, SegOutput
from refseg_jax.decoders.group_decoder import GroupAnswer, GroupDecoder
from refseg_jax.encoders.bert import Bert
from refseg_jax.encoders.language_swin import LanguageSwin
from refseg_jax.images.resize import resize_bilinear
from refseg_jax.layers.rows import over_images
from refseg_jax.models.grser_config import GRSerConfig


class ImageFeatures(NamedTuple):
    """Output of `GRSer.encode_image`: the part that does not depend on the words.

    Attributes:
        maps: `[B, N, h, w, C]` each; one map, the embedded patches, because the gate is live.
    """

    maps: tuple[jax.Array, ...]


class TextFeatures(NamedTuple):
    """Output of `GRSer.encode_text`.

    Attributes:
        words: `[B, K, L, text_width]`.
        valid: bool `[B, K, L]`, false for padding.
        anti_words: `[B, K, L, text_width]`, the words of the anti-expression.
        anti_valid: bool `[B, K, L]`.
    """

    words: jax.Array
    valid: jax.Array
    anti_words: jax.Array
    anti_valid: jax.Array


class GRSer(nnx.Module):
    """LAVT's Swin with BERT, and a decoder that asks the images of a group about each other.

        words, anti_words = text(expression), text(anti-expression)
        L, L_anti = means of both
        V = decoder.look(vision(images, words))
        masks, z = decoder(V, L, L_anti)
        present = d(z, L_anti) - d(z, L) - margin

    The images of a row are a group. Answers follow the images through any permutation of the axis N,
    except for ties between experts (see `refseg_jax.decoders.heatmap_hierarchy`): callers lay the images
    out sorted by name. Parameter paths begin with `vision`, `text` and `decoder`.
    """

    #: Published towers from which the model can start -> prefix of their parameters.
    TOWERS: ClassVar[Mapping[str, str]] = {
        "swin": "vision.swin.",
        "bert": "text.",
        "lavt": "vision.",
    }

    def __init__(self, config: GRSerConfig, *, rngs: nnx.Rngs):
        self.config = config
        self.vision = LanguageSwin(config.image_tower, rngs=rngs)
        self.text = Bert(config.text_tower, rngs=rngs)
        self.decoder = GroupDecoder(
            config.decoder,
            config.image_tower.widths,
            config.text_width,
            dtype=jnp.dtype(config.dtype),
            rngs=rngs,
        )

    @property
    def image_size(self) -> int:
        """Side of the square network input in pixels."""
        return self.config.image_size

    @property
    def mask_stride(self) -> int:
        """Network pixels per mask cell."""
        return self.config.mask_stride

    @property
    def group_size(self) -> int:
        """Images of a row in predictions."""
        return self.config.group_size

    def __call__(self, batch: Batch, *, rngs: nnx.Rngs | None = None) -> SegOutput:
        """Masks of all pairs of image and expression of a batch.

        With `rngs`, this is training: dropout, `config.rank` and the mirror branch.

        Raises:
            ValueError: the batch has no anti-expressions.
        """
        image_features = self.encode_image(batch.image, rngs=rngs)
        text_features = self.encode_text(batch.text, batch.text_valid, batch.anti_text, rngs=rngs)
        return self.decode(image_features, text_features, valid=batch.valid, rngs=rngs)

    def encode_image(self, image: Array, *, rngs: nnx.Rngs | None = None) -> ImageFeatures:
        """u8 `[B, N, image_size, image_size, 3]` to image features.

        Raises:
            ValueError: the images have another size.
        """
        size = self.config.image_size
        if image.shape[2:] != (size, size, 3):
            raise ValueError(f"images are {image.shape[2:]}, the model takes ({size}, {size}, 3)")
        leading = image.shape[:2]
        seen = self.vision.look(jnp.asarray(image).reshape(-1, size, size, 3), _key(rngs))
        return ImageFeatures(tuple(x.reshape(*leading, *x.shape[1:]) for x in seen))

    def encode_text(
        self,
        text: Array,
        text_valid: Array,
        anti_text: Array | None = None,
        *,
        rngs: nnx.Rngs | None = None,
    ) -> TextFeatures:
        """Encodes expressions and anti-expressions.

        Args:
            text: i32 `[B, K, L]`.
            text_valid: bool `[B, K, L]`, true from the first to the last token.
            anti_text: i32 `[B, K, L]`, the expression with one token inserted after the first; it is cut
                to L with its last token kept, so one more position of it is valid than of the text.
            rngs: random streams for dropout.

        Raises:
            ValueError: `anti_text` is missing.
        """
        if anti_text is None:
            raise ValueError(
                "the model needs anti-expressions: set config.data.anti_prefix to token or word"
            )
        valid = jnp.asarray(text_valid)
        anti_valid = valid | jnp.pad(valid, ((0, 0), (0, 0), (1, 0)))[..., :-1]
        # On an axis of their own: ONNX cannot split an axis of any length. Behind that of the rows: a
        # merged axis stays sharded by rows only if they are its outer part.
        both = jnp.stack((jnp.asarray(text), jnp.asarray(anti_text)), 1)
        both_valid = jnp.stack((valid, anti_valid), 1)
        length = both.shape[3]
        words = self.text(both.reshape(-1, length), both_valid.reshape(-1, length), key=_key(rngs))
        words = words.reshape(*both.shape, -1)
        return TextFeatures(words[:, 0], valid, words[:, 1], anti_valid)

    def decode(
        self,
        image_features: ImageFeatures,
        text_features: TextFeatures,
        *,
        valid: Array | None = None,
        rngs: nnx.Rngs | None = None,
    ) -> SegOutput:
        """Decodes each group of N images with each of K expressions.

        Args:
            image_features, text_features: outputs of the encoders.
            valid: bool `[B, N, K]`, the images that act as experts for each expression; all do if
                absent. The others get answers, too.
            rngs: random streams for dropout and for the rank `random`; with them, this is training.

        Returns:
            Mask logits f32 `[B, N, K, h, w]`; presence logits f32 `[B, N, K]`, `d_neg - d_pos - margin`,
            positive if the image has a target; and in `aux`: `d_pos` and `d_neg`, f32 `[B, N, K]`, the
            distances of z_n to L and L_anti. In training also `mirror_logits`, f32 `[B, N, K, h, w]`,
            the masks of the anti-expression, for which L and L_anti change places in queries and ranks.
            At inference also `language_heatmap` f32 `[B, N, K, h', w']` at stride 4, `vision_heatmaps`
            f32 `[B, N, K, h', w', G]` in the order of the predictor's channels, `channel_images`
            i32 `[B, G, K]`, the image on the axis N that each channel shows, and `expert_order`
            i32 `[B, N, K]`, the images from the most to the least trusted.
        """
        training = rngs is not None
        pairs = (*image_features.maps[0].shape[:2], text_features.words.shape[1])
        experts = jnp.ones(pairs, bool) if valid is None else jnp.asarray(valid)
        words, shown, anti_words, anti_shown = text_features
        language = self.decoder.query.embed(self._pool(words, shown))
        anti = self.decoder.query.embed(self._pool(anti_words, anti_shown))
        visual = self._look(image_features, words, shown, rngs)
        answer = self.decoder(visual, language, anti, experts, training=training, key=_key(rngs))
        distances = [self.decoder.distance(answer.embedding, x[:, None]) for x in (language, anti)]
        aux = {"d_pos": distances[0], "d_neg": distances[1]}
        if training:
            if self.config.mirror_encodes:
                visual = self._look(image_features, anti_words, anti_shown, rngs)
            mirror = self.decoder(visual, anti, language, experts, training=True, key=_key(rngs))
            aux["mirror_logits"] = self._masks(mirror)
        else:
            aux["language_heatmap"] = answer.language_heatmap
            aux["vision_heatmaps"] = answer.vision_heatmaps
            aux["channel_images"] = answer.shown
            aux["expert_order"] = answer.order
        present = distances[1] - distances[0] - self.config.margin
        return SegOutput(self._masks(answer), present, aux)

    def _look(
        self,
        image_features: ImageFeatures,
        words: jax.Array,
        valid: jax.Array,
        rngs: nnx.Rngs | None,
    ) -> jax.Array:
        """V, `[B, N, K, h, w, width]`; `vision.fuse` takes a row of words for each pair."""
        rows, images = image_features.maps[0].shape[:2]
        maps = tuple(x.reshape(-1, *x.shape[2:]) for x in image_features.maps)
        asked, shown = (over_images(x, images) for x in (words, valid))
        fused = self.vision.fuse(maps, asked, shown, _key(rngs))
        return self.decoder.look(fused, (rows, images, words.shape[1]))

    def _pool(self, words: jax.Array, valid: jax.Array) -> jax.Array:
        """L: words `[B, K, L, text_width]` to f32 `[B, K, text_width]`; zeros without valid words."""
        wide = words.astype(jnp.float32)
        if self.config.text_pooling == "cls":
            return wide[:, :, 0]
        shown = valid[..., None].astype(jnp.float32)
        return (wide * shown).sum(2) / jnp.maximum(shown.sum(2), 1.0)

    def _masks(self, answer: GroupAnswer) -> jax.Array:
        """Mask logits f32 `[B, N, K, h, w]` at `config.mask_stride`."""
        cells = self.config.image_size // self.config.mask_stride
        logits = answer.mask_logits
        flat = logits.reshape(-1, *logits.shape[3:], 1)
        return resize_bilinear(flat, (cells, cells)).reshape(*logits.shape[:3], cells, cells)


def _key(rngs: nnx.Rngs | None) -> jax.Array | None:
    return None if rngs is None else rngs.dropout()
