"""The released weights of LAVT (yz93/LAVT-RIS) as the start of its encoder and of BERT.

Names and layouts are those of `lib/backbone.py` and `lib/_utils.py` in that repository, which ReLA's
public code took over. A file of LAVT-one has BERT as `text_encoder`, one of LAVT has it in a state dict
of its own, `bert_model`, beside that of the model.
"""

import re
from collections.abc import Mapping
from typing import Any

import jax

from refseg_jax.errors import UserError
from refseg_jax.weights import bert, hub, loader, swin
from refseg_jax.weights.folder import weight_file
from refseg_jax.weights.readers import open_weights
from refseg_jax.weights.table import Rule, Table, below, pointwise, rename, transposed

#: The state dict of BERT in a file of LAVT; `open_weights` puts its name before those of its entries.
BERT = "bert_model"

#: Prefixes of the parameters that a file may fill.
_VISION, _TEXT = "vision.", "text."

_DECODER = "LAVT's decoder, whose masks are those of one image"
_LAST_GATE = "the gate behind the last stage, which nothing follows"
_NO_WORDS = "the file has no BERT"


def load_lavt(source: str, *, target: Mapping[str, jax.ShapeDtypeStruct]) -> dict[str, jax.Array]:
    """Loads the parameters of a model that a released LAVT provides.

    Args:
        source: the file, or a folder in which it is the only weight file.
        target: path -> shape, dtype and `sharding` of every parameter of the model.

    Returns:
        Path -> array with the given sharding: backbone, fusions, gates, and BERT if the file has one.

    Raises:
        UserError: the source does not exist, is damaged, holds another model, or does not fit.
    """
    path = hub.local_path(source)
    file = weight_file(path, ()) if path.is_dir() else path
    weights = open_weights(file, beside=(BERT,))
    found = table(weights.shapes)
    own = {p: leaf for p, leaf in target.items() if p.startswith((_VISION, _TEXT))}
    plan = loader.plan(found, weights.shapes, own, name=weights.name)
    return loader.load(plan, weights, {p: target[p].sharding for p in plan.targets})


def table(entries: Mapping[str, Any]) -> Table:
    """The table for the state dicts of the public code.

    Args:
        entries: the entries of the file.

    Raises:
        UserError: it is no LAVT.
    """
    stages = {int(m[1]) for m in (re.match(r"backbone\.layers\.(\d+)\.", e) for e in entries) if m}
    fused = any(".fusion.image_lang_att." in entry for entry in entries)
    if not fused or stages != set(range(len(stages))):
        raise UserError(
            "config.init.lavt: not the weights of LAVT, which fuses words in every stage of a Swin; "
            "a plain Swin is for config.init.swin"
        )
    last = len(stages) - 1
    towers = [p for p in ("text_encoder.", f"{BERT}.") if any(e.startswith(p) for e in entries)]
    stage = r"backbone\.layers\.(\d+)"
    rules = (
        *below("backbone.", swin.ms_swin((), f"{_VISION}swin.").rules),
        *fusion(rf"{stage}\.fusion", rf"{_VISION}fusions.\1"),
        *gate(rf"backbone\.layers\.((?!{last}\.)\d+)\.res_gate", rf"{_VISION}gates.\1"),
        *(rule for prefix in towers for rule in below(prefix, bert.hf_bert((), _TEXT).rules)),
    )
    unread = {
        r".*\.relative_position_index": swin.INDEX,
        rf"backbone\.layers\.{last}\.res_gate\.[02]\.weight": _LAST_GATE,
        r"classifier\..*": _DECODER,
        r"(text_encoder|bert_model)\.embeddings\.position_ids": "0, 1, 2, ...",
        r"(text_encoder|bert_model)\.pooler\.dense\.(weight|bias)": "words are read",
    }
    return Table(rules, unread, {} if towers else {rf"{re.escape(_TEXT)}.*": _NO_WORDS})


def pointwise_linear(source: str, target: str) -> tuple[Rule, Rule]:
    """The rules from a 1x1 convolution to a `Linear`."""
    return (
        rename(rf"{source}\.weight", f"{target}.kernel", pointwise),
        rename(rf"{source}\.bias", f"{target}.bias"),
    )


def fusion(source: str, target: str) -> tuple[Rule, ...]:
    """The rules of a pixel-word attention module (`PWAM`) to `WordFusion`."""
    attention = rf"{source}\.image_lang_att"
    return (
        *pointwise_linear(rf"{source}\.vis_project\.0", f"{target}.vision"),
        *pointwise_linear(rf"{attention}\.f_query\.0", f"{target}.query"),
        *pointwise_linear(rf"{attention}\.f_key\.0", f"{target}.key"),
        *pointwise_linear(rf"{attention}\.f_value\.0", f"{target}.value"),
        *pointwise_linear(rf"{attention}\.W\.0", f"{target}.out"),
        *pointwise_linear(rf"{source}\.project_mm\.0", f"{target}.join"),
    )


def gate(source: str, target: str) -> tuple[Rule, ...]:
    """The rules of a gate between two stages to `LanguageGate`."""
    return (
        rename(rf"{source}\.0\.weight", f"{target}.up.kernel", transposed),
        rename(rf"{source}\.2\.weight", f"{target}.down.kernel", transposed),
    )
