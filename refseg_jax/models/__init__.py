"""One file per system, and the table that finds them by name."""

from collections.abc import Callable, Mapping
from typing import Any

from flax import nnx

from refseg_jax import naming
from refseg_jax.models.unires import UniRES
from refseg_jax.models.unires_config import UniRESConfig, unires_config

#: Model class and reader of its config, by the name that configs use.
MODELS: Mapping[str, tuple[Callable[..., nnx.Module], Callable[..., Any]]] = {
    "unires": (UniRES, unires_config),
}

__all__ = ["MODELS", "UniRES", "UniRESConfig", "build_model", "model_config"]


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


def build_model(config: Mapping[str, Any], *, rngs: nnx.Rngs) -> nnx.Module:
    """A model with fresh parameters; `config` as in `model_config`, which also raises its errors."""
    resolved = model_config(config)
    return MODELS[config["name"]][0](resolved, rngs=rngs)
