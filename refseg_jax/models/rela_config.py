"""The config of ReLA, with every choice as a field, and its presets."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from refseg_jax import naming
from refseg_jax.decoders.masked_relationship import MaskedRelationshipConfig
from refseg_jax.decoders.pixel_decoder import PixelDecoderConfig
from refseg_jax.decoders.relationship import RegionSource, RelationshipConfig
from refseg_jax.encoders.bert import BertConfig
from refseg_jax.encoders.language_swin import LanguageSwinConfig

#: The two relationship blocks: that of the public code, and that of the paper.
RELATIONSHIPS = ("official", "paper")

#: Network pixels per cell of the mask features of the pixel decoder.
STRIDE = 4


@dataclasses.dataclass(frozen=True)
class ReLAConfig:
    """Sizes and choices; the defaults are ReLA with Swin-B at 480, as the public code trains it.

    Attributes:
        image_size: side of the square network input in pixels; a multiple of 4.
        mask_stride: network pixels per cell of the output masks, 1, 2 or 4. Masks are computed at
            stride 4 and resized bilinearly. The loss of the public code is at stride 1.
        swin_width, swin_depths, swin_heads, window, pixels, drop_path, gate: of the backbone, see
            `LanguageSwinConfig`.
        vocab_size, text_positions, text_width, text_layers, text_heads, text_hidden, text_dropout:
            of BERT, see `BertConfig`.
        eos_id: id of the token that ends a text; 102 is BERT's [SEP].
        width: channels of the pixel decoder and of the relationship block.
        heads: attention heads of both.
        pixel_layers, pixel_points, pixel_hidden: of the pixel decoder, see `PixelDecoderConfig`.
        relationship: `official`, the block of the public code (`MaskedRelationship`), or `paper`, the
            block of the paper (`Relationship`).
        side: regions along a side of the minimap.
        zero_filters: initialise the last kernel of the region filters with zeros, so that the first
            masks are undecided and regions attend everywhere. Not in the public code, where the sum
            over `side * side` regions is large at first: in the preset `tiny`, logits of 4 to 5, whose
            loss triples before it falls. The public code learns at a hundredth of the rate of `tiny`,
            with gradients clipped at 0.01.
        region_layers, region_hidden, mask_padding: only for `official`, see
            `MaskedRelationshipConfig`.
        region_level, regions, region_attention, language_attention: only for `paper`, see
            `RelationshipConfig`.
        mask_evidence: let the presence head also see the decoded mask (not in the paper), see
            `MaskEvidence`. It adds parameters: a model with it cannot start from a checkpoint without
            it.
        dtype: compute type of the towers and of the block, `float32` or `bfloat16`; the pixel
            decoder computes in f32, as in the public code.
        remat: recompute activations inside the blocks in the backward pass instead of storing them.
    """

    image_size: int = 480
    mask_stride: int = 1
    swin_width: int = 128
    swin_depths: tuple[int, ...] = (2, 2, 18, 2)
    swin_heads: tuple[int, ...] = (4, 8, 16, 32)
    window: int = 12
    pixels: str = "imagenet"
    drop_path: float = 0.3
    gate: str = "closed"
    vocab_size: int = 30522
    eos_id: int = 102
    text_positions: int = 512
    text_width: int = 768
    text_layers: int = 12
    text_heads: int = 12
    text_hidden: int = 3072
    text_dropout: float = 0.1
    width: int = 256
    heads: int = 8
    pixel_layers: int = 6
    pixel_points: int = 4
    pixel_hidden: int = 1024
    relationship: str = "official"
    side: int = 10
    zero_filters: bool = False
    region_layers: int = 9
    region_hidden: int = 2048
    mask_padding: bool = False
    region_level: int = 1
    regions: RegionSource = "attention"
    region_attention: bool = True
    language_attention: bool = True
    mask_evidence: bool = False
    dtype: str = "float32"
    remat: bool = False

    def __post_init__(self) -> None:
        """Checks the fields.

        Raises:
            ValueError: the sizes do not fit together, or a name is unknown.
        """
        if self.relationship not in RELATIONSHIPS:
            raise ValueError(naming.unknown("relationship block", self.relationship, RELATIONSHIPS))
        if self.mask_stride not in (1, 2, STRIDE):
            raise ValueError(f"mask_stride={self.mask_stride} is not 1, 2 or {STRIDE}")
        if self.image_size < 1 or self.image_size % STRIDE:
            raise ValueError(f"image_size={self.image_size} is not divisible by {STRIDE}")
        levels = len(self.swin_depths) - 1
        if self.relationship == "paper" and self.region_level >= levels:
            raise ValueError(
                f"region_level={self.region_level}: the pixel decoder has levels 0 to {levels - 1}"
            )
        # Each of these configs checks its own fields.
        _ = self.image_tower, self.text_tower, self.pixel_decoder, self.block

    @property
    def image_tower(self) -> LanguageSwinConfig:
        """The config of the backbone."""
        return LanguageSwinConfig(
            width=self.swin_width,
            depths=self.swin_depths,
            heads=self.swin_heads,
            window=self.window,
            pixels=self.pixels,
            drop_path=self.drop_path,
            dtype=self.dtype,
            remat=self.remat,
            word_width=self.text_width,
            gate=self.gate,
        )

    @property
    def text_tower(self) -> BertConfig:
        """The config of BERT."""
        return BertConfig(
            vocab_size=self.vocab_size,
            positions=self.text_positions,
            width=self.text_width,
            layers=self.text_layers,
            heads=self.text_heads,
            hidden=self.text_hidden,
            dropout=self.text_dropout,
            dtype=self.dtype,
            remat=self.remat,
        )

    @property
    def pixel_decoder(self) -> PixelDecoderConfig:
        """The config of the pixel decoder."""
        return PixelDecoderConfig(
            width=self.width,
            mask_width=self.width,
            layers=self.pixel_layers,
            heads=self.heads,
            points=self.pixel_points,
            hidden=self.pixel_hidden,
            remat=self.remat,
        )

    @property
    def block(self) -> MaskedRelationshipConfig | RelationshipConfig:
        """The config of the relationship block."""
        if self.relationship == "official":
            return MaskedRelationshipConfig(
                width=self.width,
                side=self.side,
                zero_filters=self.zero_filters,
                heads=self.heads,
                hidden=self.region_hidden,
                layers=self.region_layers,
                mask_padding=self.mask_padding,
                remat=self.remat,
            )
        return RelationshipConfig(
            width=self.width,
            side=self.side,
            zero_filters=self.zero_filters,
            heads=self.heads,
            level=self.region_level,
            regions=self.regions,
            region_attention=self.region_attention,
            language_attention=self.language_attention,
        )


#: Preset -> the fields that differ from the public code's Swin-B.
PRESETS: Mapping[str, Mapping[str, Any]] = {
    "B": {},
    # For Scenes; uses CLIP's vocabulary, which needs no download.
    "tiny": {
        "image_size": 128,
        "mask_stride": 2,
        "swin_width": 32,
        "swin_depths": (1, 1, 2),
        "swin_heads": (1, 2, 4),
        "window": 8,
        "drop_path": 0.0,
        "vocab_size": 49408,
        "eos_id": 49407,
        "text_positions": 24,
        "text_width": 96,
        "text_layers": 2,
        "text_heads": 4,
        "text_hidden": 192,
        "text_dropout": 0.0,
        "width": 64,
        "heads": 4,
        "pixel_layers": 2,
        "pixel_hidden": 128,
        "side": 8,
        "region_layers": 3,
        "region_hidden": 128,
        "mask_padding": True,
        "zero_filters": True,
    },
}


def rela_config(fields: Mapping[str, Any]) -> ReLAConfig:
    """Builds a config from a `preset` (default `B`) and the fields that override it.

    Raises:
        ValueError: a preset or field is unknown (the message names the nearest), or the sizes do not
            fit together.
    """
    return naming.from_preset(ReLAConfig, PRESETS, fields, default="B", what="model 'rela'")
