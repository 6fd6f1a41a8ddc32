"""The three functions of a model as StableHLO, for servers without this code.

Each file is one `jax.export` artefact for CPUs, CUDA GPUs and TPUs, with a symbolic batch `b` and a
symbolic number of expressions `k`. Its first argument is a flat dict of just the parameters that it
uses, read from `model.safetensors` beside it, so that weights are stored once. JAX reads artefacts of
up to six months before (https://docs.jax.dev/en/latest/export/export.html#compatibility-guarantees).
"""

import inspect
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
from jax import export
from jax.extend.core import Literal

from refseg_jax.batch import Array
from refseg_jax.engines import GRAPHS, Features, Graphs, described, forward_of
from refseg_jax.errors import UserError
from refseg_jax.exports import folder
from refseg_jax.exports.arrays_file import read_arrays
from refseg_jax.exports.folder import ExportConfig
from refseg_jax.exports.graphs_of_config import read_description
from refseg_jax.exports.source import Source
from refseg_jax.layers.attention import portable_attention

PLATFORMS = ("cpu", "cuda", "tpu")

#: What `config.json` says of a graph: its file, the parameters that it takes, and the shapes.
Graph = dict[str, Any]


def write_graphs(target: Path, source: Source) -> dict[str, Graph]:
    """Writes `<name>.stablehlo` of each of `GRAPHS`; what is needed to call them, by name."""
    graphs = Graphs(forward_of(source.model))
    batch, count = export.symbolic_shape("b, k")
    with portable_attention():
        inputs = graphs.inputs(batch, count, source.data["context_length"])
        # The parameters that a function uses do not depend on the shapes.
        examples = graphs.inputs(1, 1, source.data["context_length"])
        return {
            name: _write(target, getattr(graphs, name), inputs[name], examples[name])
            for name in GRAPHS
        }


def _write(
    target: Path, function: Callable[..., Any], inputs: tuple[Any, ...], examples: tuple[Any, ...]
) -> Graph:
    name = function.__name__
    graphs: Graphs = function.__self__  # pyright: ignore[reportFunctionMemberAccess]
    shapes = graphs.forward.shapes
    used = used_params(function, shapes, *examples)

    def run(params: Mapping[str, Any], *arguments: Any) -> Any:
        # What is not used stays abstract.
        return function({**shapes, **params}, *arguments)

    exported = export.export(jax.jit(run), platforms=PLATFORMS)(
        {path: shapes[path] for path in used}, *inputs
    )
    file = f"{name}.stablehlo"
    (target / file).write_bytes(exported.serialize())
    outputs = jax.tree.unflatten(exported.out_tree, exported.out_avals)
    names = list(inspect.signature(function).parameters)[1:]
    return {
        "file": file,
        "params": used,
        "inputs": {n: described(x) for n, x in zip(names, inputs, strict=True)},
        "outputs": described(outputs),
    }


def used_params(
    function: Callable[..., Any], params: Mapping[str, Any], *arguments: Any
) -> list[str]:
    """The parameters that reach a function's result, in the order of their names."""
    jaxpr = jax.make_jaxpr(function)(dict(params), *arguments).jaxpr
    needed = {var for var in jaxpr.outvars if not isinstance(var, Literal)}
    for equation in reversed(jaxpr.eqns):
        if any(var in needed for var in equation.outvars):
            needed |= {var for var in equation.invars if not isinstance(var, Literal)}
    # JAX flattens dicts in the order of their keys.
    return [path for path, var in zip(sorted(params), jaxpr.invars, strict=False) if var in needed]


class StablehloEngine:
    """Exported graphs with the weights beside them; see `refseg_jax.engines.Engine`."""

    def __init__(self, path: Path, config: ExportConfig) -> None:
        """Reads the graphs; nothing of the model's code is used.

        Raises:
            UserError: a file is missing, damaged, or of a JAX too far from this one.
        """
        graphs = read_description(path, config)
        self._names = graphs.params
        weights = read_arrays(folder.verified(path, config, folder.WEIGHTS))
        used = {name for names in self._names.values() for name in names}
        if missing := sorted(used - weights.keys()):
            raise UserError(f"{path / folder.WEIGHTS}: it has no {missing[0]!r}; export again")
        self._params = jax.device_put({name: weights[name] for name in used})
        self.image_size, self.mask_stride = graphs.image_size, graphs.mask_stride
        self.config = graphs.model
        # Jitted, so that each shape is compiled once.
        self._graphs = {
            name: jax.jit(read_graph(folder.verified(path, config, file)).call)
            for name, file in graphs.files.items()
        }

    def encode_image(self, image: Array) -> Features:
        """See `Engine`."""
        return self._run("encode_image", image)

    def encode_text(self, text: Array, text_valid: Array) -> Features:
        """See `Engine`."""
        return self._run("encode_text", text, text_valid)

    def decode(self, image_features: Features, text_features: Features) -> Features:
        """See `Engine`."""
        return self._run("decode", image_features, text_features)

    def _run(self, name: str, *inputs: Any) -> Features:
        params = {path: self._params[path] for path in self._names[name]}
        return self._graphs[name](params, *inputs)


def read_graph(path: Path) -> export.Exported:
    """One artefact.

    Raises:
        UserError: it is none, or of a JAX too far from this one.
    """
    cure = f"export again with a JAX near {jax.__version__}, or use the JAX that wrote it"
    try:
        graph = export.deserialize(bytearray(path.read_bytes()))
    except Exception as error:  # Whatever flatbuffers and JAX's reader think of the bytes.
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
