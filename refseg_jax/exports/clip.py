"""Exports a model's CLIP towers in the layout of `transformers.CLIPModel`.

Names and layouts come from the table of the import, `refseg_jax.weights.clip.HF`, read backwards, so
that the exported towers can be imported again.
"""

import math
import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from refseg_jax.exports.arrays_file import write_arrays
from refseg_jax.exports.source import Source
from refseg_jax.exports.tokenizer_files import is_clips, write_json, write_tokenizer
from refseg_jax.images.colours import CLIP_MEAN, CLIP_STD
from refseg_jax.layers.norm import EPSILON
from refseg_jax.weights import clip
from refseg_jax.weights.table import Change, Table, convolution, positions, row, same, transposed

FOLDER = "clip"

#: CLIP's initial value. This project trains without it.
LOGIT_SCALE = math.log(1 / 0.07)

#: Change of an import -> its inverse. Positions stay, since they have the model's own grid.
UNDO: Mapping[Change, Callable[[np.ndarray], np.ndarray]] = {
    same: lambda value: value,
    positions: lambda value: value,
    transposed: lambda value: value.transpose(1, 0),
    convolution: lambda value: value.transpose(3, 2, 0, 1),
    row: lambda value: value[0],
}


def write_towers(target: Path, source: Source) -> str:
    """Writes the folder `clip/`, if the towers are CLIP's.

    Args:
        target: the exported folder.
        source: the whole model.

    Returns:
        A paragraph about the folder, or about why there is none, for the model card.
    """
    model = source.model
    if model["name"] != "unires":
        return f"There is no folder `{FOLDER}`: the towers are not CLIP's."
    if model["stem_width"]:
        return (
            f"There is no folder `{FOLDER}`: the image tower begins with a convolutional stem "
            f"(stem_width={model['stem_width']}), which CLIP's does not have."
        )
    folder = target / FOLDER
    folder.mkdir()
    write_arrays(folder / "model.safetensors", towers(source.params), layout="pt")
    write_json(folder / "config.json", _config(model))
    write_json(folder / "preprocessor_config.json", _images(model["image_size"]))
    if is_clips(source.tokenizer_json):
        # Without these files CLIPProcessor silently makes up a vocabulary of two tokens.
        write_tokenizer(folder, source.tokenizer_json, source.data["context_length"])
        texts = f'`transformers.CLIPProcessor.from_pretrained("{FOLDER}")` prepares what they take.'
    else:
        texts = "Their vocabulary is not CLIP's: take `tokenizer.json` of this folder, no CLIPProcessor."
    return (
        f'`transformers.CLIPModel.from_pretrained("{FOLDER}")` loads the two towers as they are now, '
        f"at {model['image_size']} pixels. {texts} Group tokens are no part of CLIP and are left out; "
        "with them the patches of the whole model are others. `logit_scale` was not trained: it is "
        f"log(1 / 0.07) = {LOGIT_SCALE:.4f}, what CLIP starts with."
    )


def towers(params: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Parameters of both towers, with Hugging Face's names and torch's layouts."""
    old = [path for path in params if not any(re.fullmatch(new, path) for new in clip.NEW)]
    entries = {
        entry: UNDO[change](params[path]) for path, (entry, change) in backwards(clip.HF, old)
    }
    return {**entries, "logit_scale": np.array(LOGIT_SCALE, np.float32)}


def backwards(table: Table, paths: Iterable[str]) -> Iterable[tuple[str, tuple[str, Change]]]:
    """Yields, for each parameter, the entry that an import reads it from, and the change.

    Args:
        table: rules of the import. Beside groups and escaped dots, a pattern must be plain text.
        paths: dotted paths of the parameters.

    Yields:
        Pairs `(path, (entry, change))`.

    Raises:
        ValueError: no rule writes a parameter, or a rule cannot be read backwards.
    """
    single = [(rule.pattern, *rule.writes[0]) for rule in table.rules if len(rule.writes) == 1]
    for path in paths:
        for pattern, template, change in single:
            groups = re.fullmatch(re.sub(r"\\\d", r"(.+)", template.replace(".", r"\.")), path)
            if groups is None:
                continue
            values = iter(groups.groups())
            entry = re.sub(r"\(.*?\)", lambda _, v=values: next(v), pattern).replace(r"\.", ".")
            found = re.fullmatch(pattern, entry)
            plain = re.fullmatch(r"[\w.]+", entry)
            if plain is None or found is None or found.expand(template) != path:
                raise ValueError(f"the rule {pattern!r} cannot be read backwards")
            yield path, (entry, change)
            break
        else:
            raise ValueError(f"no rule writes {path!r}")


def _config(model: Mapping[str, Any]) -> dict[str, Any]:
    """Content of `config.json` for a `CLIPModel`."""

    def tower(name: str) -> dict[str, Any]:
        width = model[f"{name}_width"]
        return {
            "hidden_size": width,
            "intermediate_size": 4 * width,
            "num_hidden_layers": model[f"{name}_layers"],
            "num_attention_heads": model[f"{name}_heads"],
            "hidden_act": model["activation"],
            "layer_norm_eps": EPSILON,
            "projection_dim": model["embedding_width"],
        }

    text = {
        **tower("text"),
        "vocab_size": model["vocab_size"],
        "max_position_embeddings": model["text_positions"],
        "eos_token_id": model["eos_id"],
        # In CLIP's vocabulary SOS comes directly before EOS.
        "bos_token_id": model["eos_id"] - 1,
        "pad_token_id": 0,
    }
    vision = {
        **tower("vision"),
        "image_size": model["image_size"],
        "patch_size": model["patch_size"],
    }
    return {
        "architectures": ["CLIPModel"],
        "model_type": "clip",
        "projection_dim": model["embedding_width"],
        "logit_scale_init_value": LOGIT_SCALE,
        "text_config": text,
        "vision_config": vision,
    }


def _images(size: int) -> dict[str, Any]:
    """Content of `preprocessor_config.json`: transformers feeds CLIP a square from the centre."""
    return {
        "image_processor_type": "CLIPImageProcessor",
        "size": {"shortest_edge": size},
        "crop_size": {"height": size, "width": size},
        "image_mean": CLIP_MEAN,
        "image_std": CLIP_STD,
    }
