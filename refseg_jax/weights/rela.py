"""The released weights of ReLA (henghuiding/ReLA): their table, sizes and config.

Names and layouts are those of `gres_model/GRES.py`, `modeling/backbone/swin.py`,
`modeling/pixel_decoder/msdeformattn.py` and
`modeling/transformer_decoder/referring_transformer_decoder.py` in that repository. The names of the
four products of deformable attention come from Mask2Former (`ops/modules/ms_deform_attn.py`), and those
below `text_encoder` from transformers' `BertModel`.
"""

import dataclasses
import math
import re
from collections.abc import Iterable, Mapping
from typing import Any

import jax
import numpy as np

from refseg_jax.errors import UserError
from refseg_jax.images.colours import IMAGENET_MEAN, IMAGENET_STD
from refseg_jax.models.rela import ReLA
from refseg_jax.models.rela_config import ReLAConfig
from refseg_jax.weights import bert, hub, swin, towers
from refseg_jax.weights.folder import weight_file
from refseg_jax.weights.lavt import fusion, gate, pointwise_linear
from refseg_jax.weights.loader import Weights
from refseg_jax.weights.opened import Opened
from refseg_jax.weights.readers import open_weights
from refseg_jax.weights.table import (
    Rule,
    Table,
    below,
    convolution,
    linear,
    multihead,
    norm,
    pointwise,
    rename,
    row,
    transposed,
)

#: Settings of the public code that do not follow from the arrays: heads of all attention outside the
#: towers, tokens per expression, and the threshold on mask probabilities.
HEADS, CONTEXT_LENGTH, THRESHOLD = 8, 20, 0.5

#: The tokenizer of the public code, as a name on the hub.
TOKENIZER = "bert-base-uncased"

_SWIN, _BERT = "backbone.", "text_encoder."
_PIXELS, _REGIONS = "sem_seg_head.pixel_decoder.", "sem_seg_head.predictor."

#: Modules of the decoder of the branch `main`: those without which it is another one; those that have an
#: entry for each layer; and all.
_ATTENTION = frozenset(("RIA_layers", "RLA_vision", "RLA_lang_att"))
_LAYERED = ("RIA_layers", "RLA_vision", "transformer_ffn_layers")
_DECODER = _ATTENTION | {
    *("query_feat", "query_embed", "level_embed", "lang_proj", "lang_weight", "decoder_norm"),
    *("transformer_ffn_layers", "minimap_embed", "mask_embed", "nt_embed"),
}

#: Why a closed gate is not read, see `LanguageSwinConfig.gate`.
_DEAD = "a gate whose kernels are all zero: closed, and no gradient ever opens it"


def run_config(config: ReLAConfig, tokenizer: str = TOKENIZER) -> dict[str, Any]:
    """The part of a run's config that predictors, evaluations and exports read.

    Args:
        config: config of the model.
        tokenizer: as in `refseg_jax.text.tokenizers.build_tokenizer`.
    """
    return {
        "model": {"name": "rela", **dataclasses.asdict(config)},
        "data": {
            "dataset": "grefcoco/unc_raw",
            "resize": "stretch",
            "context_length": CONTEXT_LENGTH,
            "tokenizer": tokenizer,
        },
        "eval": {"threshold": THRESHOLD, "protocol": "gres"},
    }


def open_rela(source: str, *, sha256: str = "") -> Opened[ReLAConfig, ReLA]:
    """Opens a released ReLA; of its large arrays, only the gates are read.

    Args:
        source: the file, or a folder in which it is the only weight file.
        sha256: digest of the file, see `open_weights`.

    Raises:
        UserError: the source does not exist, is damaged, or holds another model.
    """
    path = hub.local_path(source)
    file = weight_file(path, ()) if path.is_dir() else path
    weights = open_weights(file, sha256=sha256)
    if any(entry.startswith(f"{_SWIN}stem.") for entry in weights.shapes):
        raise UserError(f"{file}: a ReLA with a ResNet; take the one with a Swin")
    _check_decoder(weights)
    try:
        config = sizes(weights.shapes)
    except (LookupError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise UserError(
            f"{file}: not the weights of a released ReLA ({type(error).__name__}: "
            f"{str(error)[:100]}); name another file or another format"
        ) from None
    _check_pixels(weights)
    live = _gate_is_live(weights, config)
    config = dataclasses.replace(config, gate="live" if live else "closed")
    return Opened(weights, rela(live=live), config, ReLA)


def rela(*, live: bool) -> Table:
    """The table for the state dict of the public code.

    Args:
        live: whether the gates are read; a model with closed gates has no parameters for them.
    """
    ours = "vision.swin."
    stage = r"backbone\.layers\.(\d+)"
    positions = rf"{stage}\.blocks\.(\d+)\.attn\.relative_position_bias_table"
    gates = gate(rf"{stage}\.res_gate", r"vision.gates.\1")
    rules = (
        # Before the tower's own rule, which resizes the table: the model has the window of the file.
        rename(positions, rf"{ours}stages.\1.blocks.\2.relative_positions"),
        *below(_SWIN, swin.ms_swin((), ours).rules),
        *fusion(rf"{stage}\.fusion", r"vision.fusions.\1"),
        *(gates if live else ()),
        *below(_BERT, bert.hf_bert((), "text.").rules),
        *_pixel_decoder(re.escape(_PIXELS), "pixels"),
        *_relationship(re.escape(_REGIONS), "regions"),
    )
    unread = {
        rf"{stage}\.blocks\.\d+\.attn\.relative_position_index": swin.INDEX,
        r"text_encoder\.embeddings\.position_ids": "0, 1, 2, ..., which older versions stored",
        "pixel_mean|pixel_std": "ImageNet's mean and deviation, which were compared",
        r"criterion\.empty_weight": "the weights of the loss's classes",
        **({} if live else {rf"{stage}\.res_gate\.[02]\.weight": _DEAD}),
    }
    return Table(rules, unread, {})


def sizes(source: Mapping[str, jax.ShapeDtypeStruct]) -> ReLAConfig:
    """The config of a released ReLA, from the shapes of its arrays.

    Shapes do not tell the number of heads, which is `HEADS`. The gate is closed.

    Raises:
        KeyError, ValueError: it is not a ReLA, or its sizes do not fit together.
    """
    image = towers.swin_sizes(swin.ms_swin(()), _part(_SWIN, source), {})
    text = towers.bert_sizes(bert.hf_bert(()), _part(_BERT, source), {})
    shape = lambda name: source[name].shape  # noqa: E731
    encoder = f"{_PIXELS}transformer.encoder.layers"
    levels, width = shape(f"{_PIXELS}transformer.level_embed")
    regions = shape(f"{_REGIONS}query_feat.weight")[0]
    return ReLAConfig(
        swin_width=image.width,
        swin_depths=image.depths,
        swin_heads=image.heads,
        window=image.window,
        vocab_size=text.vocab_size,
        text_positions=text.positions,
        text_width=text.width,
        text_layers=text.layers,
        text_heads=text.heads,
        text_hidden=text.hidden,
        width=width,
        heads=HEADS,
        pixel_layers=_count(source, rf"{re.escape(encoder)}\.\d+\.norm1\.weight"),
        pixel_points=shape(f"{encoder}.0.self_attn.attention_weights.bias")[0] // (HEADS * levels),
        pixel_hidden=shape(f"{encoder}.0.linear1.bias")[0],
        side=math.isqrt(regions),
        region_layers=_count(source, rf"{re.escape(_REGIONS)}RIA_layers\.\d+\.norm\.weight"),
        region_hidden=shape(f"{_REGIONS}transformer_ffn_layers.0.linear1.bias")[0],
    )


def _count(source: Iterable[str], pattern: str) -> int:
    return sum(re.fullmatch(pattern, entry) is not None for entry in source)


def _part(
    prefix: str, source: Mapping[str, jax.ShapeDtypeStruct]
) -> dict[str, jax.ShapeDtypeStruct]:
    """The entries of a tower, without their prefix."""
    return {e.removeprefix(prefix): leaf for e, leaf in source.items() if e.startswith(prefix)}


def _pixel_decoder(source: str, target: str) -> tuple[Rule, ...]:
    """The rules of the pixel decoder; levels are ordered from the coarsest to the finest in both."""
    layer, ours = rf"{source}transformer\.encoder\.layers\.(\d+)", rf"{target}.layers.\1"
    attention = rf"{layer}\.self_attn"
    return (
        *pointwise_linear(rf"{source}input_proj\.(\d+)\.0", rf"{target}.projections.\1.linear"),
        *norm(rf"{source}input_proj\.(\d+)\.1", rf"{target}.projections.\1.norm"),
        rename(rf"{source}transformer\.level_embed", f"{target}.level_embedding"),
        *linear(rf"{attention}\.sampling_offsets", f"{ours}.attention.offsets"),
        *linear(rf"{attention}\.attention_weights", f"{ours}.attention.shares"),
        *linear(rf"{attention}\.value_proj", f"{ours}.attention.value"),
        *linear(rf"{attention}\.output_proj", f"{ours}.attention.out"),
        *norm(rf"{layer}\.norm1", f"{ours}.attention_norm"),
        *linear(rf"{layer}\.linear1", f"{ours}.mlp.up"),
        *linear(rf"{layer}\.linear2", f"{ours}.mlp.down"),
        *norm(rf"{layer}\.norm2", f"{ours}.mlp_norm"),
        rename(rf"{source}adapter_1\.weight", f"{target}.lateral.linear.kernel", pointwise),
        *norm(rf"{source}adapter_1\.norm", f"{target}.lateral.norm"),
        rename(rf"{source}layer_1\.weight", f"{target}.convolution.kernel", convolution),
        *norm(rf"{source}layer_1\.norm", f"{target}.convolution_norm"),
        *pointwise_linear(rf"{source}mask_features", f"{target}.mask_projection"),
    )


def _relationship(source: str, target: str) -> tuple[Rule, ...]:
    memory, queries = rf"{source}RIA_layers\.(\d+)", rf"{source}RLA_vision\.(\d+)"
    mlp, words = rf"{source}transformer_ffn_layers\.(\d+)", rf"{source}RLA_lang_att"
    ours = rf"{target}.layers.\1"
    return (
        rename(rf"{source}query_feat\.weight", f"{target}.queries"),
        rename(rf"{source}query_embed\.weight", f"{target}.places"),
        rename(rf"{source}level_embed\.weight", f"{target}.level_embedding"),
        *multihead(rf"{memory}\.multihead_attn", f"{ours}.cross_attention"),
        *norm(rf"{memory}\.norm", f"{ours}.cross_attention_norm"),
        *multihead(rf"{queries}\.self_attn", f"{ours}.self_attention"),
        *norm(rf"{queries}\.norm", f"{ours}.self_attention_norm"),
        *linear(rf"{mlp}\.linear1", f"{ours}.mlp.up"),
        *linear(rf"{mlp}\.linear2", f"{ours}.mlp.down"),
        *norm(rf"{mlp}\.norm", f"{ours}.mlp_norm"),
        rename(rf"{source}lang_proj\.weight", f"{target}.words.kernel", transposed),
        rename(rf"{source}lang_weight", f"{target}.words_gate", row),
        *multihead(rf"{words}\.multihead_attn", f"{target}.words_attention"),
        *norm(rf"{words}\.norm", f"{target}.words_norm"),
        *norm(rf"{source}decoder_norm", f"{target}.norm"),
        *linear(rf"{source}mask_embed\.layers\.(\d+)", rf"{target}.filter.layers.\1"),
        *linear(rf"{source}minimap_embed", f"{target}.minimap"),
        *linear(rf"{source}nt_embed\.layers\.(\d+)", rf"{target}.presence.layers.\1"),
    )


def _check_decoder(weights: Weights) -> None:
    """Checks that the decoder, if there is one, is that of the branch `main`.

    Raises:
        UserError: it has modules of another decoder, lacks an attention, or has another number of layers
            of one kind than of the others.
    """
    below = [e.removeprefix(_REGIONS) for e in weights.shapes if e.startswith(_REGIONS)]
    found = {entry.split(".")[0] for entry in below}
    other, missing = sorted(found - _DECODER), sorted(_ATTENTION - found)
    counts = {name: len(_numbers(name, below)) for name in _LAYERED}
    what = ""
    if other or missing:
        what = f"has {', '.join(other[:4])}" if other else f"lacks {', '.join(missing)}"
    elif len({*counts.values()}) > 1:
        what = f"has {', '.join(f'{count} of {name}' for name, count in counts.items())}"
    if found and what:
        raise UserError(
            f"{weights.name}: another decoder than that of ReLA's branch main (it {what}). The branch "
            "original (the paper's version) and systems built on ReLA have decoders of their own, "
            "which are not imported: take the released gres_swin_base.pth, or train the paper's block "
            "with --config.model.relationship=paper"
        )


def _numbers(module: str, entries: Iterable[str]) -> set[str]:
    """Numbers of the layers of a module, which its entries have behind its name."""
    matches = (re.match(rf"{module}\.(\d+)\.", entry) for entry in entries)
    return {match[1] for match in matches if match}


def _check_pixels(weights: Weights) -> None:
    """Checks that the normalisation of images, if the file states it, is that of our Swin.

    Raises:
        UserError: they differ.
    """
    for entry, ours in (("pixel_mean", IMAGENET_MEAN), ("pixel_std", IMAGENET_STD)):
        if entry not in weights.shapes:
            continue
        found = np.ravel(weights.read(entry))
        if found.shape != (3,) or not np.allclose(found, 255 * np.array(ours), atol=1e-2):
            raise UserError(
                f"{weights.name}: {entry} is {found[:4].tolist()}, the model has ImageNet's "
                f"{[round(255 * x, 3) for x in ours]}: take other weights"
            )


def _gate_is_live(weights: Weights, config: ReLAConfig) -> bool:
    """Whether any number in any gate is not zero.

    The shapes are checked here, because a closed gate has no parameter in the model with which the
    loader could compare it.

    Raises:
        UserError: a gate is missing, or has another shape.
    """
    live = False
    for number, width in enumerate(config.image_tower.widths[:-1]):
        for part in (0, 2):
            entry = f"{_SWIN}layers.{number}.res_gate.{part}.weight"
            leaf = weights.shapes.get(entry)
            if leaf is None or leaf.shape != (width, width):
                found = "missing" if leaf is None else f"{leaf.shape}, not {(width, width)}"
                raise UserError(f"{weights.name}: entry {entry!r} is {found}; take another file")
            live = live or bool(np.any(weights.read(entry)))
    return live
