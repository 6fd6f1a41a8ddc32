"""Writes the three functions of a model as StableHLO, for servers without this code.

Each file is one `jax.export` artefact for CPUs, CUDA GPUs and TPUs, with a symbolic batch size `b` and
a symbolic number of expressions `k`; of a model of groups, the number of images `n` is symbolic as well.
Its first argument is a flat dict of the parameters that it uses,
which are read from `model.safetensors` beside it, so that weights are stored only once. JAX reads
artefacts that are up to six months older than itself
(https://docs.jax.dev/en/latest/export/export.html#compatibility-guarantees).
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
from jax import export
from jax.extend.core import Literal

from refseg_jax.exports.source import Source
from refseg_jax.layers.target import PORTABLE, compiling_for
from refseg_jax.models.graphs import GRAPHS, Graphs, described, forward_of

PLATFORMS = ("cpu", "cuda", "tpu")

#: Description of a graph in `config.json`: file, parameters that it takes, inputs and outputs.
Graph = dict[str, Any]


def write_graphs(target: Path, source: Source) -> dict[str, Graph]:
    """Writes `<name>.stablehlo` for each of `GRAPHS`.

    Args:
        target: the folder.
        source: the model.

    Returns:
        Name -> description of the graph, for `ExportConfig.graphs`.
    """
    graphs = Graphs(forward_of(source.model))
    batch, count, images = export.symbolic_shape("b, k, n")
    length = source.data["context_length"]
    with compiling_for(PORTABLE):
        inputs = graphs.inputs(batch, count, length, images)
        # Concrete shapes, to find the parameters that a function uses; they do not depend on shapes.
        examples = graphs.inputs(1, 1, length)
        return {name: _write(target, graphs, name, inputs[name], examples[name]) for name in GRAPHS}


def _write(
    target: Path, graphs: Graphs, name: str, inputs: tuple[Any, ...], examples: tuple[Any, ...]
) -> Graph:
    function, shapes = getattr(graphs, name), graphs.forward.shapes
    used = used_params(function, shapes, *examples)

    def run(params: Mapping[str, Any], *arguments: Any) -> Any:
        # Parameters that are not used stay abstract.
        return function({**shapes, **params}, *arguments)

    exported = export.export(jax.jit(run), platforms=PLATFORMS)(
        {path: shapes[path] for path in used}, *inputs
    )
    file = f"{name}.stablehlo"
    (target / file).write_bytes(exported.serialize())
    outputs = jax.tree.unflatten(exported.out_tree, exported.out_avals)
    named = zip(graphs.arguments[name], inputs, strict=True)
    return {
        "file": file,
        "params": used,
        "inputs": {argument: described(x) for argument, x in named},
        "outputs": described(outputs),
    }


def used_params(
    function: Callable[..., Any], params: Mapping[str, Any], *arguments: Any
) -> list[str]:
    """Sorted paths of the parameters that a function's result depends on."""
    jaxpr = jax.make_jaxpr(function)(dict(params), *arguments).jaxpr
    needed = {var for var in jaxpr.outvars if not isinstance(var, Literal)}
    for equation in reversed(jaxpr.eqns):
        if any(var in needed for var in equation.outvars):
            needed |= {var for var in equation.invars if not isinstance(var, Literal)}
    # JAX flattens dicts by sorted keys.
    return [path for path, var in zip(sorted(params), jaxpr.invars, strict=False) if var in needed]
