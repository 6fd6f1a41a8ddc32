"""Opens what a predictor is made of: a checkpoint, or an export with the engine of its format."""

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from refseg_jax import naming
from refseg_jax.checkpoints import calibration
from refseg_jax.checkpoints.calibration import Calibration
from refseg_jax.checkpoints.folder import locate
from refseg_jax.checkpoints.params import load_recorded
from refseg_jax.errors import UserError
from refseg_jax.evaluation.thresholds import Thresholds
from refseg_jax.exports import folder
from refseg_jax.exports.arrays_file import read_arrays
from refseg_jax.exports.folder import ExportConfig, Step
from refseg_jax.exports.graphs_of_config import read_description
from refseg_jax.prediction.engines import Engine, ParameterEngine
from refseg_jax.prediction.onnx import OnnxEngine
from refseg_jax.prediction.stablehlo import StablehloEngine


def _parameters(path: Path, config: ExportConfig) -> Engine:
    return ParameterEngine(read_arrays(path / folder.WEIGHTS), config.model)


#: Format -> opens the folder of such an export, whose files have been checked; may raise errors that
#: `another_version` explains.
ENGINES: Mapping[str, Callable[[Path, ExportConfig], Engine]] = {
    "safetensors": _parameters,
    "stablehlo": StablehloEngine,
    "onnx": OnnxEngine,
}


@dataclasses.dataclass(frozen=True)
class Opened:
    """A model that a predictor can be made of.

    Attributes:
        source: the run, checkpoint or export.
        model: parameters by dotted path, or an engine.
        config: the config sections `model`, `data` and `eval`.
        calibration: its calibrated thresholds, if it has some.
        kept: where they are, or would be.
    """

    source: Path
    model: Mapping[str, Any] | Engine
    config: Mapping[str, Any]
    calibration: Calibration | None
    kept: Path

    def thresholds(self, choice: Thresholds | str) -> Thresholds | None:
        """The thresholds that were chosen; `None` for those of the config.

        Raises:
            UserError: the model was not calibrated, the calibration is one of other parameters, or there
                is no such choice.
        """
        if isinstance(choice, Thresholds):
            return choice
        ways = ("config", "calibrated")
        if choice not in ways:
            raise UserError(naming.unknown("thresholds", str(choice), ways))
        if choice == "config":
            return None
        if self.calibration is None:
            raise UserError(
                f"{self.source}: never calibrated (no {self.kept.name}); run tools.calibrate, or "
                "leave out thresholds=calibrated"
            )
        if isinstance(self.model, Mapping):
            self.calibration.check_parameters(self.model, self.kept)
        # Without a presence head, nothing reads it.
        presence = self.calibration.presence or 0.5
        return Thresholds(self.calibration.mask, presence, origin="calibrated")


def open_model(path: Path, step: Step = "latest") -> Opened:
    """Opens a run, a checkpoint or an export.

    Args:
        path: a run's workdir, one step folder, or an exported folder.
        step: which checkpoint of a workdir, see `refseg_jax.checkpoints.params.load_params`.

    Raises:
        UserError: no usable checkpoint was found at `path`, or a file is damaged.
        KeyError, TypeError, ValueError: another version of the code wrote it.
    """
    if folder.is_export(path):
        engine, config = read_engine(path, step)
        kept = config["eval"].get("calibration")
        file = path / folder.CONFIG
        return Opened(
            path, engine, config, None if kept is None else Calibration.from_json(kept, file), file
        )
    params, record = load_recorded(path, step=step)
    directory, _ = locate(path)
    file = calibration.place(directory, record.step)
    return Opened(path, params, record.config, calibration.read(file), file)


def read_engine(path: Path, step: Step = "latest") -> tuple[Engine, dict[str, Any]]:
    """Opens an exported folder.

    Args:
        path: the folder.
        step: `"latest"`, or the number of the one step that the folder holds.

    Returns:
        The engine, and the config sections `model`, `data` and `eval` that a predictor reads.

    Raises:
        UserError: a file is missing or damaged, the format is unknown, or the folder holds another
            step.
    """
    config = folder.read_config(path)
    if config.format not in ENGINES:
        raise UserError(f"{path}: {naming.unknown('format', config.format, ENGINES)}")
    folder.check_step(path, config, step)
    weights = () if config.format == "onnx" else (folder.WEIGHTS,)
    graphs = read_description(path, config).files.values() if config.graphs else ()
    folder.check_files(path, (folder.TOKENIZER, *weights, *graphs))
    data = {**config.data, "tokenizer": str(path / folder.TOKENIZER)}
    sections = {"model": config.model, "data": data, "eval": config.eval}
    return ENGINES[config.format](path, config), sections
