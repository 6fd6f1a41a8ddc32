"""The systems, one file each, and the table that finds them by name."""

import dataclasses
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from flax import nnx

from refseg_jax import naming
from refseg_jax.models.grser import GRSer
from refseg_jax.models.grser_config import PRESETS as GRSER_PRESETS
from refseg_jax.models.grser_config import GRSerConfig, grser_config
from refseg_jax.models.rela import ReLA
from refseg_jax.models.rela_config import PRESETS as RELA_PRESETS
from refseg_jax.models.rela_config import ReLAConfig, rela_config
from refseg_jax.models.unilseg import UniLSeg
from refseg_jax.models.unilseg_config import PRESETS as UNILSEG_PRESETS
from refseg_jax.models.unilseg_config import UniLSegConfig, unilseg_config
from refseg_jax.models.unires import UniRES
from refseg_jax.models.unires_config import PRESETS as UNIRES_PRESETS
from refseg_jax.models.unires_config import UniRESConfig, unires_config

#: Name in configs -> model class, and the function that builds its config.
MODELS: Mapping[str, tuple[Callable[..., nnx.Module], Callable[..., Any]]] = {
    "grser": (GRSer, grser_config),
    "rela": (ReLA, rela_config),
    "unilseg": (UniLSeg, unilseg_config),
    "unires": (UniRES, unires_config),
}

#: A config that differs from a preset in at most this many fields counts as that preset; errors list
#: at most this many fields.
_FEW = 5

#: Name of a model -> its presets.
_PRESETS: Mapping[str, Iterable[str]] = {
    "grser": GRSER_PRESETS,
    "rela": RELA_PRESETS,
    "unilseg": UNILSEG_PRESETS,
    "unires": UNIRES_PRESETS,
}

__all__ = [
    "MODELS",
    "GRSer",
    "GRSerConfig",
    "ReLA",
    "ReLAConfig",
    "UniLSeg",
    "UniLSegConfig",
    "UniRES",
    "UniRESConfig",
    "build_model",
    "difference",
    "model_config",
]


def model_config(config: Mapping[str, Any]) -> Any:
    """Builds the frozen config dataclass of a model, such as `UniRESConfig`.

    Args:
        config: `name` (a key of `MODELS`), optionally `preset`, and fields of the dataclass.

    Raises:
        ValueError: a name, preset or field is unknown (the message names the nearest), or the sizes
            do not fit together.
    """
    fields = dict(config)
    name = fields.pop("name", None)
    if name not in MODELS:
        raise ValueError(naming.unknown("model", str(name), MODELS))
    return MODELS[name][1](fields)


def difference(theirs: Mapping[str, Any], ours: Mapping[str, Any]) -> str:
    """Describes how the model of a checkpoint differs from that of a run, for an error message.

    Args:
        theirs: config of the checkpoint's model, as in `model_config`.
        ours: config of the run's model.

    Returns:
        The two presets if they differ, else the first fields that differ; `""` if this version of
        the code does not know the model of the checkpoint.
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
    """The preset from which at most `_FEW` fields of a config differ, else `""`."""
    others = {
        preset: len(_other_fields(config, {"name": config["name"], "preset": preset}))
        for preset in _PRESETS[config["name"]]
    }
    nearest = min(others, key=others.__getitem__)
    return nearest if others[nearest] <= _FEW else ""


def _other_fields(one: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Field -> both values, for the fields in which two configs of one model differ."""
    a, b = (dataclasses.asdict(model_config(config)) for config in (one, other))
    return {name: (value, b[name]) for name, value in a.items() if value != b[name]}


def build_model(config: Mapping[str, Any], *, rngs: nnx.Rngs) -> nnx.Module:
    """Builds a model with random parameters; `config` and errors are those of `model_config`."""
    resolved = model_config(config)
    return MODELS[config["name"]][0](resolved, rngs=rngs)
