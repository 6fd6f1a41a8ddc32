"""The config of GRSer, with every choice as a field, and its presets."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from refseg_jax import naming
from refseg_jax.decoders.group_decoder import Distance, GroupDecoderConfig
from refseg_jax.decoders.heatmap_hierarchy import Channels, Rank
from refseg_jax.encoders.bert import BertConfig
from refseg_jax.encoders.language_swin import LanguageSwinConfig

#: How BERT's words become one vector, see `GRSerConfig.text_pooling`.
TEXT_POOLINGS = ("cls", "mean")

#: Network pixels per cell of the features.
STRIDE = 4


@dataclasses.dataclass(frozen=True)
class GRSerConfig:
    """Sizes and choices; the defaults are those of the paper, with Swin-B.

    The paper states neither the size of Swin nor its window; the defaults are those of LAVT, which it
    follows.

    Attributes:
        image_size: side of the square network input in pixels (416, section 5.2); a multiple of 4.
        mask_stride: network pixels per cell of the output masks, 1, 2 or 4. Masks are computed at
            stride 4 and resized bilinearly. Not stated in the paper: 4 is that of the features.
        swin_width, swin_depths, swin_heads, window, pixels, drop_path: of the backbone, see
            `LanguageSwinConfig`. Its gate is live, as in LAVT.
        vocab_size, text_positions, text_width, text_layers, text_heads, text_hidden, text_dropout:
            of BERT, see `BertConfig`; C_l is `text_width`.
        eos_id: id of the token that ends a text; 102 is BERT's [SEP].
        text_pooling: L, one vector, from the words: `cls`, that of the first token, or `mean`, over all
            tokens of the text. Not stated in the paper. BERT trains its first token only below its
            pooler, so that `mean` says more about a text before any fine-tuning.
        width, group_size, predictor_width, predictor_layers, language_heatmap, rank, inference_rank,
            channels, pooling, distance: of the decoder, see `GroupDecoderConfig`.
        margin: m of the decision: an image is positive if d_pos + m < d_neg (section 3.1). The paper
            has one m, 1, for the decision and for the triplet loss; that of the loss is a field of the
            objective.
        mirror_encodes: whether the mirror branch fuses the images with the words of the anti-expression
            again, or shares the features of the expression. Section 3.4 adds a pipeline "on the basis
            of" the original one that swaps L and L_anti. Encoding again doubles the cost of a step.
        dtype: compute type, `float32` or `bfloat16`; heatmaps, distances and logits are f32.
        remat: recompute activations inside the blocks in the backward pass instead of storing them.
    """

    image_size: int = 416
    mask_stride: int = 4
    swin_width: int = 128
    swin_depths: tuple[int, ...] = (2, 2, 18, 2)
    swin_heads: tuple[int, ...] = (4, 8, 16, 32)
    window: int = 12
    pixels: str = "imagenet"
    drop_path: float = 0.3
    vocab_size: int = 30522
    eos_id: int = 102
    text_positions: int = 512
    text_width: int = 768
    text_layers: int = 12
    text_heads: int = 12
    text_hidden: int = 3072
    text_dropout: float = 0.1
    text_pooling: str = "mean"
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
    margin: float = 1.0
    mirror_encodes: bool = True
    dtype: str = "float32"
    remat: bool = False

    def __post_init__(self) -> None:
        """Checks the fields.

        Raises:
            ValueError: the sizes do not fit together, or a name is unknown.
        """
        if self.text_pooling not in TEXT_POOLINGS:
            raise ValueError(naming.unknown("text_pooling", self.text_pooling, TEXT_POOLINGS))
        if self.mask_stride not in (1, 2, STRIDE):
            raise ValueError(f"mask_stride={self.mask_stride} is not 1, 2 or {STRIDE}")
        if self.image_size < 1 or self.image_size % STRIDE:
            raise ValueError(f"image_size={self.image_size} is not divisible by {STRIDE}")
        # Each of these configs checks its own fields.
        _ = self.image_tower, self.text_tower, self.decoder

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
            gate="live",
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
    def decoder(self) -> GroupDecoderConfig:
        """The config of the decoder."""
        return GroupDecoderConfig(
            width=self.width,
            group_size=self.group_size,
            predictor_width=self.predictor_width,
            predictor_layers=self.predictor_layers,
            language_heatmap=self.language_heatmap,
            rank=self.rank,
            inference_rank=self.inference_rank,
            channels=self.channels,
            pooling=self.pooling,
            distance=self.distance,
        )


#: Preset -> the fields that differ from the paper's.
PRESETS: Mapping[str, Mapping[str, Any]] = {
    "B": {},
    # For Scenes; uses CLIP's vocabulary, which needs no download, and one more row for `<no>`.
    "tiny": {
        "image_size": 128,
        "mask_stride": 2,
        "swin_width": 32,
        "swin_depths": (1, 1, 2),
        "swin_heads": (1, 2, 4),
        "window": 8,
        "drop_path": 0.0,
        "vocab_size": 49409,
        "eos_id": 49407,
        "text_positions": 24,
        "text_width": 96,
        "text_layers": 2,
        "text_heads": 4,
        "text_hidden": 192,
        "text_dropout": 0.0,
        "width": 64,
        "predictor_width": 64,
        "mirror_encodes": False,
    },
}


def grser_config(fields: Mapping[str, Any]) -> GRSerConfig:
    """Builds a config from a `preset` (default `B`) and the fields that override it.

    Raises:
        ValueError: a preset or field is unknown (the message names the nearest), or the sizes do not
            fit together.
    """
    return naming.from_preset(GRSerConfig, PRESETS, fields, default="B", what="model 'grser'")
