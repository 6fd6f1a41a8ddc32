"""Swin from Hugging Face's and from Microsoft's files: the tables.

Names and layouts: `modeling_swin.py` (transformers, before and since version 5) and
`models/swin_transformer.py` (microsoft/Swin-Transformer, whose names LAVT, ReLA and Swin's object
detection have too). Both merge 2 x 2 tokens column by column, so their `downsample` is taken as it
is. A window of another size than the file's has its tables of relative positions resized.
"""

import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from refseg_jax.images.resize import resize_relative_positions
from refseg_jax.weights.table import (
    Rule,
    Table,
    convolution,
    linear,
    norm,
    packed,
    rename,
    transposed,
)

#: More stages than any Swin has.
_STAGES = 8

_CLASSIFIER_NORM = (
    "the norm before a classifier; Swin's object detection and LAVT start each stage's norm afresh"
)
_STAGE_NORM = "norms of the stages' outputs: fresh, because a classifier has none"
#: Why the pairs' index of relative positions is not read.
INDEX = "which row of the table belongs to which pair, which the tower makes itself"


def hf_swin(entries: Iterable[str], prefix: str = "") -> Table:
    """The table of Hugging Face's `SwinModel`, `SwinForImageClassification` and `SwinBackbone`.

    Args:
        entries: names of the file's entries. Where there are norms of stages among them (a
            backbone), all must be; else (a classifier) they stay fresh.
        prefix: of the tower's parameters in the model, with its dot.
    """
    tower = r"(?:swin\.)?"
    stage = rf"{tower}encoder\.layers\.(\d+)"
    block, ours = rf"{stage}\.blocks\.(\d+)", rf"{prefix}stages.\1.blocks.\2"
    attention = rf"{block}\.attention"
    rules = (
        *_patches(rf"{tower}embeddings\.patch_embeddings\.projection", prefix),
        *norm(rf"{tower}embeddings\.norm", f"{prefix}patch_norm"),
        *norm(rf"{block}\.layernorm_before", f"{ours}.attention_norm"),
        *linear(rf"{attention}\.(?:self\.query|q_proj)", f"{ours}.attention.query"),
        *linear(rf"{attention}\.(?:self\.key|k_proj)", f"{ours}.attention.key"),
        *linear(rf"{attention}\.(?:self\.value|v_proj)", f"{ours}.attention.value"),
        *linear(rf"{attention}\.(?:output\.dense|o_proj)", f"{ours}.attention.out"),
        rename(
            rf"{attention}\.(?:self|relative_position_bias)\.relative_position_bias_table",
            f"{ours}.relative_positions",
            relative_positions,
        ),
        *norm(rf"{block}\.layernorm_after", f"{ours}.mlp_norm"),
        *linear(rf"{block}\.(?:intermediate\.dense|mlp\.fc1)", f"{ours}.mlp.up"),
        *linear(rf"{block}\.(?:output\.dense|mlp\.fc2)", f"{ours}.mlp.down"),
        *_merging(stage, prefix),
        *_stage_norms(r"hidden_states_norms\.stage{}", 1, prefix),
    )
    unread = {
        r".*\.relative_position_index": INDEX,
        rf"{tower}layernorm\.(weight|bias)": _CLASSIFIER_NORM,
        r"classifier\.(weight|bias)": "the classifier of ImageNet's classes",
    }
    return Table(rules, unread, _unwritten(entries, r"hidden_states_norms\..*", prefix))


def ms_swin(entries: Iterable[str], prefix: str = "") -> Table:
    """The table of Microsoft's names, of classifiers (`norm`) and backbones (`norm0`..`norm3`).

    Args:
        entries: names of the file's entries; see `hf_swin`.
        prefix: of the tower's parameters in the model, with its dot.
    """
    tower = r"(?:model\.)?(?:backbone\.)?"
    stage = rf"{tower}layers\.(\d+)"
    block, ours = rf"{stage}\.blocks\.(\d+)", rf"{prefix}stages.\1.blocks.\2"
    three = (f"{ours}.attention.query", f"{ours}.attention.key", f"{ours}.attention.value")
    rules = (
        *_patches(rf"{tower}patch_embed\.proj", prefix),
        *norm(rf"{tower}patch_embed\.norm", f"{prefix}patch_norm"),
        *norm(rf"{block}\.norm1", f"{ours}.attention_norm"),
        *packed(rf"{block}\.attn", three, r"qkv\.weight", r"qkv\.bias"),
        *linear(rf"{block}\.attn\.proj", f"{ours}.attention.out"),
        rename(
            rf"{block}\.attn\.relative_position_bias_table",
            f"{ours}.relative_positions",
            relative_positions,
        ),
        *norm(rf"{block}\.norm2", f"{ours}.mlp_norm"),
        *linear(rf"{block}\.mlp\.fc1", f"{ours}.mlp.up"),
        *linear(rf"{block}\.mlp\.fc2", f"{ours}.mlp.down"),
        *_merging(stage, prefix),
        *_stage_norms(rf"{tower}norm{{}}", 0, prefix),
    )
    unread = {
        r".*\.relative_position_index": INDEX,
        r".*\.attn_mask": "the mask of shifted windows, which the tower makes for any size of image",
        rf"{tower}norm\.(weight|bias)": _CLASSIFIER_NORM,
        rf"{tower}head\.(weight|bias)": "the classifier of ImageNet's classes",
    }
    return Table(rules, unread, _unwritten(entries, rf"{tower}norm\d+\..*", prefix))


#: The table of a file, from the names of its entries and the prefix of the tower in the model.
FORMATS: Mapping[str, Callable[..., Table]] = {"hf_swin": hf_swin, "ms_swin": ms_swin}


def relative_positions(value: Any, shape: tuple[int, ...]) -> Any:
    """The table of relative positions for the model's window; see `resize_relative_positions`."""
    return resize_relative_positions(value, (round(shape[0] ** 0.5) + 1) // 2)


def _patches(source: str, prefix: str) -> tuple[Rule, Rule]:
    """A convolution of 4 x 4 pixels to a product of flat patches (row, column, colour)."""
    flat = lambda value, shape: convolution(value, shape).reshape(-1, value.shape[0])  # noqa: E731
    return (
        rename(rf"{source}\.weight", f"{prefix}patch_embedding.kernel", flat),
        rename(rf"{source}\.bias", f"{prefix}patch_embedding.bias"),
    )


def _merging(stage: str, prefix: str) -> tuple[Rule, ...]:
    ours = rf"{prefix}stages.\1.downsample"
    return (
        *norm(rf"{stage}\.downsample\.norm", f"{ours}.norm"),
        rename(rf"{stage}\.downsample\.reduction\.weight", f"{ours}.reduction.kernel", transposed),
    )


def _stage_norms(source: str, first: int, prefix: str) -> tuple[Rule, ...]:
    """Norms whose names number the stages from `first` (at the braces in `source`)."""
    pairs = (norm(source.format(n + first), f"{prefix}norms.{n}") for n in range(_STAGES))
    return tuple(rule for pair in pairs for rule in pair)


def _unwritten(entries: Iterable[str], pattern: str, prefix: str) -> dict[str, str]:
    backbone = any(re.fullmatch(pattern, entry) for entry in entries)
    return {} if backbone else {rf"{re.escape(prefix)}norms\.\d+\.(scale|bias)": _STAGE_NORM}
