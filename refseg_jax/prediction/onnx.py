"""Runs the ONNX graphs of an exported folder."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from refseg_jax.batch import Array
from refseg_jax.errors import UserError
from refseg_jax.exports.folder import ExportConfig
from refseg_jax.exports.graphs_of_config import read_description
from refseg_jax.models.graphs import Features


class OnnxEngine:
    """Runs exported graphs in onnxruntime on the CPU; see `refseg_jax.prediction.engines.Engine`."""

    def __init__(self, path: Path, config: ExportConfig) -> None:
        """Reads the graphs. The code of the model is not used.

        Args:
            path: the exported folder, whose files have been checked.
            config: its config.

        Raises:
            UserError: onnxruntime is not installed or cannot read a graph.
        """
        try:
            import onnxruntime  # pyright: ignore[reportMissingImports]
        except ImportError:
            raise UserError(
                f"{path}: ONNX graphs need onnxruntime; pip install 'refseg_jax[onnx]'"
            ) from None
        graphs = read_description(path, config)
        self.image_size, self.mask_stride = graphs.image_size, graphs.mask_stride
        self.config, self.group_size = graphs.model, graphs.group_size
        self._sessions = {}
        for name, file in graphs.files.items():
            graph = path / file
            try:
                self._sessions[name] = onnxruntime.InferenceSession(
                    graph, providers=["CPUExecutionProvider"]
                )
            except Exception as error:  # onnxruntime has one class of its own for each status.
                reason = " ".join(str(error).split())[:120]
                raise UserError(
                    f"{graph}: onnxruntime {onnxruntime.__version__} cannot read it ({reason}); "
                    "export again, or install a newer onnxruntime"
                ) from None

    def encode_image(self, image: Array) -> Features:
        """See `Engine`."""
        return self._run("encode_image", {"image": image})

    def encode_text(self, text: Array, text_valid: Array, *anti_text: Array) -> Features:
        """See `Engine`."""
        anti = {"anti_text": anti_text[0]} if anti_text else {}
        return self._run("encode_text", {"text": text, "text_valid": text_valid, **anti})

    def decode(self, image_features: Features, text_features: Features) -> Features:
        """See `Engine`."""
        return self._run("decode", {**image_features, **text_features})

    def _run(self, name: str, inputs: Mapping[str, Array]) -> Features:
        session = self._sessions[name]
        names = [value.name for value in session.get_outputs()]
        arrays = {key: np.asarray(value) for key, value in inputs.items()}
        return dict(zip(names, session.run(names, arrays), strict=True))
