"""ReLA (Liu, Ding and Jiang, "GRES: Generalized Referring Expression Segmentation", CVPR 2023)."""

from collections.abc import Mapping
from typing import ClassVar, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from refseg_jax.batch import Array, Batch, SegOutput
from refseg_jax.decoders.masked_relationship import MaskedRelationship, MaskedRelationshipConfig
from refseg_jax.decoders.pixel_decoder import PixelDecoder, PixelFeatures
from refseg_jax.decoders.presence import MaskEvidence
from refseg_jax.decoders.relationship import Regions, Relationship
from refseg_jax.encoders.bert import Bert
from refseg_jax.encoders.language_swin import LanguageSwin
from refseg_jax.images.resize import resize_bilinear
from refseg_jax.layers.rows import over_images
from refseg_jax.models.region_maps import RegionMaps
from refseg_jax.models.rela_config import ReLAConfig


class ImageFeatures(NamedTuple):
    """Output of `ReLA.encode_image`: the part that does not depend on the words.

    Attributes:
        maps: `[B, N, h, w, C]` each: the outputs of all stages of the backbone if its gate is closed,
            else only the embedded patches.
    """

    maps: tuple[jax.Array, ...]


class TextFeatures(NamedTuple):
    """Output of `ReLA.encode_text`.

    Attributes:
        words: `[B, K, L, text_width]`.
        valid: bool `[B, K, L]`, false for padding.
    """

    words: jax.Array
    valid: jax.Array


class ReLA(nnx.Module):
    """Swin with fusion of words, BERT, pixel decoder and relationship block; a `SeparableModel`.

        words = text(expression)
        maps = vision(image, words)
        mask features, levels = pixels(maps)
        filters, weights, minimap, present = regions(levels, words)
        logits = sum over regions n of weights[n] * (filters[n] . mask features)       equation 1

    Parameter paths begin with these names (`vision`, `text`, `pixels`, `regions`), or with `evidence`
    if `config.mask_evidence` is on.
    """

    #: Published towers from which the model can start -> prefix of their parameters.
    TOWERS: ClassVar[Mapping[str, str]] = {"swin": "vision.swin.", "bert": "text."}

    def __init__(self, config: ReLAConfig, *, rngs: nnx.Rngs):
        self.config = config
        self.vision = LanguageSwin(config.image_tower, rngs=rngs)
        self.text = Bert(config.text_tower, rngs=rngs)
        self.pixels = PixelDecoder(config.pixel_decoder, config.image_tower.widths, rngs=rngs)
        self.regions = self._block(rngs)
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
        size = self.config.image_size
        if image.shape[2:] != (size, size, 3):
            raise ValueError(f"images are {image.shape[2:]}, the model takes ({size}, {size}, 3)")
        leading = image.shape[:2]
        seen = self.vision.look(jnp.asarray(image).reshape(-1, size, size, 3), _key(rngs))
        return ImageFeatures(tuple(x.reshape(*leading, *x.shape[1:]) for x in seen))

    def encode_text(
        self, text: Array, text_valid: Array, *, rngs: nnx.Rngs | None = None
    ) -> TextFeatures:
        """i32 `[B, K, L]` and bool `[B, K, L]` to text features."""
        ids, valid = jnp.asarray(text), jnp.asarray(text_valid)
        length = ids.shape[2]
        words = self.text(ids.reshape(-1, length), valid.reshape(-1, length), key=_key(rngs))
        return TextFeatures(words.reshape(*ids.shape, -1), valid)

    def decode(
        self,
        image_features: ImageFeatures,
        text_features: TextFeatures,
        *,
        rngs: nnx.Rngs | None = None,
    ) -> SegOutput:
        """Decodes each of N images with each of K expressions.

        Returns:
            Mask logits f32 `[B, N, K, h, w]`, presence logits f32 `[B, N, K]`, and
            `aux["minimap_logits"]` f32 `[B, N, K, side, side]`.
        """
        pixels, regions = self._relate(image_features, text_features, rngs)
        pairs = (*image_features.maps[0].shape[:2], text_features.words.shape[1])
        masks, present = self._answer(pixels, regions)
        side = self.config.side
        return SegOutput(
            masks.reshape(*pairs, *masks.shape[1:]),
            present.reshape(pairs),
            {"minimap_logits": regions.minimap_logits.reshape(*pairs, side, side)},
        )

    def region_maps(self, image: Array, text: Array, text_valid: Array) -> RegionMaps:
        """The minimap and the mask of each region, at inference.

        Arguments are as in `encode_image` and `encode_text`. The region masks are those of equation 1,
        not weighted; they take `side * side` times the memory of a mask.
        """
        image_features = self.encode_image(image)
        text_features = self.encode_text(text, text_valid)
        pixels, regions = self._relate(image_features, text_features, None)
        pairs = (*image_features.maps[0].shape[:2], text_features.words.shape[1])
        _, present = self._answer(pixels, regions)
        masks = jnp.einsum("ghwc,grc->grhw", pixels.masks, regions.filters.astype(jnp.float32))
        side = self.config.side
        return RegionMaps(
            jax.nn.sigmoid(regions.minimap_logits).reshape(*pairs, side, side),
            jax.nn.sigmoid(masks).reshape(*pairs, *masks.shape[1:]),
            jax.nn.sigmoid(present).reshape(pairs),
        )

    def _relate(
        self,
        image_features: ImageFeatures,
        text_features: TextFeatures,
        rngs: nnx.Rngs | None,
    ) -> tuple[PixelFeatures, Regions]:
        """Pixel features and regions of all pairs, `B * N * K` rows.

        `vision.fuse` takes a row of maps for each image, and a row of words for each pair.
        """
        images = image_features.maps[0].shape[1]
        maps = tuple(x.reshape(-1, *x.shape[2:]) for x in image_features.maps)
        words, valid = (over_images(x, images) for x in text_features)
        fused = self.vision.fuse(maps, words, valid, _key(rngs))
        pixels = self.pixels(fused)
        return pixels, self.regions(pixels, words, valid)

    def _answer(self, pixels: PixelFeatures, regions: Regions) -> tuple[jax.Array, jax.Array]:
        """The mask logits of the targets, f32 `[G, h, w]`, and presence logits f32 `[G]`."""
        masks = jnp.einsum(
            "ghwc,gc->ghw",
            pixels.masks,
            regions.target_filter(),
            preferred_element_type=jnp.float32,
        )
        cells = self.config.image_size // self.config.mask_stride
        masks = resize_bilinear(masks[..., None], (cells, cells))[..., 0]
        present = regions.present_logits
        return masks, present if self.evidence is None else present + self.evidence(masks)

    def _block(self, rngs: nnx.Rngs) -> MaskedRelationship | Relationship:
        config, sizes = self.config, self.config.block
        shared = {
            "text_width": config.text_width,
            "mask_width": config.width,
            "dtype": jnp.dtype(config.dtype),
            "rngs": rngs,
        }
        if isinstance(sizes, MaskedRelationshipConfig):
            return MaskedRelationship(sizes, levels=len(config.swin_depths) - 1, **shared)
        return Relationship(sizes, **shared)


def _key(rngs: nnx.Rngs | None) -> jax.Array | None:
    return None if rngs is None else rngs.dropout()
