"""Tells whether a run that resumes is the one that wrote the checkpoints."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from refseg_jax.checkpoints import folder as checkpoint_folder
from refseg_jax.errors import UserError

#: Fields that must not change when a run resumes, beside all of `model` and `mixture`: they decide
#: what a checkpoint's parameters and its position in the data mean. `data.num_workers` is among them
#: because an iterator's state fits one number of workers only.
_FIXED = frozenset(
    {"seed", "batch_size", "mixture"}
    | {f"data.{name}" for name in ("dataset", "split", "sampling", "granularities")}
    | {f"data.{name}" for name in ("pairs", "images", "negatives", "anti_prefix", "num_workers")}
)


def check_same_run(folder: Path, config: Mapping[str, Any]) -> None:
    """Compares `_FIXED`, `model` and `mixture` with the config of the newest checkpoint.

    Only fields that both have are compared, so that a checkpoint from before a field was added can
    still be resumed.

    Args:
        folder: the run's checkpoints.
        config: the resolved experiment config.

    Raises:
        UserError: a field differs; the message names it.
    """
    newest = _newest_config(folder)
    if not newest:
        return
    stored, ours = _fields(newest), _fields(json.loads(json.dumps(config)))
    for name in sorted(stored.keys() & ours.keys()):
        fixed = name in _FIXED or name.startswith(("model.", "mixture."))
        if fixed and stored[name] != ours[name]:
            raise UserError(
                f"{folder}: trained with config.{name}={stored[name]!r}, now it is "
                f"{ours[name]!r}: give the same value to resume, or another --workdir"
            )


def _newest_config(folder: Path) -> dict[str, Any]:
    """Config of the newest checkpoint with a readable record, `{}` if there is none."""
    for checkpoint in reversed(checkpoint_folder.steps(folder).values()):
        try:
            return checkpoint_folder.read_record(checkpoint).config
        except checkpoint_folder.DamagedError:
            # Restoring it logs the damage.
            continue
    return {}


def _fields(config: Mapping[str, Any]) -> dict[str, Any]:
    """Dotted name -> value, and the sorted names of the mixture's members as `mixture`."""
    return {**_flat(config), "mixture": sorted(config.get("mixture", {}))}


def _flat(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Dotted name -> value of every field."""
    flat: dict[str, Any] = {}
    for name, value in config.items():
        path = prefix + name
        flat |= _flat(value, f"{path}.") if isinstance(value, Mapping) else {path: value}
    return flat
