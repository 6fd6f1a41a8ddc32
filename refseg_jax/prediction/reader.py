"""Folders to what computes masks, by the name of the format."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from refseg_jax import naming
from refseg_jax.errors import UserError
from refseg_jax.exports import folder
from refseg_jax.exports.arrays_file import read_arrays
from refseg_jax.exports.folder import ExportConfig, Step
from refseg_jax.prediction.engines import Engine, ParameterEngine
from refseg_jax.prediction.onnx import OnnxEngine
from refseg_jax.prediction.stablehlo import StablehloEngine


def _parameters(path: Path, config: ExportConfig) -> Engine:
    params = read_arrays(folder.verified(path, config, folder.WEIGHTS))
    return ParameterEngine(params, config.model)


#: What computes masks from a folder of a format, by name; raises what `another_version` explains.
ENGINES: Mapping[str, Callable[[Path, ExportConfig], Engine]] = {
    "safetensors": _parameters,
    "stablehlo": StablehloEngine,
    "onnx": OnnxEngine,
}


def read_engine(path: Path, step: Step = "latest") -> tuple[Engine, dict[str, Any]]:
    """What computes masks from an exported folder, and the config sections that a predictor reads.

    Args:
        path: the folder.
        step: refused where it is not the folder's.

    Raises:
        UserError: a file is missing or damaged, or this code does not know its format.
    """
    config = folder.read_config(path)
    if config.format not in ENGINES:
        raise UserError(f"{path}: {naming.unknown('format', config.format, ENGINES)}")
    folder.check_step(path, config, step)
    tokenizer = folder.verified(path, config, folder.TOKENIZER)
    data = {**config.data, "tokenizer": str(tokenizer)}
    sections = {"model": config.model, "data": data, "eval": config.eval}
    return ENGINES[config.format](path, config), sections
