"""The tables for Swin in Hugging Face's and Microsoft's files.

Names and layouts are those of `modeling_swin.py` (transformers, before and since version 5) and
`models/swin_transformer.py` (microsoft/Swin-Transformer; LAVT, ReLA and Swin's object detection use the
same names). Both merge 2 x 2 tokens column by column, as `PatchMerging` does, so `downsample` needs no
reordering. If the window of the model has another size than that of the file, the tables of relative
positions are resized.
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

#: Bound on the number of stages; no Swin has as many.
_STAGES = 8

_CLASSIFIER_NORM = (
    "the norm before a classifier; Swin's object detection and LAVT start each stage's norm afresh"
)
_STAGE_NORM = "norms of the stages' outputs: fresh, because a classifier has none"
#: Why the index of relative positions is not read.
INDEX = "which row of the table belongs to which pair, which the tower makes itself"


def hf_swin(entries: Iterable[str], prefix: str = "") -> Table:
    """The table for Hugging Face's `SwinModel`, `SwinForImageClassification` and `SwinBackbone`.

    Args:
        entries: names of the entries of the file. If any of them is a norm of a stage, the file is a
            backbone and must have all of these norms; else they keep their initial values.
        prefix: prefix of the tower's parameters in the model, with its dot.
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
    """The table for Microsoft's names, in classifiers (`norm`) and backbones (`norm0`..`norm3`).

    Args:
        entries: names of the entries of the file, see `hf_swin`.
        prefix: prefix of the tower's parameters in the model, with its dot.
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


#: Format -> function that makes the table, from the names of a file's entries and the prefix of the
#: tower in the model.
FORMATS: Mapping[str, Callable[..., Table]] = {"hf_swin": hf_swin, "ms_swin": ms_swin}


def relative_positions(value: Any, shape: tuple[int, ...]) -> Any:
    """Resizes a table of relative positions to the window of the model.

    See `refseg_jax.images.resize.resize_relative_positions`.
    """
    return resize_relative_positions(value, (round(shape[0] ** 0.5) + 1) // 2)


def _patches(source: str, prefix: str) -> tuple[Rule, Rule]:
    """The rules from a 4 x 4 convolution to a product with flat patches (row, column, colour)."""
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
    """The rules of the norms of stages; the braces in `source` hold the number, counted from `first`."""
    pairs = (norm(source.format(n + first), f"{prefix}norms.{n}") for n in range(_STAGES))
    return tuple(rule for pair in pairs for rule in pair)


def _unwritten(entries: Iterable[str], pattern: str, prefix: str) -> dict[str, str]:
    backbone = any(re.fullmatch(pattern, entry) for entry in entries)
    return {} if backbone else {rf"{re.escape(prefix)}norms\.\d+\.(scale|bias)": _STAGE_NORM}
