"""Loads parameters alone, from a checkpoint or another source, into the layouts of a model."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np
from absl import logging

from refseg_jax.checkpoints import folder as checkpoint_folder
from refseg_jax.checkpoints import manifest
from refseg_jax.checkpoints.arrays import read_arrays
from refseg_jax.checkpoints.folder import DamagedError, RunRecord
from refseg_jax.errors import UserError
from refseg_jax.images.resize import resize_position_embedding
from refseg_jax.storage import buckets

#: Last part of the path of the one parameter that is resized for a model of another image size.
_POSITIONS = "vision.position_embedding"


class OtherParametersError(UserError):
    """The stored parameters do not fit the model that is to take them.

    Attributes:
        model: config of the model that the stored parameters belong to.
    """

    def __init__(self, message: str, model: Mapping[str, Any]) -> None:
        super().__init__(message)
        self.model = model


def load_params(
    path: str | Path,
    *,
    step: int | Literal["latest", "best"] = "latest",
    expected: Mapping[str, jax.ShapeDtypeStruct] | None = None,
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Loads the parameters of a checkpoint, and the config of its run.

    Where the run kept a moving average of the parameters, the average is loaded instead.

    Args:
        path: a run's workdir, its checkpoints folder, or one step folder; on a disk or in a bucket.
        step: which checkpoint, unless `path` is a step folder; `"best"` has the best of the scores
            that the run ranked its checkpoints by. If the checkpoint is damaged, the next newest
            (or next best) one is loaded, with a warning; a damaged one given by number is an error.
        expected: path -> shape, dtype and `sharding` of every parameter of the model that is to
            take them; position embeddings of another image size are resized. Without it, the
            parameters are numpy arrays with the stored shapes.

    Returns:
        Parameters as `{dotted path: array}`, and the resolved experiment config.

    Raises:
        UserError: no usable checkpoint was found at `path`.
        OtherParametersError: the stored parameters do not fit `expected`.
    """
    params, record = load_recorded(path, step=step, expected=expected)
    return params, record.config


def load_recorded(
    path: str | Path,
    *,
    step: int | Literal["latest", "best"] = "latest",
    expected: Mapping[str, jax.ShapeDtypeStruct] | None = None,
) -> tuple[dict[str, Any], RunRecord]:
    """As `load_params`, but returns the whole record of the checkpoint beside the parameters."""
    directory, named = checkpoint_folder.locate(buckets.located(path))
    available = checkpoint_folder.steps(directory)
    wanted = step if named is None else named
    if wanted == "best":
        order = checkpoint_folder.by_score(directory)
        if not order:
            raise UserError(f"{directory}: no checkpoint has a score to be the best by; use latest")
    elif wanted == "latest":
        order = list(reversed(available.values()))
    elif wanted in available:
        order = [available[wanted]]
    else:
        raise UserError(f"{directory}: no checkpoint {wanted}; there are {[*available]}")
    for folder in checkpoint_folder.usable(order):
        try:
            return _restore_params(folder, expected)
        except DamagedError as error:
            logging.warning("checkpoint %s is damaged, not used: %s", folder.name, error)
    raise UserError(
        f"{order[0] if len(order) == 1 else directory}: no sound checkpoint; the warnings above "
        "name the damaged files: put back a sound copy or choose another checkpoint"
        f"{manifest.UNPROVEN}"
    )


def lay_out(
    params: Mapping[str, np.ndarray],
    expected: Mapping[str, jax.ShapeDtypeStruct],
    source: Path,
    model: Mapping[str, Any],
) -> dict[str, jax.Array]:
    """Checks numpy parameters and lays them out, as `load_params` does with those of a checkpoint.

    Args:
        params: `{dotted path: array}`.
        expected: as in `load_params`.
        source: path of their source, for error messages.
        model: config of the model that the parameters belong to.

    Raises:
        OtherParametersError: the parameters do not fit `expected`.
    """
    shapes = {path: leaf.shape for path, leaf in params.items()}
    resized = _to_resize(source, shapes, expected, model)
    return {
        path: _resized_positions(params[path], leaf)
        if path in resized
        else jax.make_array_from_callback(leaf.shape, leaf.sharding, params[path].__getitem__)
        for path, leaf in expected.items()
    }


def _restore_params(
    folder: Path, expected: Mapping[str, jax.ShapeDtypeStruct] | None
) -> tuple[dict[str, Any], RunRecord]:
    record = checkpoint_folder.read_record(folder)
    checkpoint_folder.check_name(folder, record)
    averaged = any(name.startswith("ema/") for name in record.arrays)
    prefix = "ema/" if averaged else "params/"
    names = {n.removeprefix(prefix): n for n in record.arrays if n.startswith(prefix)}
    stored = {path: record.arrays[name][1] for path, name in names.items()}
    model = record.config.get("model", {})
    resized = set() if expected is None else _to_resize(folder, stored, expected, model)
    layouts = {
        name: expected[path].sharding if expected and path not in resized else None
        for path, name in names.items()
    }
    arrays = read_arrays(folder, record, layouts)
    params = {path: arrays[name] for path, name in names.items()}
    for path in resized:
        assert expected is not None
        params[path] = _resized_positions(params[path], expected[path])
    return params, record


def _to_resize(
    folder: Path,
    stored: Mapping[str, tuple[int, ...]],
    expected: Mapping[str, jax.ShapeDtypeStruct],
    model: Mapping[str, Any],
) -> set[str]:
    """Paths of position embeddings of another image size; any other difference is an error."""
    if stored.keys() != expected.keys():
        odd = sorted(expected.keys() ^ stored.keys())[0]
        where = "the model, not the checkpoint" if odd in expected else "the checkpoint only"
        raise OtherParametersError(
            f"{folder}: parameter {odd!r} is in {where}; use the config stored in it", model
        )
    other = {path for path in stored if tuple(stored[path]) != expected[path].shape}
    for path in sorted(other):
        same_width = stored[path][-1:] == expected[path].shape[-1:]
        if not (path.endswith(_POSITIONS) and same_width):
            raise OtherParametersError(
                f"{folder}: parameter {path!r} is {tuple(stored[path])} there, the model's is "
                f"{expected[path].shape}; use the config stored in it",
                model,
            )
    return other


def _resized_positions(table: np.ndarray, leaf: jax.ShapeDtypeStruct) -> jax.Array:
    logging.info("position embedding resized: %s to %s", table.shape, leaf.shape)
    resized = np.asarray(resize_position_embedding(table, math.isqrt(leaf.shape[0] - 1)))
    return jax.make_array_from_callback(leaf.shape, leaf.sharding, lambda index: resized[index])
