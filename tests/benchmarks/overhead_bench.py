"""The share of a training step that is not the model, on the experiment of `make run`.

The training loop with its pipeline, metrics and progress line takes turns with the jitted step alone, on
one batch that is already on the device. The share is the additional time of the loop. On a CPU it
includes the cores that the pipeline's threads take from the step.
"""

import dataclasses
import functools
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import pytest

from configs import scenes_unires
from input_pipeline import pipeline
from refseg_jax import sharding
from refseg_jax.checkpoints.checkpointer import Checkpointer
from refseg_jax.models import build_model
from refseg_jax.models.forward import Forward
from refseg_jax.naming import construct
from refseg_jax.reporting.writers import FileWriter, ProgressLine
from refseg_jax.training.loop import LoopConfig, Run, Start
from refseg_jax.training.objectives import build_objective
from refseg_jax.training.optim import OptimConfig
from refseg_jax.training.preemption import Preemption
from refseg_jax.training.state import Trainer, TrainState
from tests.benchmarks.turns import ratios, spread, take_turns
from tests.input_pipeline.tiny_dataset import build_tiny_dataset

ROUNDS, STEPS = 4, 8
#: Steps between two lines of metrics. `make run` writes only every tenth step.
LOG_EVERY = 1


class CompiledOnce(Trainer):
    """A trainer whose rounds share one compilation."""

    @functools.cached_property
    def _compiled(self) -> Callable[..., Any]:
        return super().compile_step()

    def compile_step(self) -> Callable[..., Any]:
        return self._compiled


class Timed:
    """Adds up the time of the methods of a writer or progress line, and keeps the last values."""

    def __init__(self, inner: Any) -> None:
        self.inner = inner
        self.seconds = 0.0
        self.last: dict[str, Any] = {}

    def __getattr__(self, name: str) -> Callable[..., Any]:
        method = getattr(self.inner, name)

        def call(*args: Any, **kwargs: Any) -> Any:
            start = time.perf_counter()
            try:
                return method(*args, **kwargs)
            finally:
                self.seconds += time.perf_counter() - start
                self.last |= kwargs

        return call


@pytest.mark.bench
def test_share_of_the_training_step_that_is_not_the_model(tmp_path):
    config: Any = scenes_unires.get_config()
    forward = Forward(lambda rngs: build_model(config.model.to_dict(), rngs=rngs))
    side = forward.model.image_size  # pyright: ignore
    build_tiny_dataset(tmp_path, {"train": 64}, (side, side))
    sizes = {"image_size": side, "mask_stride": forward.model.mask_stride}  # pyright: ignore
    changes = {**sizes, "data_dir": str(tmp_path), "dataset": "tiny"}
    data = construct(
        pipeline.PipelineConfig, {**config.data.to_dict(), **changes}, what="config.data"
    )
    trainer = CompiledOnce(
        forward,
        build_objective(config.objective),
        construct(OptimConfig, config.optim, what="config.optim"),
        steps=STEPS + 1,
        mesh=sharding.make_mesh(sharding.MeshConfig()),
    )
    bench = Bench(trainer, data, config.batch_size, tmp_path)
    bench.loop()
    bench.waits.clear()
    bench.tells.clear()
    seconds = take_turns({"loop": bench.loop, "bare": bench.bare}, ROUNDS)
    shares = [100 * (1 - r) for r in ratios(seconds["bare"], seconds["loop"])]
    print(f"\nTraining steps of {config.batch_size} images, {ROUNDS} rounds of {STEPS} steps")
    print(f"loop          {spread(seconds['loop'])} s a step")
    print(f"bare step     {spread(seconds['bare'])} s")
    print(f"data wait     {spread(bench.waits, '.2f')} % of the loop")
    print(f"metrics, log  {spread(bench.tells, '.2f')} %")
    print(f"not the model {spread(shares, '.2f')} %   (bar: < 3)")


@dataclasses.dataclass
class Bench:
    """Both sides, and the loop's time of waiting and of reporting (percent, one number per round)."""

    trainer: CompiledOnce
    data: pipeline.PipelineConfig
    batch_size: int
    folder: Path
    waits: list[float] = dataclasses.field(default_factory=list)
    tells: list[float] = dataclasses.field(default_factory=list)

    @functools.cached_property
    def _start(self) -> TrainState:
        return self.trainer.create()

    def fresh(self) -> TrainState:
        """A copy of the initial state: steps consume theirs, and making a new one would compile."""
        return jax.tree.map(jnp.copy, self._start)

    def loop(self) -> float:
        """Seconds per step in a whole run, without its first step, which fills the pipeline."""
        number = len(self.waits)
        workdir = self.folder / f"run{number}-{time.monotonic_ns()}"
        # A new iterator, because one that has paused would have batches in store.
        batches = self._batches(number)
        checkpointer = Checkpointer(workdir / "checkpoints", keep_latest=1)
        writer, progress = Timed(FileWriter(workdir)), Timed(ProgressLine(self.trainer.steps))
        with Preemption() as preemption:
            run = Run(
                trainer=self.trainer,
                config=LoopConfig(log_every=LOG_EVERY, save_every=0),
                batches=batches,
                evaluations=(),
                checkpointer=checkpointer,
                writer=writer,  # pyright: ignore
                progress=progress,  # pyright: ignore
                preemption=preemption,
                resolved_config={},
                workdir=workdir,
            )
            run.train(Start(self.fresh()))
        batches.close()
        checkpointer.close()
        # The value of the last step, before anything is saved.
        seconds = self.batch_size / progress.last["images_per_second"]
        self.waits.append(100 * progress.last["data_wait_share"])
        self.tells.append(100 * (writer.seconds + progress.seconds) / (STEPS * seconds))
        writer.close()
        return seconds

    def bare(self) -> float:
        """Seconds per step on one batch in memory, with one step in flight as in the loop."""
        step, state = self.trainer.compile_step(), self.fresh()
        batches = self._batches(0)
        batch = sharding.put_batch(next(batches).batch, self.trainer.mesh)
        batches.close()
        state, metrics = step(state, batch)
        jax.block_until_ready(metrics)
        start = time.perf_counter()
        before = None
        for _ in range(STEPS):
            state, metrics = step(state, batch)
            jax.block_until_ready(before)
            before = metrics
        jax.block_until_ready((state, before))
        return (time.perf_counter() - start) / STEPS

    def _batches(self, seed: int) -> Any:
        return pipeline.train_batches(self.data, batch_size=self.batch_size, seed=seed)
