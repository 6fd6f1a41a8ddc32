"""Writes the three functions of a model as ONNX graphs with their weights inside.

Batch size `b` and number of expressions `k` are dynamic, and a group's number of images `n`. Each graph
holds the parameters that it uses.
All is computed in f32, whatever dtype the model was trained in.
"""

import json
import re
import subprocess
import tempfile
from pathlib import Path
from typing import Any

from refseg_jax.errors import UserError
from refseg_jax.exports import folder
from refseg_jax.exports.arrays_file import write_arrays
from refseg_jax.exports.onnx_environment import clean_variables, ensure_environment
from refseg_jax.exports.source import Source

_CONVERTER = Path(__file__).with_name("onnx_converter.py")
_LIBRARY = Path(__file__).parents[1]


def write_onnx(
    target: Path, source: Source, environment: Path | None = None
) -> tuple[dict[str, Any], float]:
    """Writes `<name>.onnx` of each of `refseg_jax.models.graphs.GRAPHS`.

    Args:
        target: the folder.
        source: the checkpoint.
        environment: see `ensure_environment`.

    Returns:
        Name -> description of the graph, for `ExportConfig.graphs`; and the largest difference of
        logits from JAX's on random inputs, relative to the largest logit.

    Raises:
        UserError: the environment cannot be made, or the model cannot be converted.
    """
    if source.model.get("inference_rank") == "random":
        # jax2onnx says so only after its environment was made, and in words of its own.
        raise UserError(
            f"{target.name}: config.model.inference_rank='random' draws numbers, for which there is no "
            "ONNX graph; export it with --format=stablehlo"
        )
    python = ensure_environment(environment)
    # Beside the target, on the same disk; files move into the target only once all are converted.
    with tempfile.TemporaryDirectory(prefix=".onnx-", dir=target.parent) as scratch:
        weights, packages, made = (Path(scratch) / n for n in ("weights", "packages", "graphs"))
        weights.mkdir()
        made.mkdir()
        write_arrays(weights / folder.WEIGHTS, source.params)
        config = {"model": source.model, "data": source.data}
        (weights / folder.CONFIG).write_text(json.dumps(config))
        packages.mkdir()
        # A link alone in its folder, because beside this package there may be packages of this
        # process, which the converter must not import.
        (packages / "refseg_jax").symlink_to(_LIBRARY)
        variables = {**clean_variables(), "PYTHONPATH": str(packages), "JAX_PLATFORMS": "cpu"}
        done = subprocess.run(
            # Without -P the script's folder, whose modules have common names, would be searched first.
            [str(python), "-P", str(_CONVERTER), str(weights), str(made)],
            env=variables,
            text=True,
            capture_output=True,
            check=False,
        )
        if done.returncode:
            reason = raised(done.stderr) or f"exit code {done.returncode}"
            raise UserError(
                f"{target.name}: jax2onnx cannot convert this model ({reason[:200]}); "
                "export it with --format=stablehlo"
            )
        written = json.loads((made / "graphs.json").read_text())
        for path in made.glob("*.onnx*"):
            path.rename(target / path.name)
    return written["graphs"], written["error"]


def raised(stderr: str) -> str:
    """The first line of the exception that ended a Python process, else its last line or `""`.

    The last line itself is no use: more lines of the message, and advice of JAX, follow the first.
    """
    tracebacks = re.findall(r"^Traceback .*\n(?:[ \t].*\n)+(\S.*)", stderr, re.MULTILINE)
    words = tracebacks or [line.strip() for line in stderr.splitlines() if line.strip()]
    return words[-1] if words else ""
