"""Reads what an export needs: parameters, config, tokenizer and scores of a checkpoint."""

import contextlib
import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from absl import logging

from refseg_jax.checkpoints import calibration
from refseg_jax.checkpoints import folder as checkpoint_folder
from refseg_jax.checkpoints.folder import RunRecord, another_version, locate
from refseg_jax.checkpoints.params import OtherParametersError, lay_out, load_recorded
from refseg_jax.errors import UserError
from refseg_jax.evaluation.protocols import PROTOCOLS
from refseg_jax.exports import folder
from refseg_jax.exports.arrays_file import read_arrays
from refseg_jax.exports.folder import Step
from refseg_jax.models import difference
from refseg_jax.models.graphs import check_params, forward_of
from refseg_jax.reporting import tables
from refseg_jax.storage.hub import model_folder
from refseg_jax.text.tokenizers import build_tokenizer, check_tokenizer, tokenizer_identity
from refseg_jax.text.vocabulary_file import same_vocabulary

#: Last parts of the keys of `summary.json` that are scores; the others measure the speed of the run.
_SCORES = frozenset(("count", *(name for p in PROTOCOLS.values() for name in p.columns)))


@dataclasses.dataclass(frozen=True)
class Source:
    """The content of a checkpoint that this version of the code can use.

    Attributes:
        params: dotted path -> f32 array.
        model, data, eval: as in `folder.ExportConfig`.
        tokenizer_json: content of `tokenizer.json`.
        step: number of updates that made the parameters.
        metrics: scores at that step.
    """

    params: dict[str, np.ndarray]
    model: dict[str, Any]
    data: dict[str, Any]
    eval: dict[str, Any]
    tokenizer_json: str
    step: int
    metrics: dict[str, float]


def read_source(path: str | Path, step: Step = "latest") -> Source:
    """Reads a checkpoint or an exported folder.

    Args:
        path: a run's workdir, one of its checkpoints, or an exported folder with `model.safetensors`
            (also `hf://OWNER/NAME`).
        step: which checkpoint of a workdir.

    Raises:
        UserError: no usable checkpoint was found at `path`, or another version of the code wrote it.
    """
    path = model_folder(path)
    if folder.is_export(path):
        stored, params = _read_weights(path)
        folder.check_step(path, stored, step)
        config: Mapping[str, Any] = stored.sections()
        licences = stored.data.get("licences", {})
        vocabulary = path / folder.TOKENIZER
        tokenizer, tokenizer_json = str(vocabulary), vocabulary.read_text()
        step, metrics = stored.step, stored.metrics
        kept = stored.eval.get("calibration")
    else:
        params, record = load_recorded(path, step=step)
        config, step, metrics = record.config, record.step, _scores(path, record)
        licences = record.config.get("licences", {})
        tokenizer = tokenizer_json = ""
        kept = _calibration(path, record.step, params)
    with another_version(path):
        data = config["data"]
        tokenizer = tokenizer or data["tokenizer"]
        forward = forward_of(config["model"])
        check_params(params, forward.shapes)
        model: Any = forward.model
        # Early runs had no anti-expressions.
        anti_prefix = data.get("anti_prefix", "")
        check_tokenizer(tokenizer, data["context_length"], model.config, anti_prefix)
        return Source(
            params=params,
            model={"name": config["model"]["name"], **dataclasses.asdict(model.config)},
            # Only these fields of `data`: others hold paths of the machine that trained it.
            data={
                "dataset": ", ".join(_datasets(config)),
                # Licences of all data that it was trained on; early runs did not record them.
                "licences": dict(licences),
                "resize": data["resize"],
                "context_length": data["context_length"],
                "tokenizer": folder.TOKENIZER,
                "anti_prefix": anti_prefix,
            },
            eval={
                "threshold": config["eval"]["threshold"],
                # Early runs had only one protocol, and one way of resampling.
                "protocol": config["eval"].get("protocol", "cris"),
                "resample": config["eval"].get("resample", "logits"),
                **({"calibration": kept} if kept else {}),
            },
            tokenizer_json=tokenizer_json or build_tokenizer(tokenizer).as_json(),
            step=step,
            metrics=metrics,
        )


def _calibration(path: Path, step: int, params: Mapping[str, np.ndarray]) -> dict[str, Any] | None:
    """The calibrated thresholds of a step as JSON values, if it has some that are its own."""
    file = calibration.place(locate(path)[0], step)
    found = calibration.read(file)
    if found is None:
        return None
    found.check_parameters(params, file)
    return found.as_json()


def _datasets(config: Mapping[str, Any]) -> list[str]:
    """Sorted names of the datasets that a run was trained on: its mixture's, or its only one."""
    own = config["data"].get("dataset", "")
    members = config.get("mixture", {}).values()
    return sorted({member.get("dataset", own) for member in members}) or [own]


def load_start(
    path: str | Path,
    expected: Mapping[str, jax.ShapeDtypeStruct],
    config: Mapping[str, Any] | None = None,
    *,
    scored: bool = False,
) -> tuple[dict[str, jax.Array], int]:
    """Loads the parameters that a new run or an evaluation starts from.

    Shapes do not tell by what words the parameters were trained: with another anti-prefix, GRSer asks
    with a row of its table that was never trained. So `data.anti_prefix` and the vocabulary of
    `data.tokenizer` are compared, where both sides have them and can be read.

    Args:
        path: a run's workdir, one of its checkpoints, or an exported folder with `model.safetensors`
            (also `hf://OWNER/NAME`).
        expected: as in `refseg_jax.checkpoints.params.load_params`.
        config: config of the run that starts: its `model` lets the error of parameters that do not fit
            name the fields that differ, its `data` is compared.
        scored: whether the parameters are scored as they are. A difference of `data` is then an error,
            else a warning: training can learn other words.

    Returns:
        The parameters, and the number of updates that made them.

    Raises:
        UserError: no usable parameters were found at `path`, or they are scored by other words.
        OtherParametersError: the parameters do not fit `expected`.
    """
    path, ours = model_folder(path), config or {}
    try:
        if folder.is_export(path):
            stored, arrays = _read_weights(path)
            params, step = lay_out(arrays, expected, path, stored.model), stored.step
            theirs = {**stored.data, "tokenizer": str(path / folder.TOKENIZER)}
        else:
            params, record = load_recorded(path, expected=expected)
            theirs, step = record.config.get("data", {}), record.step
    except OtherParametersError as error:
        why = difference(error.model, ours["model"]) if ours else ""
        raise OtherParametersError(f"{error}: {why}" if why else str(error), error.model) from None
    for name, (there, here) in _other_words(theirs, ours.get("data", {})).items():
        told = f"{path}: trained with config.data.{name}={there!r}, now it is {here!r}"
        if scored:
            raise UserError(f"{told}: give the same value to score it")
        logging.warning("%s: its parameters never saw such words", told)
    return params, step


def _other_words(theirs: Mapping[str, Any], ours: Mapping[str, Any]) -> dict[str, tuple[str, str]]:
    """The fields of two sections `data` by which their words differ: name -> both values."""
    names = ("anti_prefix", "tokenizer")
    # Early runs had no anti-expressions; other models do without.
    pairs = {n: (theirs[n], ours[n]) for n in names if theirs.get(n) and ours.get(n)}
    found = {name: pair for name, pair in pairs.items() if pair[0] != pair[1]}
    if "tokenizer" in found:
        there, here = found["tokenizer"]
        same = tokenizer_identity(there) == tokenizer_identity(here)
        # What another machine or the hub has, and this one has not, cannot be compared.
        with contextlib.suppress(UserError):
            read = [build_tokenizer(name).as_json() for name in (there, here) if not same]
            if read and not same_vocabulary(*read):
                return found
        del found["tokenizer"]
    return found


def recorded_licences(path: str | Path) -> dict[str, str]:
    """Licences of the data that a checkpoint was trained on, its start's included.

    Args:
        path: a run's workdir, one of its checkpoints, or an exported folder (also `hf://OWNER/NAME`).

    Returns:
        Dataset -> licences in one line; empty where none are recorded, as in early runs.

    Raises:
        UserError: `path` holds no checkpoint.
    """
    path = model_folder(path)
    if folder.is_export(path):
        return dict(folder.read_config(path).data.get("licences", {}))
    directory, step = checkpoint_folder.locate(path)
    there = checkpoint_folder.steps(directory)
    for number in [step] if step is not None else sorted(there, reverse=True):
        with contextlib.suppress(checkpoint_folder.DamagedError):
            record = checkpoint_folder.read_record(there[number])
            return dict(record.config.get("licences", {}))
    return {}


def _read_weights(path: Path) -> tuple[folder.ExportConfig, dict[str, np.ndarray]]:
    """Reads the config and the parameters of an exported folder."""
    config = folder.read_config(path)
    if config.format == "onnx":
        raise UserError(
            f"{path}: it has its weights inside its graphs; take the run, or a folder of another "
            "format"
        )
    folder.check_files(path, (folder.WEIGHTS, folder.TOKENIZER))
    return config, read_arrays(path / folder.WEIGHTS)


def _scores(path: Path, record: RunRecord) -> dict[str, float]:
    """Scores of the checkpoint, and those of the run's summary if it is about the same step."""
    own = {name: value for name, value in record.metrics.items() if value is not None}
    summary = _read_summary(locate(path)[0].parent / "summary.json")
    # Summaries of early runs lack the step; there, equal scores show that it is the same.
    same = bool(own) and own.items() <= summary.items()
    if summary["step"] == record.step if "step" in summary else same:
        own |= summary
    return {name: value for name, value in own.items() if name.rpartition("/")[2] in _SCORES}


def _read_summary(path: Path) -> dict[str, float]:
    try:
        summary = tables.read_summary(path)
        if not isinstance(summary, dict):
            raise ValueError("it is no table")
        return summary
    except ValueError as error:
        raise UserError(f"{path}: not a run's summary ({error}); delete it") from None
