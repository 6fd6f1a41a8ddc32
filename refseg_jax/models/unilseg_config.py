"""The config of UniLSeg, with every choice as a field, and its presets."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from refseg_jax import naming
from refseg_jax.decoders.paper_paths import PathConfig
from refseg_jax.decoders.query_decoder import QueryDecoderConfig
from refseg_jax.decoders.shrunk_pyramid import PyramidConfig
from refseg_jax.encoders.swin import SwinConfig
from refseg_jax.layers.batch_norm import NormKind
from refseg_jax.layers.transformer import ACTIVATIONS

#: The forms of the decoder.
FORMS = ("official", "paper")

#: Network pixels per cell of the mask features.
STRIDE = 4


@dataclasses.dataclass(frozen=True)
class UniLSegConfig:
    """Sizes and choices; the defaults are the public code's, with Swin-B at 480.

    Attributes:
        form: `official`, the decoder of the public code (`PreFusion`, `ShrunkPyramid`, `QueryDecoder`),
            or `paper`, that of the paper (`WordActivations`, `MultiModalPyramid`,
            `SymmetricTransformer`).
        fusion_residual: only for `paper`: add the map to the result of equation 1, which has no
            residual; the public code adds it.
        pre_fusion, vision_path, language_path: the parts of Table 8 of the paper. Without Pre-Fusion,
            the paths read the maps of the backbone; without the vision path, the pyramid has no
            attention; without the language path, the query is a linear map of the sentence. Without
            any, this is the baseline, which the paper does not describe.
        image_size: side of the square network input in pixels; a multiple of 4.
        mask_stride: network pixels per cell of the output masks, 1, 2 or 4. Masks are computed at
            stride 4 and resized bilinearly. Not stated in the paper; 4 follows CRIS, to whose training
            code the authors refer.
        swin_width, swin_depths, swin_heads, window, pixels, drop_path: of the backbone, see
            `SwinConfig`. The public code normalises pixels as CLIP does.
        vocab_size, text_positions, eos_id: size of CLIP's vocabulary, length of its table of positions,
            and id of `<|endoftext|>`.
        text_width, text_layers, text_heads: of CLIP's text tower.
        activation: of the MLPs in the text tower, `quick_gelu` (OpenAI's CLIP) or `gelu`.
        embedding_width: channels of the sentence, which the text tower projects.
        width: channels of the vision path, and of the language path of `paper`. Words of another width
            get a linear map to it.
        heads: attention heads of all parts of the decoder.
        hidden: width inside the MLPs of both paths.
        mask_width: channels of the mask features, and of the language path of `official`.
        query_layers: layers of the language path.
        dropout: rate in both paths.
        norm: after each convolution of the decoder: `batch`, as in the public code, or `group`, for
            small batches.
        presence_head: also predict whether the image contains a referent (not in the paper); trained
            by `config.objective.presence`.
        mask_evidence: let the presence head also see the decoded mask (not in the paper), see
            `MaskEvidence`. It adds parameters: a model with it cannot start from a checkpoint without
            it.
        dtype: compute type, `float32` or `bfloat16`; sums, norms and softmax are in f32.
        remat: recompute activations inside the blocks in the backward pass instead of storing them.
    """

    form: str = "official"
    fusion_residual: bool = False
    pre_fusion: bool = True
    vision_path: bool = True
    language_path: bool = True
    image_size: int = 480
    mask_stride: int = 4
    swin_width: int = 128
    swin_depths: tuple[int, ...] = (2, 2, 18, 2)
    swin_heads: tuple[int, ...] = (4, 8, 16, 32)
    window: int = 7
    pixels: str = "clip"
    drop_path: float = 0.2
    vocab_size: int = 49408
    text_positions: int = 77
    eos_id: int = 49407
    text_width: int = 512
    text_layers: int = 12
    text_heads: int = 8
    activation: str = "quick_gelu"
    embedding_width: int = 512
    width: int = 512
    heads: int = 8
    hidden: int = 2048
    mask_width: int = 256
    query_layers: int = 6
    dropout: float = 0.1
    norm: NormKind = "batch"
    presence_head: bool = False
    mask_evidence: bool = False
    dtype: str = "float32"
    remat: bool = False

    def __post_init__(self) -> None:
        """Checks the fields.

        Raises:
            ValueError: the sizes do not fit together, or a name is unknown.
        """
        for what, name, known in (
            ("form of UniLSeg", self.form, FORMS),
            ("activation", self.activation, ACTIVATIONS),
            ("norm", self.norm, ("batch", "group")),
        ):
            if name not in known:
                raise ValueError(naming.unknown(what, name, known))
        for field in dataclasses.fields(self):
            least = 0 if field.name == "eos_id" else 1
            if field.type is int and getattr(self, field.name) < least:
                raise ValueError(f"{field.name}={getattr(self, field.name)} is less than {least}")
        if not 0.0 <= self.dropout < 1.0:
            raise ValueError(f"dropout={self.dropout} is not in [0, 1)")
        if self.mask_stride not in (1, 2, STRIDE):
            raise ValueError(f"mask_stride={self.mask_stride} is not 1, 2 or {STRIDE}")
        if self.mask_evidence and not self.presence_head:
            raise ValueError("mask_evidence is of the presence head: set presence_head, too")
        self._check_sizes()

    def _check_sizes(self) -> None:
        """Checks that the sizes fit together.

        Raises:
            ValueError: they do not.
        """
        if self.text_width % self.text_heads:
            raise ValueError(
                f"text_heads={self.text_heads} does not divide text_width={self.text_width}"
            )
        for width in (*self.image_tower.widths, self.width, self.mask_width):
            if width % self.heads or width % 4:
                raise ValueError(
                    f"a width of the decoder is {width}; it must be divisible by heads={self.heads} "
                    "and, for its 2-D positions, by 4"
                )
        coarsest = STRIDE << (len(self.swin_depths) - 1)
        if self.image_size < coarsest or self.image_size % STRIDE:
            raise ValueError(
                f"image_size={self.image_size} is less than {coarsest}, the stride of the last stage, "
                f"or not divisible by {STRIDE}"
            )

    @property
    def image_tower(self) -> SwinConfig:
        """The config of the backbone."""
        return SwinConfig(
            width=self.swin_width,
            depths=self.swin_depths,
            heads=self.swin_heads,
            window=self.window,
            pixels=self.pixels,
            drop_path=self.drop_path,
            dtype=self.dtype,
            remat=self.remat,
        )

    @property
    def pyramid(self) -> PyramidConfig:
        """The config of the vision path of form `official`."""
        return PyramidConfig(
            width=self.width,
            mask_width=self.mask_width,
            heads=self.heads,
            hidden=self.hidden,
            dropout=self.dropout,
            norm=self.norm,
            attend=self.vision_path,
            remat=self.remat,
        )

    @property
    def multi_modal(self) -> PathConfig:
        """The config of the vision path of form `paper`."""
        return self._path(layers=int(self.vision_path))

    @property
    def symmetric(self) -> PathConfig:
        """The config of the language path of form `paper`."""
        return self._path(layers=self.query_layers)

    def _path(self, *, layers: int) -> PathConfig:
        return PathConfig(
            width=self.width,
            mask_width=self.mask_width,
            heads=self.heads,
            hidden=self.hidden,
            layers=layers,
            dropout=self.dropout,
            norm=self.norm,
            remat=self.remat,
        )

    @property
    def query_decoder(self) -> QueryDecoderConfig:
        """The config of the language path of form `official`."""
        return QueryDecoderConfig(
            width=self.mask_width,
            layers=self.query_layers,
            heads=self.heads,
            hidden=self.hidden,
            dropout=self.dropout,
            norm=self.norm,
            remat=self.remat,
        )


#: Preset -> the fields that differ from the public code's Swin-B.
PRESETS: Mapping[str, Mapping[str, Any]] = {
    "B": {},
    # Swin-L and the text tower of CLIP ViT-L/14; not in the paper.
    "L": {
        "swin_width": 192,
        "swin_heads": (6, 12, 24, 48),
        "text_width": 768,
        "text_heads": 12,
        "embedding_width": 768,
    },
    # For Scenes.
    "tiny": {
        "image_size": 128,
        "mask_stride": 2,
        "swin_width": 32,
        "swin_depths": (1, 1, 2),
        "swin_heads": (1, 2, 4),
        "window": 8,
        "drop_path": 0.0,
        "text_positions": 24,
        "text_width": 96,
        "text_layers": 2,
        "text_heads": 4,
        "embedding_width": 96,
        "width": 64,
        "heads": 4,
        "hidden": 128,
        "mask_width": 32,
        "query_layers": 2,
        "dropout": 0.0,
        "norm": "group",
    },
}


def unilseg_config(fields: Mapping[str, Any]) -> UniLSegConfig:
    """Builds a config from a `preset` (default `B`) and the fields that override it.

    Raises:
        ValueError: a preset or field is unknown (the message names the nearest), or the sizes do not
            fit together.
    """
    return naming.from_preset(UniLSegConfig, PRESETS, fields, default="B", what="model 'unilseg'")
