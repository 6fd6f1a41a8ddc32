"""UniRES (Wang et al., "Unveiling Parts Beyond Objects", CVPR 2024, section 5)."""

from collections.abc import Mapping
from typing import ClassVar, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from refseg_jax.batch import Array, Batch, SegOutput
from refseg_jax.decoders.heads import KERNEL_WIDTH, PixelKernelHead, build_head
from refseg_jax.decoders.presence import MaskEvidence, PresenceHead
from refseg_jax.decoders.region_filter import RegionFilter
from refseg_jax.decoders.vision_language import VisionLanguageDecoder, repeat_rows
from refseg_jax.encoders.clip_text import ClipText
from refseg_jax.encoders.clip_vision import ClipVision, VisionFeatures, assign_groups
from refseg_jax.encoders.stem import FINE
from refseg_jax.layers.linear import Linear
from refseg_jax.layers.positions import sine_positions_1d, sine_positions_2d
from refseg_jax.layers.rows import over_images
from refseg_jax.models.unires_config import UniRESConfig


class ImageFeatures(NamedTuple):
    """Output of `UniRES.encode_image`.

    Attributes:
        patches: image tokens, row by row, `[B, N, P, decoder_width]`.
        groups: projected group tokens `[B, N, T, decoder_width]` of each level that has any, the low
            level first.
        pixels: projected pixel features `[B, N, P, cells, kernel_width]` for the head `pixel_kernel`;
            `None` for other heads.
    """

    patches: jax.Array
    groups: tuple[jax.Array, ...]
    pixels: jax.Array | None


class TextFeatures(NamedTuple):
    """Output of `UniRES.encode_text`.

    Attributes:
        words: `[B, K, L, decoder_width]`.
        sentence: `[B, K, embedding_width]`.
        valid: bool `[B, K, L]`, false for padding.
    """

    words: jax.Array
    sentence: jax.Array
    valid: jax.Array


class UniRES(nnx.Module):
    """CLIP towers, region filters, two-stage decoder and mask head; a `SeparableModel`.

        patches, low, high = vision(image)
        words, sentence = text(expression)
        regions = [low_filter(low, words), high_filter(high, words)]
        x = decoder(patches, words)                       stage 1
        x = group_decoder(x, regions)                     stage 2
        logits = head(x, sentence)

    Parameter paths begin with these names. Linear maps `patch_adapter` and `word_adapter` are added
    if patches or words have another width than the decoder, and `presence` and `evidence` if the
    config asks for them.
    """

    #: Published towers from which the model can start -> prefix of their parameters. The prefix of CLIP
    #: is empty, because its two towers fill both `vision` and `text`.
    TOWERS: ClassVar[Mapping[str, str]] = {"clip": ""}

    def __init__(self, config: UniRESConfig, *, rngs: nnx.Rngs):
        self.config = config
        dtype = jnp.dtype(config.dtype)
        width = config.decoder_width
        self.vision = ClipVision(
            grid=config.grid,
            patch_size=config.patch_size,
            stem_width=config.stem_width,
            width=config.vision_width,
            layers=config.vision_layers,
            heads=config.vision_heads,
            output_width=config.embedding_width,
            activation=config.activation,
            low_tokens=config.low_tokens,
            high_tokens=config.high_tokens,
            dtype=dtype,
            remat=config.remat,
            rngs=rngs,
        )
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

        def adapter(inputs: int) -> Linear | None:
            return None if inputs == width else Linear(inputs, width, dtype=dtype, rngs=rngs)

        self.patch_adapter = adapter(config.embedding_width)
        self.word_adapter = adapter(config.text_width)
        self.low_filter = self._filter(config.low_tokens, rngs)
        self.high_filter = self._filter(config.high_tokens, rngs)
        self.decoder = self._stage(config.decoder_layers, rngs)
        groups = config.low_tokens + config.high_tokens
        self.group_decoder = self._stage(1, rngs) if groups else None
        self.head = self._head(rngs)
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
        """Masks of all pairs of image and expression of a batch; without `rngs`, nothing is dropped."""
        image_features = self.encode_image(batch.image, rngs=rngs)
        text_features = self.encode_text(batch.text, batch.text_valid, rngs=rngs)
        return self.decode(image_features, text_features, rngs=rngs)

    def encode_image(self, image: Array, *, rngs: nnx.Rngs | None = None) -> ImageFeatures:
        """u8 `[B, N, image_size, image_size, 3]` to image features.

        Raises:
            ValueError: the images have another size.
        """
        del rngs
        features = self._see(image)
        leading = image.shape[:2]
        patches = features.patches
        if self.patch_adapter is not None:
            patches = self.patch_adapter(patches)
        groups = [
            level.project(tokens)
            for level, tokens in (
                (self.low_filter, features.low),
                (self.high_filter, features.high),
            )
            if level is not None and tokens is not None
        ]
        unfold = lambda x: x.reshape(*leading, *x.shape[1:])  # noqa: E731
        pixels = None
        if isinstance(self.head, PixelKernelHead):
            assert features.pixels is not None
            pixels = unfold(self.head.project(features.pixels))
        return ImageFeatures(unfold(patches), tuple(unfold(g) for g in groups), pixels)

    def encode_text(
        self, text: Array, text_valid: Array, *, rngs: nnx.Rngs | None = None
    ) -> TextFeatures:
        """i32 `[B, K, L]` and bool `[B, K, L]` to text features."""
        del rngs
        leading = text.shape[:2]
        words, sentence = self.text(jnp.asarray(text).reshape(-1, text.shape[2]))
        if self.word_adapter is not None:
            words = self.word_adapter(words)
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
    ) -> SegOutput:
        """Decodes each of N images with each of K expressions.

        Returns:
            Mask logits f32 `[B, N, K, h, w]` and, with a presence head, presence logits f32
            `[B, N, K]`.
        """
        rows, images, count, width = image_features.patches.shape
        expressions, length = text_features.words.shape[1:3]
        key = None if rngs is None else rngs.dropout()
        stage_1_key, stage_2_key = (None, None) if key is None else jax.random.split(key)
        # Rows run over (B, N) for features that do not depend on the text, else over (B, N, K).
        words, sentence, valid = (over_images(x, images) for x in text_features)
        positions = jnp.asarray(sine_positions_2d(self.config.grid, self.config.grid, width))
        word_key = words + jnp.asarray(sine_positions_1d(length, width)).astype(words.dtype)

        x = image_features.patches.reshape(rows * images, count, width)
        x = self.decoder(x, positions, word_key, words, valid=valid, key=stage_1_key)
        if self.group_decoder is not None:
            regions = self._filtered(image_features.groups, words, valid)
            x = self.group_decoder(x, positions, regions, regions, key=stage_2_key)
        pixels = image_features.pixels
        guide = sentence if pixels is None else pixels.reshape(rows * images, *pixels.shape[2:])
        logits = self.head(x, guide)  # pyright: ignore[reportCallIssue]
        present = None
        if self.presence is not None:
            present = self.presence(x, sentence)
            if self.evidence is not None:
                present = present + self.evidence(logits)
            present = present.reshape(rows, images, expressions)
        return SegOutput(logits.reshape(rows, images, expressions, *logits.shape[1:]), present)

    def group_assignment(self, image: Array) -> dict[str, jax.Array]:
        """The similarity of patches and group tokens, for maps like Figure 5 of the paper.

        Args:
            image: u8 `[B, N, image_size, image_size, 3]`.

        Returns:
            For each level that is on, under `low` and `high`: f32 `[B, N, T, grid, grid]` in -1..1,
            the similarity of patch and token where the tokens leave the tower (see `assign_groups`).
            The group of a patch is the argmax over T.
        """
        features = self._see(image)
        shape = (*image.shape[:2], -1, self.config.grid, self.config.grid)
        levels = {
            "low": (features.low_patches, features.low),
            "high": (features.high_patches, features.high),
        }
        return {
            name: assign_groups(patches, tokens).reshape(shape)
            for name, (patches, tokens) in levels.items()
            if tokens is not None
        }

    def _see(self, image: Array) -> VisionFeatures:
        size = self.config.image_size
        if image.shape[2:] != (size, size, 3):
            raise ValueError(f"images are {image.shape[2:]}, the model takes ({size}, {size}, 3)")
        return self.vision(jnp.asarray(image).reshape(-1, size, size, 3))

    def _filter(self, tokens: int, rngs: nnx.Rngs) -> RegionFilter | None:
        config = self.config
        if not tokens:
            return None
        return RegionFilter(
            token_width=config.vision_width,
            width=config.decoder_width,
            heads=config.decoder_heads,
            hidden=config.decoder_hidden,
            input_norm=config.filter_norm,
            dtype=jnp.dtype(config.dtype),
            rngs=rngs,
        )

    def _head(self, rngs: nnx.Rngs) -> nnx.Module:
        config = self.config
        dtype = jnp.dtype(config.dtype)
        if config.head == "pixel_kernel":
            return PixelKernelHead(
                width=config.decoder_width,
                pixel_width=config.stem_width + FINE * FINE * 3,
                kernel_width=KERNEL_WIDTH,
                subcells=FINE // config.mask_stride,
                dtype=dtype,
                rngs=rngs,
            )
        return build_head(
            config.head,
            width=config.decoder_width,
            state_width=config.embedding_width,
            factor=config.patch_size // config.mask_stride,
            dtype=dtype,
            rngs=rngs,
        )

    def _presence(self, rngs: nnx.Rngs) -> PresenceHead | None:
        config = self.config
        if not config.presence_head:
            return None
        return PresenceHead(
            width=config.decoder_width,
            state_width=config.embedding_width,
            dtype=jnp.dtype(config.dtype),
            rngs=rngs,
        )

    def _stage(self, layers: int, rngs: nnx.Rngs) -> VisionLanguageDecoder:
        config = self.config
        return VisionLanguageDecoder(
            layers=layers,
            width=config.decoder_width,
            heads=config.decoder_heads,
            hidden=config.decoder_hidden,
            dropout=config.dropout,
            dtype=jnp.dtype(config.dtype),
            remat=config.remat,
            rngs=rngs,
        )

    def _filtered(
        self, groups: tuple[jax.Array, ...], words: jax.Array, valid: jax.Array
    ) -> jax.Array:
        """The filtered group tokens of all levels, `[B * N * K, T, width]`."""
        filters = [f for f in (self.low_filter, self.high_filter) if f is not None]
        levels = []
        for level, tokens in zip(filters, groups, strict=True):
            flat = tokens.reshape(-1, *tokens.shape[2:])
            repeats = words.shape[0] // flat.shape[0]
            levels.append(level(repeat_rows(flat, repeats), words, valid))
        return jnp.concatenate(levels, 1)
