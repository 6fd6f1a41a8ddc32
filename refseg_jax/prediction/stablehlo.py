"""Runs the StableHLO graphs of an exported folder."""

from pathlib import Path
from typing import Any

import jax
from jax import export

from refseg_jax.batch import Array
from refseg_jax.errors import UserError
from refseg_jax.exports import folder
from refseg_jax.exports.arrays_file import read_arrays
from refseg_jax.exports.folder import ExportConfig
from refseg_jax.exports.graphs_of_config import read_description
from refseg_jax.models.graphs import Features


class StablehloEngine:
    """Runs exported graphs, in JAX, with their weights; see `refseg_jax.prediction.engines.Engine`."""

    def __init__(self, path: Path, config: ExportConfig) -> None:
        """Reads graphs and weights. The code of the model is not used.

        Args:
            path: the exported folder, whose files have been checked.
            config: its config.

        Raises:
            UserError: the weights lack a parameter, or this JAX cannot read the graphs.
        """
        graphs = read_description(path, config)
        self._names = graphs.params
        weights = read_arrays(path / folder.WEIGHTS)
        used = {name for names in self._names.values() for name in names}
        if missing := sorted(used - weights.keys()):
            raise UserError(f"{path / folder.WEIGHTS}: it has no {missing[0]!r}; export again")
        self._params = jax.device_put({name: weights[name] for name in used})
        self.image_size, self.mask_stride = graphs.image_size, graphs.mask_stride
        self.config, self.group_size = graphs.model, graphs.group_size
        # Jitted, so that each shape is compiled only once.
        self._graphs = {
            name: jax.jit(read_graph(path / file).call) for name, file in graphs.files.items()
        }

    def encode_image(self, image: Array) -> Features:
        """See `Engine`."""
        return self._run("encode_image", image)

    def encode_text(self, text: Array, text_valid: Array, *anti_text: Array) -> Features:
        """See `Engine`."""
        return self._run("encode_text", text, text_valid, *anti_text)

    def decode(self, image_features: Features, text_features: Features) -> Features:
        """See `Engine`."""
        return self._run("decode", image_features, text_features)

    def _run(self, name: str, *inputs: Any) -> Features:
        params = {path: self._params[path] for path in self._names[name]}
        return self._graphs[name](params, *inputs)


def read_graph(path: Path) -> export.Exported:
    """Reads one graph.

    Raises:
        UserError: the file is not a graph, or its JAX is too far from this one.
    """
    cure = f"export again with a JAX near {jax.__version__}, or use the JAX that wrote it"
    try:
        graph = export.deserialize(bytearray(path.read_bytes()))
    except Exception as error:  # Any exception of flatbuffers or of JAX's reader.
        reason = " ".join(str(error).split())[:120]
        raise UserError(
            f"{path}: JAX {jax.__version__} cannot read it ({reason}); {cure}"
        ) from None
    least = export.minimum_supported_calling_convention_version
    most = export.maximum_supported_calling_convention_version
    if not least <= graph.calling_convention_version <= most:
        raise UserError(
            f"{path}: calling convention {graph.calling_convention_version}, JAX "
            f"{jax.__version__} knows {least} to {most}; {cure}"
        )
    return graph
