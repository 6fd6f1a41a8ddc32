"""The config of UniRES, with every open choice as a field, and its presets."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from refseg_jax import naming
from refseg_jax.decoders.heads import HEADS
from refseg_jax.encoders.stem import COARSE, FINE
from refseg_jax.layers.transformer import ACTIVATIONS

#: Names of the compute types in configs (parameters are always f32).
DTYPES = ("float32", "bfloat16")


@dataclasses.dataclass(frozen=True)
class UniRESConfig:
    """Sizes and choices; the defaults are ViT-B/16 at 416.

    The paper states the CLIP towers, 64 and 8 group tokens, one region filter per level and the two
    decoding stages. Nothing else is stated in the paper. Other defaults follow CRIS, on whose data
    processing UniRES builds, with the changes that ETRIS made to CRIS for a ViT.

    Attributes:
        image_size: side of the square network input in pixels.
        patch_size: side of a patch in pixels; divides `image_size`.
        vision_width, vision_layers, vision_heads: of the vision tower; the number of layers is even.
        stem_width: channels of a convolutional stem before the vision tower, for training from
            scratch (not in the paper); 0 for CLIP's patch embedding.
        embedding_width: width of CLIP's joint space, into which both towers project.
        text_width, text_layers, text_heads: of the text tower.
        activation: of the MLPs in both towers: `quick_gelu` (OpenAI's CLIP) or `gelu` (most OpenCLIP
            models).
        vocab_size, text_positions, eos_id: size of CLIP's vocabulary, length of its table of positions,
            and id of `<|endoftext|>`.
        low_tokens, high_tokens: number of group tokens in the first and in the second half of the
            vision tower. 0 switches a level off; without both levels there is no second stage, as in
            Table 8 of the paper.
        filter_norm: normalise group tokens before the region filter. Not stated in the paper, whose
            Figure 4 shows no norm; the default is on, because the scale of their residual stream is
            arbitrary.
        decoder_width, decoder_heads, decoder_hidden: of the region filters and of both stages. Image
            tokens (projected by CLIP) and words of another width get a linear map to `decoder_width`.
        decoder_layers: layers of stage 1; stage 2 has one layer.
        dropout: rate in both stages.
        head: `projector` | `pixel_shuffle` | `linear` | `pixel_kernel` (needs a convolutional stem),
            see `refseg_jax.decoders.heads`.
        mask_stride: network pixels per mask cell; divides `patch_size`.
        presence_head: also predict whether the image contains a referent (not in the paper); trained
            by `config.objective.presence`.
        mask_evidence: let the presence head also see the decoded mask (not in the paper), see
            `MaskEvidence`. It adds parameters: a model with it cannot start from a checkpoint without
            it.
        dtype: compute type, `float32` or `bfloat16`; sums, norms and softmax are in f32.
        remat: recompute activations inside the blocks in the backward pass instead of storing them.
    """

    image_size: int = 416
    patch_size: int = 16
    vision_width: int = 768
    vision_layers: int = 12
    vision_heads: int = 12
    stem_width: int = 0
    embedding_width: int = 512
    text_width: int = 512
    text_layers: int = 12
    text_heads: int = 8
    activation: str = "quick_gelu"
    vocab_size: int = 49408
    text_positions: int = 77
    eos_id: int = 49407
    low_tokens: int = 64
    high_tokens: int = 8
    filter_norm: bool = True
    decoder_width: int = 512
    decoder_heads: int = 8
    decoder_hidden: int = 2048
    decoder_layers: int = 3
    dropout: float = 0.1
    head: str = "projector"
    mask_stride: int = 4
    presence_head: bool = False
    mask_evidence: bool = False
    dtype: str = "float32"
    remat: bool = False

    def __post_init__(self) -> None:
        """Checks the fields.

        Raises:
            ValueError: the sizes do not fit together, or a name is unknown.
        """
        if self.head not in HEADS:
            raise ValueError(naming.unknown("head", self.head, HEADS))
        if self.dtype not in DTYPES:
            raise ValueError(naming.unknown("dtype", self.dtype, DTYPES))
        if self.activation not in ACTIVATIONS:
            raise ValueError(naming.unknown("activation", self.activation, ACTIVATIONS))
        for field in dataclasses.fields(self):
            least = 0 if field.name in ("low_tokens", "high_tokens", "eos_id", "stem_width") else 1
            if field.type is int and getattr(self, field.name) < least:
                raise ValueError(f"{field.name}={getattr(self, field.name)} is less than {least}")
        if not 0.0 <= self.dropout < 1.0:
            raise ValueError(f"dropout={self.dropout} is not in [0, 1)")
        for whole, part in (
            ("image_size", "patch_size"),
            ("patch_size", "mask_stride"),
            ("vision_width", "vision_heads"),
            ("text_width", "text_heads"),
            ("decoder_width", "decoder_heads"),
        ):
            if getattr(self, whole) % getattr(self, part):
                raise ValueError(
                    f"{part}={getattr(self, part)} does not divide {whole}={getattr(self, whole)}"
                )
        if self.mask_evidence and not self.presence_head:
            raise ValueError("mask_evidence is of the presence head: set presence_head, too")
        if self.decoder_width % 4:
            raise ValueError(
                f"decoder_width={self.decoder_width}: its 2-D positions need 4 | width"
            )
        if self.stem_width and self.patch_size % COARSE:
            raise ValueError(f"patch_size={self.patch_size}: a stem needs a multiple of {COARSE}")
        if self.head == "pixel_kernel" and not (self.stem_width and FINE % self.mask_stride == 0):
            raise ValueError("head 'pixel_kernel' needs stem_width > 0 and mask_stride 1, 2 or 4")
        if self.vision_layers % 2:
            raise ValueError(f"vision_layers={self.vision_layers} has no halves")

    @property
    def grid(self) -> int:
        """Patches along a side of the image."""
        return self.image_size // self.patch_size


#: Preset -> the fields that differ from ViT-B/16 at 416.
PRESETS: Mapping[str, Mapping[str, Any]] = {
    "B/16": {},
    "B/32": {"patch_size": 32},
    # The projector doubles the resolution, but 14 is not a power of two times a useful mask stride.
    "L/14": {
        "image_size": 420,
        "patch_size": 14,
        "vision_width": 1024,
        "vision_layers": 24,
        "vision_heads": 16,
        "embedding_width": 768,
        "text_width": 768,
        "text_heads": 12,
        "decoder_width": 768,
        "decoder_heads": 12,
        "decoder_hidden": 3072,
        "head": "pixel_shuffle",
        "mask_stride": 2,
    },
    "tiny": {
        "image_size": 128,
        "patch_size": 16,
        "stem_width": 48,
        "vision_width": 128,
        "vision_layers": 4,
        "vision_heads": 4,
        "embedding_width": 96,
        "text_width": 96,
        "text_layers": 2,
        "text_heads": 4,
        "low_tokens": 16,
        "high_tokens": 4,
        "decoder_width": 96,
        "decoder_heads": 4,
        "decoder_hidden": 192,
        "decoder_layers": 1,
        "dropout": 0.0,
        "head": "pixel_kernel",
        "mask_stride": 2,
    },
}


def unires_config(fields: Mapping[str, Any]) -> UniRESConfig:
    """Builds a config from a `preset` (default `B/16`) and the fields that override it.

    Raises:
        ValueError: a preset or field is unknown (the message names the nearest), or the sizes do not
            fit together.
    """
    return naming.from_preset(UniRESConfig, PRESETS, fields, default="B/16", what="model 'unires'")
