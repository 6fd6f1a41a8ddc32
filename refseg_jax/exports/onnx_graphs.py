"""The three functions of a model as ONNX graphs with their weights inside, and what runs them.

Batch `b` and number of expressions `k` are dynamic. No parameter is stored twice: each graph holds its
own. All is computed in f32, whatever the model was trained in.
"""

import json
import re
import subprocess
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

import refseg_jax
from refseg_jax.batch import Array
from refseg_jax.engines import Features
from refseg_jax.errors import UserError
from refseg_jax.exports import folder
from refseg_jax.exports.arrays_file import write_arrays
from refseg_jax.exports.folder import ExportConfig
from refseg_jax.exports.graphs_of_config import read_description
from refseg_jax.exports.onnx_environment import clean_variables, ensure_environment
from refseg_jax.exports.source import Source

_CONVERTER = Path(__file__).with_name("onnx_converter.py")


def write_onnx(
    target: Path, source: Source, environment: Path | None = None
) -> tuple[dict[str, Any], float]:
    """Writes `<name>.onnx` of each of `refseg_jax.engines.GRAPHS`.

    Args:
        target: the folder.
        source: the checkpoint.
        environment: see `ensure_environment`.

    Returns:
        What is needed to call each graph, by name; and the largest difference of logits from JAX's on
        random inputs, relative to the largest logit.

    Raises:
        UserError: the environment cannot be made, or the model not converted.
    """
    python = ensure_environment(environment)
    # Beside the target, where there is room for graphs; nothing half-converted gets into it.
    with tempfile.TemporaryDirectory(prefix=".onnx-", dir=target.parent) as scratch:
        weights, packages, made = (Path(scratch) / n for n in ("weights", "packages", "graphs"))
        weights.mkdir()
        made.mkdir()
        write_arrays(weights / folder.WEIGHTS, source.params)
        config = {"model": source.model, "data": source.data}
        (weights / folder.CONFIG).write_text(json.dumps(config))
        packages.mkdir()
        # Beside this package may lie those of this process, which the converter must not see.
        (packages / "refseg_jax").symlink_to(Path(refseg_jax.__file__).parent)
        variables = {**clean_variables(), "PYTHONPATH": str(packages), "JAX_PLATFORMS": "cpu"}
        done = subprocess.run(
            # Without -P the folder of the script comes first, where modules have common names.
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
    """The first line of the exception that ended a Python process; else its last words, if any.

    After an exception may stand more lines of its message, and advice of JAX.
    """
    tracebacks = re.findall(r"^Traceback .*\n(?:[ \t].*\n)+(\S.*)", stderr, re.MULTILINE)
    words = tracebacks or [line.strip() for line in stderr.splitlines() if line.strip()]
    return words[-1] if words else ""


class OnnxEngine:
    """Exported graphs in onnxruntime, on the CPU; see `refseg_jax.engines.Engine`."""

    def __init__(self, path: Path, config: ExportConfig) -> None:
        """Reads the graphs; neither the model's code nor its weights in JAX are used.

        Raises:
            UserError: onnxruntime is not installed, or a file is missing or damaged.
        """
        try:
            import onnxruntime  # pyright: ignore[reportMissingImports]
        except ImportError:
            raise UserError(
                f"{path}: ONNX graphs need onnxruntime; pip install 'refseg_jax[onnx]'"
            ) from None
        graphs = read_description(path, config)
        self.image_size, self.mask_stride = graphs.image_size, graphs.mask_stride
        self.config = graphs.model
        for name in config.sha256:
            # Weights that are too large for the file lie beside it.
            if name.endswith(".onnx.data"):
                folder.verified(path, config, name)
        self._sessions = {}
        for name, file in graphs.files.items():
            graph = folder.verified(path, config, file)
            try:
                self._sessions[name] = onnxruntime.InferenceSession(
                    graph, providers=["CPUExecutionProvider"]
                )
            except Exception as error:  # onnxruntime has its own, one class a status.
                reason = " ".join(str(error).split())[:120]
                raise UserError(
                    f"{graph}: onnxruntime {onnxruntime.__version__} cannot read it ({reason}); "
                    "export again, or install a newer onnxruntime"
                ) from None

    def encode_image(self, image: Array) -> Features:
        """See `Engine`."""
        return self._run("encode_image", {"image": image})

    def encode_text(self, text: Array, text_valid: Array) -> Features:
        """See `Engine`."""
        return self._run("encode_text", {"text": text, "text_valid": text_valid})

    def decode(self, image_features: Features, text_features: Features) -> Features:
        """See `Engine`."""
        return self._run("decode", {**image_features, **text_features})

    def _run(self, name: str, inputs: Mapping[str, Array]) -> Features:
        session = self._sessions[name]
        names = [value.name for value in session.get_outputs()]
        arrays = {key: np.asarray(value) for key, value in inputs.items()}
        return dict(zip(names, session.run(names, arrays), strict=True))
