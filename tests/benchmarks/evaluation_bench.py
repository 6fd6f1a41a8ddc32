"""A whole evaluation over images of many sizes: compiled once, and compared with the model alone."""

import contextlib
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from input_pipeline import pipeline
from refseg_jax import sharding
from refseg_jax.evaluation.counts import pair_counts
from refseg_jax.evaluation.evaluator import Evaluator
from refseg_jax.evaluation.protocols import State, build_protocol
from refseg_jax.models import build_model
from refseg_jax.models.forward import Forward
from tests.benchmarks.turns import clocked, cpu_seconds, ratios, spread, take_turns
from tests.input_pipeline.tiny_dataset import build_tiny_dataset, make_record

ROUNDS, IMAGES, BATCH_SIZE = 5, 32, 8
CANVAS, SCENES = (256, 256), (128, 128)
MODEL = {"name": "unires", "preset": "tiny"}


@pytest.mark.bench
def test_one_compilation_for_images_of_many_sizes(tmp_path):
    build_many_sizes(tmp_path)
    forward = Forward(lambda rngs: build_model(MODEL, rngs=rngs))
    params = jax.jit(forward.init)(jax.random.key(0))
    make_batches = partial(
        pipeline.eval_batches, data_config(tmp_path, forward), batch_size=BATCH_SIZE
    )
    mesh = sharding.make_mesh(sharding.MeshConfig())
    stride: int = forward.model.mask_stride  # pyright: ignore
    evaluator = Evaluator("val", forward, make_batches, mesh, stride, CANVAS, threshold=0.35)

    with compilations() as compiled:
        scores = evaluator.evaluate(params, 0)
    assert len(compiled) == 1, compiled
    with compilations() as compiled:
        evaluator.evaluate(params, 0)
    assert not compiled

    batches = [sharding.put_batch(host.batch, mesh) for host in make_batches()]
    # Padding has size 1 x 1.
    sizes = {tuple(s) for b in batches for s in np.asarray(b.size)[:, 0] if min(s) > 1}
    model = jax.jit(forward.apply)

    def alone() -> None:
        for batch in batches:
            model(params, batch).mask_logits.block_until_ready()  # pyright: ignore

    alone()
    works = {
        "all": lambda: clocked(lambda: evaluator.evaluate(params, 0)),
        "model": lambda: clocked(alone),
    }
    seconds = take_turns(works, ROUNDS)
    rates = {name: [scores["count"] / s for s in each] for name, each in seconds.items()}
    print(
        f"\n{scores['count']:.0f} pairs on {IMAGES} images of {len(sizes)} sizes, one compilation"
    )
    print(f"evaluation  {spread(rates['all'], '.1f')} pairs/s")
    print(f"model alone {spread(rates['model'], '.1f')} pairs/s, at its own resolution")
    print(f"ratio       {spread(ratios(rates['all'], rates['model']), '.2f')}")


@pytest.mark.bench
def test_the_metrics_share_of_an_evaluation(tmp_path):
    """Measured with the smallest UniRES on the canvas of Scenes; larger models have a smaller share."""
    build_many_sizes(tmp_path, SCENES)
    forward = Forward(lambda rngs: build_model(MODEL, rngs=rngs))
    params = jax.jit(forward.init)(jax.random.key(0))
    config = data_config(tmp_path, forward, SCENES)
    make_batches = partial(pipeline.eval_batches, config, batch_size=BATCH_SIZE)
    mesh = sharding.make_mesh(sharding.MeshConfig())
    stride: int = forward.model.mask_stride  # pyright: ignore
    evaluator = Evaluator("val", forward, make_batches, mesh, stride, SCENES, threshold=0.35)
    scores = evaluator.evaluate(params, 0)
    kept = []
    for host in make_batches():
        batch = sharding.put_batch(host.batch, mesh)
        kept.append((host, batch, evaluator._compiled(params, batch, True, None)))
    count = jax.jit(pair_counts, static_argnums=3)

    def metric() -> None:
        """Counts on the device, and all work of the host on the counts.

        The counts read logits from memory, where an evaluation never writes them.
        """
        state = State(build_protocol("cris"))
        for host, batch, outputs in kept:
            count(outputs.logits, batch.native, batch.size, 0.35).block_until_ready()
            for one in evaluator._seen(host, outputs._replace(logits=None)):
                state.add(one.pair)
        assert state.compute()["mIoU"] == scores["mIoU"]

    metric()
    work = {
        "all": lambda: cpu_seconds(lambda: evaluator.evaluate(params, 0)),
        "metric": lambda: cpu_seconds(metric),
    }
    seconds = take_turns(work, ROUNDS)
    share = ratios(seconds["metric"], seconds["all"])
    print(f"\nthe metric is {spread([100 * s for s in share], '.2f')} % of the evaluation")


@contextlib.contextmanager
def compilations() -> Iterator[list[str]]:
    """Yields the names of all compilations in the `with` block, eager operations included."""
    seen: list[str] = []

    def note(event: str, duration_secs: float, **details: Any) -> None:
        del duration_secs
        if event == "/jax/core/compile/backend_compile_duration":
            seen.append(str(details.get("fun_name", "?")))

    jax.monitoring.register_event_duration_secs_listener(note)
    try:
        yield seen
    finally:
        jax.monitoring.unregister_event_duration_listener(note)


def build_many_sizes(data_dir: Path, canvas: tuple[int, int] = CANVAS) -> None:
    """Builds a split `val` with images of random, mostly different sizes."""
    drawn = np.random.default_rng(0).integers(64, canvas[0] + 1, (IMAGES, 2))
    sizes = [(int(height), int(width)) for height, width in drawn]
    build_tiny_dataset(
        data_dir,
        {"val": IMAGES},
        change=lambda record: make_record(
            "val", int(record.image_id[3:]), sizes[int(record.image_id[3:])]
        ),
    )


def data_config(
    data_dir: Path, forward: Forward, canvas: tuple[int, int] = CANVAS
) -> pipeline.PipelineConfig:
    model: Any = forward.model
    return pipeline.PipelineConfig(
        str(data_dir), "tiny", "val", model.image_size, model.mask_stride,
        granularities=("object", "part", "multi", "none"), canvas=canvas,
    )  # fmt: skip
