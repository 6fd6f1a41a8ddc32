"""Opens the files of Swin and BERT: sizes from the arrays, other settings from `config.json`."""

import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax

from refseg_jax.encoders.bert import EPSILON as BERT_EPSILON
from refseg_jax.encoders.bert import Bert, BertConfig
from refseg_jax.encoders.swin import PATCH, Swin, SwinConfig
from refseg_jax.errors import UserError
from refseg_jax.layers.norm import EPSILON
from refseg_jax.naming import unknown
from refseg_jax.weights import bert, hub, loader, swin
from refseg_jax.weights.folder import read_json, weight_file
from refseg_jax.weights.loader import first_match
from refseg_jax.weights.opened import Opened
from refseg_jax.weights.readers import open_weights
from refseg_jax.weights.table import Table

#: Format -> function that makes the table, from the names of a file's entries and a prefix.
FORMATS: Mapping[str, Callable[..., Table]] = {**swin.FORMATS, **bert.FORMATS}

_FILES = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin")
_CONFIG = "config.json"

#: Width of an attention head in BERT, unless `config.json` says otherwise.
_HEAD_WIDTH = 64

_MOST_BLOCKS = 1000


def load_tower(
    source: str, *, kind: str, prefix: str, target: Mapping[str, jax.ShapeDtypeStruct]
) -> dict[str, jax.Array]:
    """Loads the parameters of a model that a published Swin or BERT provides.

    Args:
        source: as in `open_tower`.
        kind: `swin` or `bert`.
        prefix: prefix of the tower's parameters in the model, with its dot.
        target: path -> shape, dtype and `sharding` of every parameter of the model.

    Returns:
        Path -> array with the given sharding, for all parameters that the file has.

    Raises:
        UserError: as in `open_tower`, or the weights do not fit the model.
    """
    path = hub.locate(source, weights=_FILES, settings=(_CONFIG,))
    formats = [name for name in FORMATS if name.endswith(kind)]
    format = _recognise(open_weights(_weight_file(path)).shapes, formats, str(path))
    tower = open_tower(str(path), format=format)
    own = {p: leaf for p, leaf in target.items() if p.startswith(prefix)}
    table = FORMATS[format](tower.weights.shapes, prefix)
    plan = loader.plan(table, tower.weights.shapes, own, name=tower.weights.name)
    return loader.load(plan, tower.weights, {p: target[p].sharding for p in plan.targets})


def _recognise(entries: Iterable[str], formats: Sequence[str], name: str) -> str:
    """The first format whose embedding of patches or words is among the entries."""
    marks = {
        "hf_swin": r"(swin\.)?embeddings\.patch_embeddings\.projection\.weight",
        "ms_swin": r"patch_embed\.proj\.weight",
        "hf_bert": r"(bert\.)?embeddings\.word_embeddings\.weight",
    }
    for format in formats:
        if any(re.fullmatch(marks[format], entry) for entry in entries):
            return format
    raise UserError(f"{name}: not the weights of any of {', '.join(formats)}; name another file")


def _weight_file(path: Path) -> Path:
    return weight_file(path, _FILES) if path.is_dir() else path


def open_tower(source: str, *, format: str, sha256: str = "") -> Opened[Any, Any]:
    """Opens a Swin or a BERT without reading its arrays.

    Args:
        source: a weight file, a folder that holds one (and its `config.json`), or a name on the hub.
        format: a key of `FORMATS`.
        sha256: digest of the weight file, see `open_weights`.

    Raises:
        UserError: the source does not exist, is damaged, holds another model, or has settings that
            our towers do not support.
    """
    if format not in FORMATS:
        raise UserError(unknown("format", format, FORMATS))
    path = hub.locate(source, weights=_FILES, settings=(_CONFIG,))
    file = _weight_file(path)
    weights = open_weights(file, sha256=sha256)
    table = FORMATS[format](weights.shapes)
    beside = file.with_name(_CONFIG)
    stored = read_json(beside) if format != "ms_swin" and beside.is_file() else {}
    sizes = bert_sizes if format in bert.FORMATS else swin_sizes
    try:
        config = sizes(table, weights.shapes, stored)
        _check(stored, BERT_EPSILON if format in bert.FORMATS else EPSILON, beside)
    except (LookupError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise UserError(
            f"{file}: not the weights of {format} ({type(error).__name__}: {str(error)[:100]}); "
            f"name another file, or another format of {', '.join(FORMATS)}"
        ) from None
    return Opened(weights, table, config, Bert if isinstance(config, BertConfig) else Swin)


def swin_sizes(
    table: Table, source: Mapping[str, jax.ShapeDtypeStruct], stored: Mapping[str, Any]
) -> SwinConfig:
    """The config of a Swin, from the shapes of its arrays.

    Args:
        table: the table of the file's format, for a tower without a prefix.
        source: entry -> shape and dtype.
        stored: content of `config.json` (not used here).

    Raises:
        KeyError, ValueError: it is not a Swin.
    """
    del stored
    shapes = _own_shapes(table, source, r"patch_embedding\.kernel|.*\.relative_positions")
    heads: dict[tuple[int, int], tuple[int, ...]] = {}
    for path, shape in shapes.items():
        if place := re.match(r"stages\.(\d+)\.blocks\.(\d+)\.", path):
            heads[int(place[1]), int(place[2])] = shape
    depths = Counter(stage for stage, _ in heads)
    # Checked before anything counts up to the largest stage number, which may be huge.
    if depths.keys() != set(range(len(depths))) or len(heads) > _MOST_BLOCKS:
        raise ValueError(f"stages {sorted(depths)[:8]} of {len(heads)} blocks")
    if shapes["patch_embedding.kernel"][0] != PATCH:
        raise ValueError(f"patches of another size than {PATCH}")
    return SwinConfig(
        width=shapes["patch_embedding.kernel"][-1],
        depths=tuple(depths[stage] for stage in range(len(depths))),
        heads=tuple(heads[stage, 0][1] for stage in range(len(depths))),
        window=(round(heads[0, 0][0] ** 0.5) + 1) // 2,
    )


def bert_sizes(
    table: Table, source: Mapping[str, jax.ShapeDtypeStruct], stored: Mapping[str, Any]
) -> BertConfig:
    """The config of a BERT, from the shapes of its arrays and its `config.json`.

    Args:
        table: the table of the file's format, for a tower without a prefix.
        source: entry -> shape and dtype.
        stored: content of `config.json`, which tells the number of heads; if it does not, heads are
            64 wide, as in all published BERTs.

    Raises:
        KeyError, ValueError: it is not a BERT.
    """
    shapes = _own_shapes(table, source, r".*_embedding\.embedding|layers\.\d+\.mlp\.up\.bias")
    vocab_size, width = shapes["word_embedding.embedding"]
    return BertConfig(
        vocab_size=vocab_size,
        positions=shapes["position_embedding.embedding"][0],
        token_types=shapes["type_embedding.embedding"][0],
        width=width,
        layers=sum(path.startswith("layers.") for path in shapes),
        heads=int(stored.get("num_attention_heads", width // _HEAD_WIDTH)),
        hidden=shapes["layers.0.mlp.up.bias"][0],
    )


def _own_shapes(
    table: Table, source: Mapping[str, jax.ShapeDtypeStruct], wanted: str
) -> dict[str, tuple[int, ...]]:
    """Parameter -> its shape in the file, before any resizing."""
    shapes: dict[str, tuple[int, ...]] = {}
    for entry, leaf in source.items():
        for path, _ in first_match(table.rules, entry) or ():
            if re.fullmatch(wanted, path):
                # torch's Conv2d has the outputs on its first axis.
                shapes[path] = leaf.shape[::-1] if len(leaf.shape) == 4 else leaf.shape
    return shapes


def _check(stored: Mapping[str, Any], epsilon: float, config: Path) -> None:
    """Checks that the settings in `config.json` are those of our towers.

    Raises:
        UserError: they differ.
    """
    ours: dict[str, Any] = {
        "hidden_act": "gelu",
        "layer_norm_eps": epsilon,
        "position_embedding_type": "absolute",
        "use_absolute_embeddings": False,
        "is_decoder": False,
    }
    other = [f"{key}={stored[key]!r}" for key in ours if stored.get(key, ours[key]) != ours[key]]
    if other:
        wanted = ", ".join(f"{key}={value!r}" for key, value in ours.items())
        raise UserError(f"{config}: {', '.join(other)}; the tower has {wanted}: take other weights")
