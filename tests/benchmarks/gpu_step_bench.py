"""The training step of UniRES B/16 at 416 in bf16 on one GPU, with the largest batch that fits.

The operations counted are those of the plain step with attention written out: without recomputation
by remat and without padding of kernels (the few of an activation are counted twice). The peak rate is
that of a large bf16 matrix product, which takes turns with the step.
"""

import dataclasses
import gc
import time
from collections.abc import Callable
from functools import partial
from statistics import median
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from refseg_jax import sharding
from refseg_jax.batch import Batch
from refseg_jax.layers.target import PORTABLE, compiling_for
from refseg_jax.models import build_model
from refseg_jax.models.forward import Forward
from refseg_jax.training.objectives import MaskObjective
from refseg_jax.training.optim import OptimConfig
from refseg_jax.training.state import Trainer, TrainState
from tests.benchmarks.turns import ratios, spread, take_turns

MODEL: dict[str, Any] = {"name": "unires", "preset": "B/16", "dtype": "bfloat16"}
#: The batch is doubled from the first to the last, until the memory is full.
FIRST_BATCH, LAST_BATCH = 8, 4096
ROUNDS, STEPS, SIDE = 5, 10, 8192
LENGTH = 17


@dataclasses.dataclass(frozen=True)
class Variant:
    """A way of training: with or without remat, with K expressions per image."""

    remat: bool
    expressions: int

    def __str__(self) -> str:
        return f"K = {self.expressions}, {'remat' if self.remat else 'no remat'}"

    def trainer(self, mesh: jax.sharding.Mesh) -> Trainer:
        fields = {**MODEL, "remat": self.remat}
        forward = Forward(lambda rngs: build_model(fields, rngs=rngs))
        return Trainer(forward, MaskObjective(), OptimConfig(lr=1e-5), steps=1000, mesh=mesh)


@dataclasses.dataclass(frozen=True)
class Fit:
    """A variant with the largest batch that fits into memory."""

    trainer: Trainer
    step: Any
    batch: Batch

    @property
    def memory(self) -> float:
        """Peak memory of the step in GiB, with its state and batch."""
        sizes = self.step.memory_analysis()
        kept = sizes.argument_size_in_bytes + sizes.output_size_in_bytes
        return (kept - sizes.alias_size_in_bytes + sizes.temp_size_in_bytes) / 2**30


@pytest.mark.gpu
# XLA's warnings about a full memory are no failure of the benchmark.
@pytest.mark.filterwarnings("default")
def test_training_step_of_unires_b16_at_416_in_bf16():
    card = find_gpu()
    mesh = sharding.make_mesh(sharding.MeshConfig(), [card])
    start = jax.device_get(Variant(False, 1).trainer(mesh).create())
    print(f"\n{card.device_kind}, {limit_of(card)}")
    print(
        "                   batch   GiB  images/s   pairs/s  TFLOP/s  share of the matmul peak, %"
    )
    pairs: dict[Variant, float] = {}
    for variant in [Variant(remat, k) for k in (1, 8) for remat in (False, True)]:
        fit = fill(variant, mesh, start)
        if fit is None:
            print(f"{variant!s:18} a batch of {FIRST_BATCH} does not fit")
        else:
            pairs[variant] = report(variant, fit, start)
        del fit
        gc.collect()
    for one, other in (
        (Variant(True, 1), Variant(False, 1)),
        (Variant(True, 8), Variant(False, 8)),
        (Variant(False, 8), Variant(False, 1)),
        (Variant(True, 8), Variant(True, 1)),
    ):
        if one in pairs and other in pairs:
            print(f"pairs/s, {one} / {other}: {pairs[one] / pairs[other]:.2f}")


def find_gpu() -> Any:
    """The first GPU."""
    devices = jax.devices()
    if devices[0].platform != "gpu":
        pytest.skip(f"JAX finds no GPU here, only {devices[0].platform}")
    return devices[0]


def limit_of(card: Any) -> str:
    limit = (card.memory_stats() or {}).get("bytes_limit", 0)
    return f"of which JAX may take {limit / 2**30:.1f} GiB"


def fill(variant: Variant, mesh: jax.sharding.Mesh, start: TrainState) -> Fit | None:
    """The variant with the largest batch that runs, or `None` if the first batch does not fit."""
    fit, rows = None, FIRST_BATCH
    while rows <= LAST_BATCH:
        try:
            fit = try_batch(variant.trainer(mesh), rows, variant.expressions, start)
        except jax.errors.JaxRuntimeError as error:
            if "RESOURCE_EXHAUSTED" not in str(error):
                raise
            break
        rows *= 2
    # Reference cycles through the traceback keep the arrays of the failed trial alive.
    gc.collect()
    return fit


def try_batch(trainer: Trainer, rows: int, expressions: int, start: TrainState) -> Fit:
    """Compiles and runs two steps.

    Raises:
        jax.errors.JaxRuntimeError: RESOURCE_EXHAUSTED, the memory is too small.
    """
    size: int = trainer.forward.model.image_size  # pyright: ignore
    cells = size // trainer.forward.model.mask_stride  # pyright: ignore
    batch = random_batch(rows, expressions, size, cells)
    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), batch)
    fit = Fit(trainer, trainer.compile_step().lower(trainer.abstract(), shapes).compile(), batch)
    run_steps(fit, start, 2)
    return fit


def run_steps(fit: Fit, start: TrainState, steps: int) -> float:
    """Seconds per step, starting from the same state each time."""
    state = jax.device_put(start, fit.trainer.shardings())
    batch = sharding.put_batch(fit.batch, fit.trainer.mesh)
    state, metrics = fit.step(state, batch)
    jax.block_until_ready(metrics)
    begun = time.perf_counter()
    for _ in range(steps):
        state, metrics = fit.step(state, batch)
    jax.block_until_ready((state, metrics))
    seconds = (time.perf_counter() - begun) / steps
    assert np.isfinite(float(metrics["loss"]))
    return seconds


def report(variant: Variant, fit: Fit, start: TrainState) -> float:
    """Prints the row of a variant; returns its pairs per second."""
    work = count_flops(dataclasses.replace(variant, remat=False).trainer(fit.trainer.mesh), fit)
    multiply = make_multiply(fit.trainer.mesh.devices.flat[0])
    works: dict[str, Callable[[], float]] = {
        "matmul": multiply,
        "step": partial(run_steps, fit, start, STEPS),
    }
    seconds = take_turns(works, ROUNDS)
    step, rows = median(seconds["step"]), len(fit.batch.image)
    peaks = [2 * SIDE**3 / s for s in seconds["matmul"]]
    reached = [work / s for s in seconds["step"]]
    print(
        f"{variant!s:18} {rows:5} {fit.memory:5.1f} {rows / step:9.1f} "
        f"{rows * variant.expressions / step:9.1f} {median(reached) / 1e12:8.1f}  "
        f"{spread([100 * r for r in ratios(reached, peaks)], '.1f')} of {median(peaks) / 1e12:.0f}",
        flush=True,
    )
    return rows * variant.expressions / step


def make_multiply(device: Any) -> Callable[[], float]:
    """Returns a function that measures the seconds of a large bf16 matrix product."""
    left, right = (
        jax.device_put(jax.random.normal(jax.random.key(k), (SIDE, SIDE), jnp.bfloat16), device)
        for k in range(2)
    )
    product = jax.jit(jnp.matmul)
    jax.block_until_ready(product(left, right))

    def multiply() -> float:
        begun = time.perf_counter()
        result = left
        for _ in range(STEPS):
            result = product(left, right)
        jax.block_until_ready(result)
        return (time.perf_counter() - begun) / STEPS

    return multiply


def count_flops(plain: Trainer, fit: Fit) -> float:
    """Operations of a step of the plain trainer on the fit's batch, as XLA counts them.

    They are counted before XLA's passes and with attention written out, because calls of cuBLAS and
    cuDNN would count as zero.
    """
    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), fit.batch)
    with compiling_for(PORTABLE):
        lowered = jax.jit(plain.step).lower(plain.abstract(), shapes)
    cost: Any = lowered.cost_analysis()
    return float(cost["flops"])


def random_batch(rows: int, expressions: int, size: int, cells: int) -> Batch:
    """A batch of noise, with texts of all lengths."""
    rng = np.random.default_rng(0)
    ends = rng.integers(4, LENGTH, (rows, expressions, 1))
    place = np.arange(LENGTH)
    text = rng.integers(1, 49000, (rows, expressions, LENGTH))
    text = np.where(place < ends, text, np.where(place == ends, 49407, 0))
    shape = (rows, 1, expressions)
    return Batch(
        image=rng.integers(0, 256, (rows, 1, size, size, 3), np.uint8),
        text=text.astype(np.int32),
        text_valid=place <= ends,
        mask=rng.integers(0, 256, (*shape, cells, cells), np.uint8),
        present=np.ones(shape, bool),
        valid=np.ones(shape, bool),
        size=np.full((rows, 1, 2), size, np.int32),
        affine=np.tile(np.eye(2, 3, dtype=np.float32), (rows, 1, 1, 1)),
    )
