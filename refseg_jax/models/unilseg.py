"""UniLSeg (Liu et al., "Universal Segmentation at Arbitrary Granularity with Language Instruction").

CVPR 2024. The public code (yongliu20/UniLSeg, commit d45e37a) has the model and the inference of single
images; it has neither training nor evaluation. Form `official` computes what it computes.

Ambiguities of that form, which its released inference does not settle:

- Dropout. The public code drops attention weights, too, and nothing else in Pre-Fusion. They are not
  dropped here, because flash kernels never store them.
- The resolution of the loss: stride 4, that of the mask features (`mask_stride`).
- Batch statistics: over the pairs of image and expression that count. The public code has one expression
  for each image of a batch, so that the two are the same there.
- The masks of earlier layers of the language path: products with the same mask features. The public code
  computes them and returns the last one.
- The parts that Table 8 of the paper leaves out, see `UniLSegConfig`.
"""

from collections.abc import Mapping
from typing import ClassVar, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from refseg_jax.batch import Array, Batch, SegOutput
from refseg_jax.decoders.paper_paths import MultiModalPyramid, SymmetricTransformer
from refseg_jax.decoders.pre_fusion import PreFusion
from refseg_jax.decoders.presence import MaskEvidence, PresenceHead
from refseg_jax.decoders.query_decoder import QueryDecoder, SentenceQuery
from refseg_jax.decoders.shrunk_pyramid import ShrunkPyramid, VisionPath
from refseg_jax.decoders.word_activation import WordActivations
from refseg_jax.encoders.clip_text import ClipText
from refseg_jax.encoders.swin import Swin
from refseg_jax.images.resize import resize_bilinear
from refseg_jax.layers.linear import Linear
from refseg_jax.layers.rows import over_images, repeat_rows
from refseg_jax.models.unilseg_config import UniLSegConfig


class ImageFeatures(NamedTuple):
    """Output of `UniLSeg.encode_image`.

    Attributes:
        maps: `[B, N, h, w, C]` each: the maps of the backbone, the finest (stride 4) first.
    """

    maps: tuple[jax.Array, ...]


class TextFeatures(NamedTuple):
    """Output of `UniLSeg.encode_text`.

    Attributes:
        words: `[B, K, L, text_width]`.
        sentence: `[B, K, embedding_width]`.
        valid: bool `[B, K, L]`, false for padding.
    """

    words: jax.Array
    sentence: jax.Array
    valid: jax.Array


class UniLSeg(nnx.Module):
    """Swin, CLIP's text tower, Pre-Fusion, and a vision and a language path; a `SeparableModel`.

        maps = vision(image)
        words, sentence = text(expression)
        maps = pre_fusion(maps, words)
        mask features, seen maps = vision_path(maps, words)
        queries = language_path(seen maps, words, sentence)
        logits = last query . mask features

    Parameter paths begin with these names. A linear map `word_adapter` is added if the words have
    another width than the vision path, and `presence` and `evidence` if the config asks for them.

    In training (with `rngs`), batch statistics count the valid pairs of image and expression, because
    every convolution of the decoder follows the words.
    """

    #: Published towers from which the model can start -> prefix of their parameters.
    TOWERS: ClassVar[Mapping[str, str]] = {"swin": "vision.", "clip": "text."}

    def __init__(self, config: UniLSegConfig, *, rngs: nnx.Rngs):
        self.config = config
        dtype = jnp.dtype(config.dtype)
        self.vision = Swin(config.image_tower, rngs=rngs)
        self.text = ClipText(
            vocab_size=config.vocab_size,
            positions=config.text_positions,
            width=config.text_width,
            layers=config.text_layers,
            heads=config.text_heads,
            output_width=config.embedding_width,
            activation=config.activation,
            eos_id=config.eos_id,
            dtype=dtype,
            remat=config.remat,
            rngs=rngs,
        )
        self.pre_fusion = self._pre_fusion(rngs)
        self.word_adapter = self._word_adapter(rngs)
        self.vision_path = self._vision_path(rngs)
        self.language_path = self._language_path(rngs)
        # Built last, so that the random numbers of the other modules do not depend on them.
        self.presence = self._presence(rngs)
        self.evidence = MaskEvidence(rngs=rngs) if config.mask_evidence else None

    @property
    def image_size(self) -> int:
        """Side of the square network input in pixels."""
        return self.config.image_size

    @property
    def mask_stride(self) -> int:
        """Network pixels per mask cell."""
        return self.config.mask_stride

    def __call__(self, batch: Batch, *, rngs: nnx.Rngs | None = None) -> SegOutput:
        """Masks of all pairs of image and expression of a batch.

        With `rngs`, this is training: dropout, and batch statistics of the valid pairs.
        """
        image_features = self.encode_image(batch.image, rngs=rngs)
        text_features = self.encode_text(batch.text, batch.text_valid, rngs=rngs)
        return self.decode(image_features, text_features, rngs=rngs, valid=batch.valid)

    def encode_image(self, image: Array, *, rngs: nnx.Rngs | None = None) -> ImageFeatures:
        """u8 `[B, N, image_size, image_size, 3]` to image features.

        Raises:
            ValueError: the images have another size.
        """
        size = self.config.image_size
        if image.shape[2:] != (size, size, 3):
            raise ValueError(f"images are {image.shape[2:]}, the model takes ({size}, {size}, 3)")
        leading = image.shape[:2]
        maps = self.vision(jnp.asarray(image).reshape(-1, size, size, 3), _key(rngs))
        return ImageFeatures(tuple(x.reshape(*leading, *x.shape[1:]) for x in maps))

    def encode_text(
        self, text: Array, text_valid: Array, *, rngs: nnx.Rngs | None = None
    ) -> TextFeatures:
        """i32 `[B, K, L]` and bool `[B, K, L]` to text features."""
        del rngs
        leading = text.shape[:2]
        words, sentence = self.text(jnp.asarray(text).reshape(-1, text.shape[2]))
        return TextFeatures(
            words.reshape(*leading, *words.shape[1:]),
            sentence.reshape(*leading, -1),
            jnp.asarray(text_valid),
        )

    def decode(
        self,
        image_features: ImageFeatures,
        text_features: TextFeatures,
        *,
        rngs: nnx.Rngs | None = None,
        valid: Array | None = None,
    ) -> SegOutput:
        """Decodes each of N images with each of K expressions.

        Args:
            image_features, text_features: outputs of the encoders.
            rngs: random streams for dropout; with them, this is training.
            valid: bool `[B, N, K]`, the pairs that count for batch statistics in training; all do if
                absent.

        Returns:
            Mask logits f32 `[B, N, K, h, w]`; with a presence head, presence logits f32 `[B, N, K]`; in
            training, `aux["layer_logits"]` f32 `[layers, B, N, K, h, w]`, the masks after each layer of
            the language path, the last of which is the answer.
        """
        training = rngs is not None
        images = image_features.maps[0].shape[1]
        pairs = (image_features.maps[0].shape[0], images, text_features.words.shape[1])
        maps = tuple(x.reshape(-1, *x.shape[2:]) for x in image_features.maps)
        words, sentence, words_valid = (over_images(x, images) for x in text_features)
        counted = None if valid is None else jnp.asarray(valid).reshape(-1)

        if self.pre_fusion is None:
            maps = tuple(repeat_rows(x, pairs[2]) for x in maps)
        else:
            maps = self.pre_fusion(maps, words, words_valid)
        if self.word_adapter is not None:
            words = self.word_adapter(words)
        seen = self.vision_path(
            maps, words, words_valid, counted, training=training, key=_key(rngs)
        )
        queries = self._queries(seen, words, words_valid, sentence, counted, rngs)
        # At inference, nobody asks for the masks of the other layers.
        logits = self._masks(queries if training else queries[-1:], seen.masks)
        present = self._present(maps[-1], sentence, logits[-1])
        logits = logits.reshape(-1, *pairs, *logits.shape[2:])
        return SegOutput(
            logits[-1],
            None if present is None else present.reshape(pairs),
            {"layer_logits": logits} if training else {},
        )

    def _queries(
        self,
        seen: VisionPath,
        words: jax.Array,
        words_valid: jax.Array,
        sentence: jax.Array,
        valid: jax.Array | None,
        rngs: nnx.Rngs | None,
    ) -> jax.Array:
        """The queries of G pairs after each layer of the language path, `[layers, G, mask_width]`."""
        if isinstance(self.language_path, SymmetricTransformer):
            return self.language_path(seen.maps, words, words_valid, sentence, key=_key(rngs))
        training = rngs is not None
        return self.language_path(seen.maps[-1], sentence, valid, training=training, key=_key(rngs))

    def _masks(self, queries: jax.Array, features: jax.Array) -> jax.Array:
        """Logits f32 `[layers, G, h, w]` of queries `[layers, G, C]` and features `[G, h, w, C]`."""
        logits = jnp.einsum("ghwc,lgc->lghw", features, queries, preferred_element_type=jnp.float32)
        cells = self.config.image_size // self.config.mask_stride
        flat = logits.reshape(-1, *logits.shape[2:], 1)
        return resize_bilinear(flat, (cells, cells)).reshape(*logits.shape[:2], cells, cells)

    def _present(self, seen: jax.Array, sentence: jax.Array, logits: jax.Array) -> jax.Array | None:
        """Presence logits f32 `[G]`, if there is a presence head."""
        if self.presence is None:
            return None
        tokens = seen.reshape(seen.shape[0], -1, seen.shape[-1])
        present = self.presence(tokens, sentence)
        return present if self.evidence is None else present + self.evidence(logits)

    def _pre_fusion(self, rngs: nnx.Rngs) -> PreFusion | WordActivations | None:
        config = self.config
        if not config.pre_fusion:
            return None
        if config.form == "paper":
            return WordActivations(
                config.image_tower.widths,
                config.text_width,
                config.heads,
                residual=config.fusion_residual,
                dtype=jnp.dtype(config.dtype),
                rngs=rngs,
            )
        return PreFusion(
            config.image_tower.widths,
            config.text_width,
            config.heads,
            dtype=jnp.dtype(config.dtype),
            remat=config.remat,
            rngs=rngs,
        )

    def _word_adapter(self, rngs: nnx.Rngs) -> Linear | None:
        config = self.config
        # The paths of the paper's form have linear maps of their own.
        unread = config.form == "paper" or not config.vision_path
        if unread or config.text_width == config.width:
            return None
        return Linear(config.text_width, config.width, dtype=jnp.dtype(config.dtype), rngs=rngs)

    def _vision_path(self, rngs: nnx.Rngs) -> ShrunkPyramid | MultiModalPyramid:
        config = self.config
        dtype, widths = jnp.dtype(config.dtype), config.image_tower.widths
        if config.form == "paper":
            return MultiModalPyramid(
                config.multi_modal, widths, config.text_width, dtype=dtype, rngs=rngs
            )
        return ShrunkPyramid(config.pyramid, widths, dtype=dtype, rngs=rngs)

    def _language_path(self, rngs: nnx.Rngs) -> QueryDecoder | SymmetricTransformer | SentenceQuery:
        config = self.config
        dtype, sentence = jnp.dtype(config.dtype), config.embedding_width
        if not config.language_path:
            return SentenceQuery(config.mask_width, sentence_width=sentence, dtype=dtype, rngs=rngs)
        if config.form == "paper":
            return SymmetricTransformer(
                config.symmetric,
                config.image_tower.widths,
                config.text_width,
                sentence,
                dtype=dtype,
                rngs=rngs,
            )
        return QueryDecoder(
            config.query_decoder,
            map_width=config.image_tower.widths[-1],
            sentence_width=sentence,
            dtype=dtype,
            rngs=rngs,
        )

    def _presence(self, rngs: nnx.Rngs) -> PresenceHead | None:
        config = self.config
        if not config.presence_head:
            return None
        return PresenceHead(
            width=config.image_tower.widths[-1],
            state_width=config.embedding_width,
            dtype=jnp.dtype(config.dtype),
            rngs=rngs,
        )


def _key(rngs: nnx.Rngs | None) -> jax.Array | None:
    return None if rngs is None else rngs.dropout()
