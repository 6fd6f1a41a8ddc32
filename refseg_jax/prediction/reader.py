"""Opens an exported folder with the engine of its format."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from refseg_jax import naming
from refseg_jax.errors import UserError
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
