"""Converts a model to ONNX graphs; `onnx_graphs.py` runs it in the environment of `onnx_environment.py`.

    PYTHONPATH=... python -P onnx_converter.py FOLDER OUTPUT

FOLDER holds `config.json` and `model.safetensors`. OUTPUT gets `<name>.onnx` of each graph, and
`graphs.json`. This script cannot import `refseg_jax.exports`, which needs a newer Orbax.
"""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import onnx  # pyright: ignore[reportMissingImports]
import onnxruntime  # pyright: ignore[reportMissingImports]
from jax import export
from jax2onnx import to_onnx  # pyright: ignore[reportMissingImports]
from safetensors.numpy import load_file

from refseg_jax.layers.target import PORTABLE, compiling_for
from refseg_jax.models.graphs import GRAPHS, Features, Graphs, described, dimensions, forward_of

#: Largest allowed difference of logits from JAX's, relative to the largest logit.
TOLERANCE = 1e-4

#: Bytes of weights that fit into one protobuf file (2 GiB at most) together with the graph.
_LARGEST_FILE = 2**31 - 2**24

#: Fields of the model that are replaced: onnxruntime's CPU kernels have no bfloat16, and
#: rematerialisation only serves training.
_FIELDS = {"dtype": "float32", "remat": False}


def main(folder: Path, output: Path) -> None:
    """Converts the model of `folder` to graphs in `output`, and compares them with JAX.

    Raises:
        ValueError: the graphs' logits differ from the model's.
    """
    config = json.loads((folder / "config.json").read_text())
    model = config["model"]
    model = {**model, **{name: value for name, value in _FIELDS.items() if name in model}}
    graphs, length = Graphs(forward_of(model)), config["data"]["context_length"]
    params = {
        path: jnp.asarray(value) for path, value in load_file(folder / "model.safetensors").items()
    }
    with compiling_for(PORTABLE):
        converted = _convert(graphs, params, length, output)
    error = compare(graphs, params, length, output)
    (output / "graphs.json").write_text(json.dumps({"error": error, "graphs": converted}))


def _convert(
    graphs: Graphs, params: dict[str, jax.Array], length: int, output: Path
) -> dict[str, Any]:
    batch, count, images = export.symbolic_shape("b, k, n")
    inputs = graphs.inputs(batch, count, length, images)
    names = {name: list(given) for name, given in graphs.arguments.items()}
    names["decode"] = [name for features in inputs["decode"] for name in features]
    return {
        name: _write(getattr(graphs, name), params, inputs[name], names[name], output)
        for name in GRAPHS
    }


def _write(
    function: Callable[..., Features],
    params: dict[str, jax.Array],
    inputs: tuple[Any, ...],
    names: list[str],
    output: Path,
) -> dict[str, Any]:
    """Writes one graph, whose inputs and outputs are named arrays (features are flattened)."""
    leaves, structure = jax.tree.flatten(inputs)
    outputs = jax.eval_shape(lambda *args: function(params, *args), *inputs)

    def run(*arguments: jax.Array) -> list[jax.Array]:
        found = function(params, *jax.tree.unflatten(structure, arguments))
        # Copied: jax2onnx cannot name an output that is an input.
        return [jnp.copy(found[name]) for name in outputs]

    plain = [jax.ShapeDtypeStruct(dimensions(leaf), leaf.dtype) for leaf in leaves]
    name = function.__name__
    proto = to_onnx(run, plain, model_name=name, input_names=names, output_names=list(outputs))
    for value in proto.graph.output:
        # jax2onnx names sizes that went through a reshape `dynamic_7` or the like.
        shape = value.type.tensor_type.shape
        for place, size in zip(shape.dim, dimensions(outputs[value.name]), strict=True):
            if isinstance(size, str):
                place.dim_param = size
    weights = sum(len(tensor.raw_data) for tensor in proto.graph.initializer)
    apart = {"save_as_external_data": True, "location": f"{name}.onnx.data"}
    onnx.save(proto, output / f"{name}.onnx", **(apart if weights > _LARGEST_FILE else {}))
    return {
        "file": f"{name}.onnx",
        "inputs": dict(zip(names, map(described, leaves), strict=True)),
        "outputs": described(outputs),
    }


def compare(graphs: Graphs, params: dict[str, jax.Array], length: int, output: Path) -> float:
    """The largest difference of logits from JAX's, relative to the largest logit.

    The inputs are two random images with three random texts each, or two groups of three images.

    Raises:
        ValueError: the difference exceeds `TOLERANCE`.
    """
    rng = np.random.default_rng(0)
    size, config = graphs.forward.model.image_size, graphs.forward.model.config
    rows = (2,) if graphs.group_size is None else (2, 3)
    image = rng.integers(0, 256, (*rows, size, size, 3), np.uint8)
    ends = rng.integers(1, length, (2, 3, 1))

    def draw() -> np.ndarray:
        text = rng.integers(0, config.vocab_size, (2, 3, length), np.int32)
        return np.where(np.arange(length) == ends, config.eos_id, text).astype(np.int32)

    texts = {"text": draw(), "text_valid": np.arange(length) <= ends}
    if "anti_text" in graphs.arguments["encode_text"]:
        texts["anti_text"] = draw()

    def run(name: str, inputs: dict[str, np.ndarray]) -> dict[str, Any]:
        session = onnxruntime.InferenceSession(
            output / f"{name}.onnx", providers=["CPUExecutionProvider"]
        )
        names = [value.name for value in session.get_outputs()]
        return dict(zip(names, session.run(names, inputs), strict=True))

    found = run("decode", {**run("encode_image", {"image": image}), **run("encode_text", texts)})
    error = 0.0
    for name, expected in _logits(graphs, params, image, **texts).items():
        largest = np.abs(expected).max()
        error = max(error, float(np.abs(found[name] - np.asarray(expected)).max() / largest))
        if not error <= TOLERANCE:
            raise ValueError(
                f"{name} in onnxruntime differ from JAX's by {error:.1e} of the largest"
            )
    return error


def _logits(
    graphs: Graphs,
    params: dict[str, jax.Array],
    image: np.ndarray,
    **texts: np.ndarray,
) -> Features:
    features = jax.jit(graphs.encode_image)(params, image)
    words = jax.jit(graphs.encode_text)(params, **texts)
    return jax.jit(graphs.decode)(params, features, words)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
