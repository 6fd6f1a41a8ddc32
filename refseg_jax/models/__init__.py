"""One file per system, and the table that finds them by name."""

import dataclasses
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from flax import nnx

from refseg_jax import naming
from refseg_jax.models.rela import ReLA
from refseg_jax.models.rela_config import PRESETS as RELA_PRESETS
from refseg_jax.models.rela_config import ReLAConfig, rela_config
from refseg_jax.models.unires import UniRES
from refseg_jax.models.unires_config import PRESETS as UNIRES_PRESETS
from refseg_jax.models.unires_config import UniRESConfig, unires_config

#: Model class and reader of its config, by the name that configs use.
MODELS: Mapping[str, tuple[Callable[..., nnx.Module], Callable[..., Any]]] = {
    "rela": (ReLA, rela_config),
    "unires": (UniRES, unires_config),
}

#: Fields that a person overrides of a preset, and reads of in an error.
_FEW = 5

#: The names of each model's sizes.
_PRESETS: Mapping[str, Iterable[str]] = {"rela": RELA_PRESETS, "unires": UNIRES_PRESETS}

__all__ = [
    "MODELS",
    "ReLA",
    "ReLAConfig",
    "UniRES",
    "UniRESConfig",
    "build_model",
    "difference",
    "model_config",
]


def model_config(config: Mapping[str, Any]) -> Any:
    """The frozen config dataclass of a model.

    Args:
        config: `name` (out of `MODELS`), optionally `preset`, and fields of that dataclass.

    Raises:
        ValueError: an unknown name, preset or field; the message names the nearest.
    """
    fields = dict(config)
    name = fields.pop("name", None)
    if name not in MODELS:
        raise ValueError(naming.unknown("model", str(name), MODELS))
    return MODELS[name][1](fields)


def difference(theirs: Mapping[str, Any], ours: Mapping[str, Any]) -> str:
    """In what the model of a checkpoint is another than that of a run, in words.

    Args:
        theirs, ours: configs as of `model_config`.

    Returns:
        Their presets; where these are the same, or no preset's, the first fields that are not;
        `""` where this code does not know the checkpoint's model.
    """
    if theirs.get("name") != ours["name"]:
        return f"its model is {theirs.get('name')!r}, this run's {ours['name']!r}"
    try:
        presets = [_preset(config) for config in (theirs, ours)]
        other = _other_fields(theirs, ours)
    except (TypeError, ValueError):
        return ""
    if all(presets) and presets[0] != presets[1]:
        return f"its model is of preset {presets[0]!r}, this run's of {presets[1]!r}"
    told = [f"config.model.{name} is {a!r} there, {b!r} here" for name, (a, b) in other.items()]
    return ", ".join(told[:_FEW])


def _preset(config: Mapping[str, Any]) -> str:
    """The preset of which only a few fields are overridden, else `""`."""
    others = {
        preset: len(_other_fields(config, {"name": config["name"], "preset": preset}))
        for preset in _PRESETS[config["name"]]
    }
    nearest = min(others, key=others.__getitem__)
    return nearest if others[nearest] <= _FEW else ""


def _other_fields(one: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Both values of each field in which two models of one name differ."""
    a, b = (dataclasses.asdict(model_config(config)) for config in (one, other))
    return {name: (value, b[name]) for name, value in a.items() if value != b[name]}


def build_model(config: Mapping[str, Any], *, rngs: nnx.Rngs) -> nnx.Module:
    """A model with fresh parameters; `config` as in `model_config`, which also raises its errors."""
    resolved = model_config(config)
    return MODELS[config["name"]][0](resolved, rngs=rngs)
