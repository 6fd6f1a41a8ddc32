"""Exports a checkpoint as a folder, with the writer of a format."""

import shlex
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from refseg_jax import naming
from refseg_jax.errors import UserError
from refseg_jax.exports import folder
from refseg_jax.exports.arrays_file import write_arrays
from refseg_jax.exports.clip import write_towers
from refseg_jax.exports.folder import ExportConfig, Step
from refseg_jax.exports.model_card import model_card
from refseg_jax.exports.onnx_graphs import write_onnx
from refseg_jax.exports.source import Source, read_source
from refseg_jax.exports.stablehlo import write_graphs
from refseg_jax.exports.tokenizer_files import write_tokenizer


class Written(NamedTuple):
    """Description of the files that a format's writer wrote.

    Attributes:
        graphs: `ExportConfig.graphs`.
        notes: heading -> paragraph, for the model card.
    """

    graphs: dict[str, Any]
    notes: dict[str, str]


def _weights(target: Path, source: Source) -> Written:
    write_arrays(target / folder.WEIGHTS, source.params)
    return Written({}, {"CLIP's towers": write_towers(target, source)})


def _stablehlo(target: Path, source: Source) -> Written:
    write_arrays(target / folder.WEIGHTS, source.params)
    return Written(write_graphs(target, source), {})


def _onnx(target: Path, source: Source, *, environment: Path | None = None) -> Written:
    graphs, error = write_onnx(target, source, environment)
    note = (
        "The graphs compute in f32. In onnxruntime, logits for random inputs differed from JAX's in "
        f"f32 by at most {error:.1e} of the largest."
    )
    return Written(graphs, {"ONNX": note})


#: Format -> writes the format's own files into the folder.
FORMATS: Mapping[str, Callable[..., Written]] = {
    "safetensors": _weights,
    "stablehlo": _stablehlo,
    "onnx": _onnx,
}


def export(
    checkpoint: str | Path,
    format: str,
    output: Path,
    *,
    step: Step = "latest",
    environment: Path | None = None,
    command: Sequence[str],
    hub: str = "",
) -> None:
    """Writes a checkpoint as a folder that needs nothing else, complete or not at all.

    Args:
        checkpoint: a run's workdir, one of its checkpoints, or an exported folder with
            `model.safetensors`, also on the hub (`hf://OWNER/NAME`).
        format: key of `FORMATS`.
        output: the folder to write, which must not exist.
        step: which checkpoint of a workdir.
        environment: for `onnx` only, folder of the environment that converts, see
            `refseg_jax.exports.onnx_environment`.
        command: command line of the export, for the model card.
        hub: `OWNER/NAME` that the folder is going to have on the hub, for the model card.

    Raises:
        UserError: the format is unknown, no usable checkpoint was found, the model cannot be converted,
            or the output exists or cannot be written.
    """
    if format not in FORMATS:
        raise UserError(naming.unknown("--format", format, FORMATS))
    if environment is not None and format != "onnx":
        raise UserError(f"--env is for --format=onnx alone; leave it out with --format={format}")
    options = {} if environment is None else {"environment": environment}
    # Outside `new_folder`, which would blame the output for an error of reading.
    source = read_source(checkpoint, step)
    with folder.new_folder(output) as target:
        written = FORMATS[format](target, source, **options)
        write_tokenizer(target, source.tokenizer_json, source.data["context_length"])
        config = ExportConfig(
            format=format,
            model=source.model,
            data=source.data,
            eval=source.eval,
            step=source.step,
            metrics=source.metrics,
            graphs=written.graphs,
        )
        card = model_card(config, shlex.join(command), written.notes, hub)
        (target / folder.CARD).write_text(card, encoding="utf-8")
        folder.write_config(target, config)
