"""Loads CLIP's towers from a path or a hub name: finds the files, recognises the format, checks it."""

import dataclasses
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax

from refseg_jax.checkpoints import folder as checkpoint_folder
from refseg_jax.checkpoints.params import lay_out, load_params
from refseg_jax.errors import UserError
from refseg_jax.images.colours import CLIP_MEAN, CLIP_STD
from refseg_jax.layers.transformer import ACTIVATIONS
from refseg_jax.naming import unknown
from refseg_jax.weights import clip, clip_settings, hub
from refseg_jax.weights.folder import read_json, weight_file
from refseg_jax.weights.loader import Weights, load
from refseg_jax.weights.readers import open_weights

#: Format -> names of its weight files in a folder, in order of preference.
_FILES: Mapping[str, tuple[str, ...]] = {
    "hf_clip": ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin"),
    "openclip": ("open_clip_model.safetensors", "open_clip_pytorch_model.bin"),
    "openai_clip": (),
}
_HF_CONFIG, _OPENCLIP_CONFIG = "config.json", "open_clip_config.json"
_HF_IMAGES = "preprocessor_config.json"
_SETTINGS = (_HF_CONFIG, _HF_IMAGES, _OPENCLIP_CONFIG)

#: Width of an attention head in both towers of OpenAI's CLIPs.
_HEAD_WIDTH = 64

#: Exceptions that reading a JSON file with unexpected fields raises.
_STRANGE = (KeyError, TypeError, ValueError, AttributeError, OverflowError, RecursionError)


@dataclasses.dataclass(frozen=True)
class ClipSource:
    """An opened CLIP.

    Attributes:
        weights: its arrays.
        format: a key of `clip.FORMATS`.
        facts: the settings that do not follow from the arrays.
    """

    weights: Weights
    format: str
    facts: clip.Facts

    @property
    def table(self) -> clip.Table:
        """The table of its format."""
        return clip.FORMATS[self.format]


def open_clip(source: str, *, format: str = "", sha256: str = "") -> ClipSource:
    """Opens a CLIP without reading its arrays.

    Args:
        source: a weight file, a folder that holds one (and its JSON), or a name on the hub.
        format: a key of `clip.FORMATS`; `""` recognises it by the content.
        sha256: digest of the weight file, see `open_weights`.

    Raises:
        UserError: the source does not exist, is damaged or not a CLIP, or a JSON file that must lie
            beside the weights is missing.
    """
    if format and format not in clip.FORMATS:
        raise UserError(unknown("format", format, clip.FORMATS))
    kinds = (format,) if format else tuple(clip.FORMATS)
    names = [file for kind in kinds for file in _FILES[kind]]
    path = hub.locate(source, weights=names or _FILES["hf_clip"], settings=_SETTINGS)
    file = weight_file(path, names) if path.is_dir() else path
    weights = open_weights(file, sha256=sha256)
    format = format or _recognise(weights, file)
    facts = {"hf_clip": _hf_facts, "openclip": _openclip_facts, "openai_clip": _openai_facts}
    try:
        found = ClipSource(weights, format, facts[format](weights, file.parent))
        _check_facts(found)
    except _STRANGE as error:
        raise UserError(
            f"{file}: the files beside it do not describe a CLIP ({type(error).__name__}: "
            f"{str(error)[:100]}); take the folder as it was published"
        ) from None
    return found


def load_towers(
    source: str,
    target: Mapping[str, jax.ShapeDtypeStruct],
    config: Any,
    *,
    sha256: str = "",
    prefix: str = "",
) -> dict[str, jax.Array]:
    """Loads the parameters of a model that CLIP provides.

    Args:
        source: as in `open_clip`, or a folder that `tools.import_weights` wrote.
        target: path -> shape, dtype and `sharding` of every parameter of the model.
        config: config of the model, with the fields of `UniRESConfig` that are about its towers.
        sha256: digest of the weight file, see `open_weights`.
        prefix: as in `clip.plan_towers`.

    Returns:
        Path -> array with the given sharding, for all parameters that CLIP has.

    Raises:
        UserError: as in `open_clip`, or the weights do not fit the model.
    """
    path = hub.local_path(source)
    if _is_checkpoint(path):
        return _from_checkpoint(str(path), target, config, sha256, prefix)
    found = open_clip(source, sha256=sha256)
    name = found.weights.name
    clip.check(found.facts, config, name=name, prefix=prefix)
    plan = clip.plan_towers(
        found.table, found.weights.shapes, target, config, name=name, prefix=prefix
    )
    return load(plan, found.weights, {path: target[path].sharding for path in plan.targets})


def _is_checkpoint(path: Path) -> bool:
    try:
        checkpoint_folder.locate(path)
    except UserError:
        return False
    return True


def _from_checkpoint(
    source: str,
    target: Mapping[str, jax.ShapeDtypeStruct],
    config: Any,
    sha256: str,
    prefix: str,
) -> dict[str, jax.Array]:
    if sha256:
        raise UserError(f"{source}: a checkpoint has digests of its own; leave the SHA-256 away")
    if prefix:
        expected = {path: leaf for path, leaf in target.items() if path.startswith(prefix)}
        whole, stored = load_params(source)
        own = {path: value for path, value in whole.items() if path.startswith(prefix)}
        params = lay_out(own, expected, Path(source), stored.get("model", {}))
    else:
        old = [path for path in target if not any(re.fullmatch(new, path) for new in clip.NEW)]
        params, stored = load_params(source, expected={path: target[path] for path in old})
    try:
        facts = clip.Facts(**stored["clip"]["facts"])
    except (KeyError, TypeError):
        raise UserError(
            f"{source}: no checkpoint of tools.import_weights; a whole model goes into "
            "config.init.checkpoint"
        ) from None
    clip.check(facts, config, name=source, prefix=prefix)
    return params


def _recognise(weights: Weights, file: Path) -> str:
    """Recognises the format by the names of the entries and the files beside the weights."""
    if "vision_model.embeddings.class_embedding" in weights.shapes:
        return "hf_clip"
    if "visual.class_embedding" not in weights.shapes:
        raise UserError(
            f"{file}: no CLIP with a vision transformer in one of the formats "
            f"{', '.join(clip.FORMATS)}; name another file"
        )
    if file.with_name(_OPENCLIP_CONFIG).is_file():
        return "openclip"
    if "input_resolution" in weights.shapes:  # Only in OpenAI's own files.
        return "openai_clip"
    raise UserError(
        f"{file}: OpenAI's own CLIP and OpenCLIP's, which differ in the activation, have the same "
        f"names: put OpenCLIP's {_OPENCLIP_CONFIG} beside it, or import it by "
        "python -m tools.import_weights --format=openai_clip"
    )


def _openai_facts(weights: Weights, folder: Path) -> clip.Facts:
    del folder
    found = clip.sizes(clip.OPENAI, weights.shapes)
    return clip.Facts(
        activation="quick_gelu",
        vision_heads=found["vision_width"] // _HEAD_WIDTH,
        text_heads=found["text_width"] // _HEAD_WIDTH,
        # OpenAI's CLIP reads the sentence at the largest id of a text, which is that of EOS.
        eos_id=found["vocab_size"] - 1,
    )


def _openclip_facts(weights: Weights, folder: Path) -> clip.Facts:
    file = folder / _OPENCLIP_CONFIG
    stored = read_json(file)
    model, images = stored["model_cfg"], stored.get("preprocess_cfg", {})
    vision, text = model["vision_cfg"], model["text_cfg"]
    clip_settings.check(
        file, clip_settings.OPENCLIP, {"model_cfg": model, "vision_cfg": vision, "text_cfg": text}
    )
    found = clip.sizes(clip.OPENAI, weights.shapes)
    return clip.Facts(
        activation="quick_gelu" if model.get("quick_gelu", False) else "gelu",
        vision_heads=found["vision_width"] // int(vision.get("head_width", _HEAD_WIDTH)),
        text_heads=int(text["heads"]),
        eos_id=found["vocab_size"] - 1,
        mean=_colours(images.get("mean") or CLIP_MEAN),
        std=_colours(images.get("std") or CLIP_STD),
    )


def _hf_facts(weights: Weights, folder: Path) -> clip.Facts:
    file = folder / _HF_CONFIG
    stored = read_json(file)
    vision, text = _hf_section(stored, "vision"), _hf_section(stored, "text")
    clip_settings.check(
        file, clip_settings.HF, {"": stored, "vision_config": vision, "text_config": text}
    )
    for field, default in (("hidden_act", "quick_gelu"), ("layer_norm_eps", 1e-5)):
        if vision.get(field, default) != text.get(field, default):
            raise ValueError(f"{field} differs between the towers")
    eos_id = int(text.get("eos_token_id", 49407))
    if eos_id == 2:  # A mistake in old configs; transformers then reads at the largest id instead.
        eos_id = clip.sizes(clip.HF, weights.shapes)["vocab_size"] - 1
    images = read_json(folder / _HF_IMAGES) if (folder / _HF_IMAGES).is_file() else {}
    if not images.get("do_normalize", True):
        raise ValueError(f"{_HF_IMAGES} does not normalise images")
    return clip.Facts(
        activation=str(vision.get("hidden_act", "quick_gelu")),
        vision_heads=int(vision.get("num_attention_heads", 12)),
        text_heads=int(text.get("num_attention_heads", 8)),
        eos_id=eos_id,
        epsilon=float(vision.get("layer_norm_eps", 1e-5)),
        mean=_colours(images.get("image_mean") or CLIP_MEAN),
        std=_colours(images.get("image_std") or CLIP_STD),
    )


def _colours(values: Any) -> tuple[float, ...]:
    return tuple(float(value) for value in values)


def _check_facts(found: ClipSource) -> None:
    """Refuses settings that are impossible or not supported.

    Raises:
        ValueError: the heads do not divide the width of a tower, the EOS id is outside the
            vocabulary, or the activation is unknown.
    """
    facts = found.facts
    if facts.activation not in ACTIVATIONS:
        raise ValueError(unknown("activation", facts.activation, ACTIVATIONS))
    try:
        sizes = clip.sizes(found.table, found.weights.shapes)
    except (KeyError, ValueError):  # `plan_towers` reports what is missing.
        return
    for tower, heads in (("vision", facts.vision_heads), ("text", facts.text_heads)):
        width = sizes[f"{tower}_width"]
        if heads < 1 or width % heads:
            raise ValueError(f"{heads} heads do not divide the {tower} tower's width {width}")
    if not 0 <= facts.eos_id < sizes["vocab_size"]:
        raise ValueError(f"EOS id {facts.eos_id}, but {sizes['vocab_size']} words")


def _hf_section(stored: Mapping[str, Any], tower: str) -> Mapping[str, Any]:
    """The config of a tower; the older name of the section has priority, as in transformers."""
    old = stored.get(f"{tower}_config_dict")
    return stored[f"{tower}_config"] if old is None else old
