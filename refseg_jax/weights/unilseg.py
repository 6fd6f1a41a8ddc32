"""The released weights of UniLSeg (yongliu20/UniLSeg): their table, sizes and config.

Names and layouts are those of `model/segmenter.py`, `model/layers.py` and `model/transformer.py` in that
repository. The names below `backbone` are OpenAI's CLIP's, those below `backbone_visual` Microsoft's
Swin's.
"""

import dataclasses
import re
from collections.abc import Callable, Mapping
from typing import Any

import jax

from refseg_jax.errors import UserError
from refseg_jax.models.unilseg import UniLSeg
from refseg_jax.models.unilseg_config import UniLSegConfig
from refseg_jax.weights import clip, hub, swin, towers
from refseg_jax.weights.folder import weight_file
from refseg_jax.weights.opened import Opened
from refseg_jax.weights.readers import open_weights
from refseg_jax.weights.table import (
    BATCHES,
    Rule,
    Table,
    batch_norm,
    below,
    convolution,
    linear,
    multihead,
    norm,
    pointwise,
    rename,
    transposed,
)

#: Settings of the public code that do not follow from the arrays: heads of all attention in the
#: decoder, channels of a head in the text tower, tokens per expression, threshold on probabilities, and
#: the way of its masks to the pixels of the image (see `refseg_jax.images.resize.logits_on_canvas`).
HEADS, TEXT_HEAD_WIDTH, CONTEXT_LENGTH, THRESHOLD, RESAMPLE = 8, 64, 17, 0.35, "unilseg"

#: The tokenizer of the public code.
TOKENIZER = "clip"

#: What torch's DataParallel puts before every name. The public code loads its file into one.
_PARALLEL = "module."

_CLIP, _SWIN = "backbone.", "backbone_visual."

#: Why CLIP's image tower is not read.
_BLIND = "CLIP's image tower, which the public code loads and never runs: a Swin sees the image"


def run_config(config: UniLSegConfig) -> dict[str, Any]:
    """The part of a run's config that predictors, evaluations and exports read."""
    return {
        "model": {"name": "unilseg", **dataclasses.asdict(config)},
        # Trained on many datasets; none is recorded in the file.
        "data": {
            "dataset": "",
            "resize": "letterbox",
            "context_length": CONTEXT_LENGTH,
            "tokenizer": TOKENIZER,
        },
        "eval": {"threshold": THRESHOLD, "resample": RESAMPLE, "protocol": "cris"},
    }


def open_unilseg(source: str, *, sha256: str = "") -> Opened[UniLSegConfig, UniLSeg]:
    """Opens a released UniLSeg; none of its large arrays is read.

    Args:
        source: the file, or a folder in which it is the only weight file.
        sha256: digest of the file, see `open_weights`.

    Raises:
        UserError: the source does not exist, is damaged, or holds another model.
    """
    path = hub.local_path(source)
    file = weight_file(path, ()) if path.is_dir() else path
    weights = open_weights(file, sha256=sha256)
    prefix = _PARALLEL if all(entry.startswith(_PARALLEL) for entry in weights.shapes) else ""
    try:
        config = sizes(_part(prefix, weights.shapes))
    except (LookupError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise UserError(
            f"{file}: not the weights of a released UniLSeg ({type(error).__name__}: "
            f"{str(error)[:100]}); name another file or another format"
        ) from None
    return Opened(weights, unilseg(prefix), config, UniLSeg)


def unilseg(prefix: str = "") -> Table:
    """The table for the state dict of the public code.

    Args:
        prefix: what stands before every name.
    """
    text = (rule for rule in clip.OPENAI.rules if not rule.pattern.startswith("visual"))
    positions = r"layers\.(\d+)\.blocks\.(\d+)\.attn\.relative_position_bias_table"
    rules = (
        *below(_CLIP, text),
        # Before the tower's own rule, which resizes the table: the model has the window of the file.
        *below(_SWIN, (rename(positions, r"vision.stages.\1.blocks.\2.relative_positions"),)),
        *below(_SWIN, swin.ms_swin((), "vision.").rules),
        *_pre_fusion(),
        *_vision_path(r"pixel_decoder\.", "vision_path"),
        *_language_path(r"query_decoder\.", "language_path"),
    )
    unread = {
        r"backbone\.visual\..*": _BLIND,
        r"backbone\.logit_scale": "the temperature of CLIP's contrastive loss",
        r"backbone_visual\..*\.relative_position_index": swin.INDEX,
        **BATCHES,
    }
    start = re.escape(prefix)
    return Table(below(prefix, rules), {start + name: why for name, why in unread.items()}, {})


def sizes(source: Mapping[str, jax.ShapeDtypeStruct]) -> UniLSegConfig:
    """The config of a released UniLSeg, from the shapes of its arrays.

    Shapes do not tell the number of heads in the decoder, which is `HEADS`.

    Raises:
        KeyError, ValueError: it is not a UniLSeg, or its sizes do not fit together.
    """
    image = towers.swin_sizes(swin.ms_swin(()), _part(_SWIN, source), {})
    shape = lambda name: source[name].shape  # noqa: E731
    count = lambda pattern: sum(re.fullmatch(pattern, entry) is not None for entry in source)  # noqa: E731
    vocab_size, text_width = shape("backbone.token_embedding.weight")
    mask_width, width = shape("pixel_decoder.mask_features.0.weight")[:2]
    return UniLSegConfig(
        swin_width=image.width,
        swin_depths=image.depths,
        swin_heads=image.heads,
        window=image.window,
        vocab_size=vocab_size,
        # OpenAI's CLIP reads the sentence at the largest id of a text, which is that of EOS.
        eos_id=vocab_size - 1,
        text_positions=shape("backbone.positional_embedding")[0],
        text_width=text_width,
        text_layers=count(r"backbone\.transformer\.resblocks\.\d+\.ln_1\.weight"),
        text_heads=text_width // TEXT_HEAD_WIDTH,
        embedding_width=shape("backbone.text_projection")[1],
        width=width,
        heads=HEADS,
        hidden=shape("pixel_decoder.cross_attn_1.linear1.bias")[0],
        mask_width=mask_width,
        query_layers=count(
            r"query_decoder\.query_transformer\.decoder\.layers\.\d+\.norm1\.weight"
        ),
    )


def _part(
    prefix: str, source: Mapping[str, jax.ShapeDtypeStruct]
) -> dict[str, jax.ShapeDtypeStruct]:
    """The entries of a part, without their prefix."""
    return {e.removeprefix(prefix): leaf for e, leaf in source.items() if e.startswith(prefix)}


def _pre_fusion() -> tuple[Rule, ...]:
    """The rules of Pre-Fusion; the public code keeps the coarsest of four scales apart."""
    fine, coarse = r"pre_fusion.{}.\1", "pre_fusion.{}.3"
    return (
        *linear(r"all_fusion_proj\.(\d+)", fine.format("words")),
        *linear("fusion_proj", coarse.format("words")),
        *multihead(r"all_fusion_module\.(\d+)\.multihead_attn", fine.format("attentions")),
        *multihead(r"fusion\.multihead_attn", coarse.format("attentions")),
    )


def _vision_path(source: str, target: str) -> tuple[Rule, ...]:
    """The rules of the pyramid, whose levels are numbered from 1 there."""
    levels = []
    for level in range(4):
        layer, ours = rf"{source}cross_attn_{level + 1}", f"{target}.layers.{level}"
        levels += [
            *_unit(rf"{source}adapter_{level + 1}", f"{target}.adapters.{level}", pointwise),
            *_unit(rf"{source}layer_{level + 1}", f"{target}.convolutions.{level}", convolution),
            *_layer(layer, ours),
        ]
    return (*levels, *_unit(rf"{source}mask_features", f"{target}.masks", convolution))


def _language_path(source: str, target: str) -> tuple[Rule, ...]:
    decoder = rf"{source}query_transformer\.decoder"
    return (
        *_unit(rf"{source}visual_proj", f"{target}.visual", convolution),
        *_unit(rf"{source}text_proj", f"{target}.text", transposed),
        *_layer(rf"{decoder}\.layers\.(\d+)", rf"{target}.layers.\1"),
        *norm(rf"{decoder}\.norm", f"{target}.norm"),
    )


def _unit(source: str, target: str, change: Callable[..., Any]) -> tuple[Rule, ...]:
    """The rules of a convolution or linear map, and the BatchNorm behind it."""
    return (
        rename(rf"{source}\.0\.weight", f"{target}.convolution.kernel", change),
        *batch_norm(rf"{source}\.1", f"{target}.norm"),
    )


def _layer(source: str, target: str) -> tuple[Rule, ...]:
    """The rules of a layer of DETR's decoder."""
    return (
        *multihead(rf"{source}\.self_attn", f"{target}.self_attention"),
        *norm(rf"{source}\.norm1", f"{target}.self_attention_norm"),
        *multihead(rf"{source}\.multihead_attn", f"{target}.cross_attention"),
        *norm(rf"{source}\.norm2", f"{target}.cross_attention_norm"),
        *linear(rf"{source}\.linear1", f"{target}.mlp.up"),
        *linear(rf"{source}\.linear2", f"{target}.mlp.down"),
        *norm(rf"{source}\.norm3", f"{target}.mlp_norm"),
    )
