"""What `jax.lax.scan` over equal transformer layers does to compile time, memory and bytes accessed.

The tower is CLIP's ViT-B at 416 with its group tokens, without stem and norms around it: forward and
backward pass of its blocks in bf16, 8 rows, on one device that need not be there. Each compilation runs
in a process of its own, whose CPU seconds count, so that nothing is cached and other work on the machine
hardly matters. `docs/compile.md` has the results.

python -m tests.benchmarks.scan_bench '{"topology": "v5e:2x2", "form": "scanned", "layers": 12}' prints
one compilation.
"""

import dataclasses
import json
import os
import subprocess
import sys
from collections.abc import Mapping
from typing import Any, Literal

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import SingleDeviceSharding

from refseg_jax.errors import UserError
from refseg_jax.layers.target import Target, compiling_for
from refseg_jax.layers.transformer import BlockScales, TransformerBlock, run_block
from refseg_jax.models.forward import Forward
from tools.compile import costs, hlo
from tools.compile.topology import Topology

WIDTH, HEADS, ROWS, DTYPE = 768, 12, 8, jnp.bfloat16
#: Number of runs of equal shape -> tokens of each. UniRES has two, as its group tokens change midway.
TOKENS = {1: (741,), 2: (741, 685)}


@dataclasses.dataclass(frozen=True)
class Case:
    """What to compile.

    Attributes:
        topology: as of `tools.compile`; the first of its devices is compiled for.
        form: `unrolled` as in the encoders, or `scanned` with the layers' kernels cast to bf16 and
            stacked inside the step, so that parameters and gradients keep their paths.
        layers: number of blocks.
        runs: number of runs of equal shape, see `TOKENS`.
        remat: whether the backward pass recomputes each block.
        saved: where a scanned body recomputes all but its products and kernels.
    """

    topology: str
    form: Literal["unrolled", "scanned"]
    layers: int
    runs: int = 1
    remat: bool = False
    saved: bool = False


def compile_case(case: Case) -> dict[str, float]:
    """CPU seconds of compilation, GiB of temporaries, and GB accessed as `Figures` has them."""
    device = Topology(case.topology).devices()[0]
    block = Forward(
        lambda rngs: TransformerBlock(
            WIDTH,
            HEADS,
            activation="quick_gelu",
            scales=BlockScales.of(WIDTH, case.layers),
            dtype=DTYPE,
            rngs=rngs,
        )
    )

    def shape(size: tuple[int, ...], dtype: Any) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(size, dtype, sharding=SingleDeviceSharding(device))

    layer = {path: shape(leaf.shape, leaf.dtype) for path, leaf in block.shapes.items()}
    tokens = TOKENS[case.runs]
    x = shape((ROWS, tokens[0], WIDTH), DTYPE)

    def work(layers: list[Any], x: jax.Array, cotangent: jax.Array) -> Any:
        return jax.value_and_grad(loss, (0, 1))(layers, x, cotangent)

    def loss(layers: list[Any], x: jax.Array, cotangent: jax.Array) -> jax.Array:
        length = len(layers) // len(tokens)
        for number, count in enumerate(tokens):
            x = _run(block, layers[number * length :][:length], x[:, :count], case)
        wide = x.astype(jnp.float32)
        return jnp.sum(wide * cotangent[:, : tokens[-1]].astype(jnp.float32))

    began = os.times().user
    with compiling_for(Target.of(device)):
        compiled = jax.jit(work).lower([layer] * case.layers, x, x).compile()
    seconds = os.times().user - began
    cost: Any = compiled.cost_analysis()
    memory: Any = compiled.memory_analysis()
    program = hlo.read(compiled.as_text() or "")
    accessed = cost["bytes accessed"] * costs.loop_factors(program)[1]
    return {
        "seconds": seconds,
        "temporaries": memory.temp_size_in_bytes / 2**30,
        "accessed": accessed / 1e9,
    }


def _run(block: Forward, layers: list[Any], x: jax.Array, case: Case) -> jax.Array:
    def call(leaves: Mapping[str, Any], x: jax.Array) -> jax.Array:
        return block.bind(leaves)(x)  # pyright: ignore

    if case.form == "unrolled":
        for layer in layers:
            x = run_block(call, layer, x, remat=case.remat)
        return x
    body = call
    if case.remat or case.saved:
        policy = _products if case.saved else None
        body = jax.checkpoint(call, policy=policy, prevent_cse=False)
    stacked = {
        path: jnp.stack([_cast(path, layer[path]) for layer in layers]) for path in layers[0]
    }
    return jax.lax.scan(lambda x, leaves: (body(leaves, x), None), x, stacked)[0]


def _products(primitive: Any, *_: Any, **__: Any) -> bool:
    return primitive.name in ("dot_general", "pallas_call")


def _cast(path: str, leaf: jax.Array) -> jax.Array:
    """As `Linear` casts its parameters; norms compute in f32."""
    return leaf if "norm" in path else leaf.astype(DTYPE)


@pytest.mark.bench
@pytest.mark.parametrize("runs", TOKENS)
@pytest.mark.parametrize("layers", [12, 24])
@pytest.mark.parametrize("topology", ["cpu:1", "v5e:2x2"])
def test_scan_over_equal_layers(topology: str, layers: int, runs: int) -> None:
    print(f"\n{topology}, {layers} layers in runs of {layers // runs}:")
    print("remat  form       CPU seconds  temporaries     accessed")
    for remat in (False, True):
        for form in ("unrolled", "scanned"):
            found = in_a_process(Case(topology, form, layers, runs, remat))
            print(
                f"{remat!s:5}  {form:9}  {found['seconds']:11.1f}  "
                f"{found['temporaries']:7.2f} GiB  {found['accessed']:7.1f} GB"
            )


def in_a_process(case: Case) -> dict[str, float]:
    """`compile_case` in a process that has the compiler's environment."""
    try:
        environment = Topology(case.topology).environment(os.environ)
    except UserError as error:
        pytest.skip(str(error))
    command = [sys.executable, "-m", "tests.benchmarks.scan_bench", json.dumps(vars(case))]
    done = subprocess.run(command, env=environment, check=True, capture_output=True, text=True)
    return json.loads(done.stdout.splitlines()[-1])


if __name__ == "__main__":
    print(json.dumps(compile_case(Case(**json.loads(sys.argv[1])))))
