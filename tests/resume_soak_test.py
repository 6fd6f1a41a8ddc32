"""Whole runs that are killed, or cut over processes, end as one that was left alone (`make soak`)."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from input_pipeline.datasets.scenes import scenes
from input_pipeline.datasets.scenes.config import ScenesConfig
from refseg_jax.checkpoints import folder
from refseg_jax.checkpoints.arrays import read_arrays
from tests.input_pipeline.building.pools import build_pool
from tests.input_pipeline.tiny_dataset import build_tiny_dataset
from tests.main_test import OVERRIDES, ROOT

pytestmark = pytest.mark.slow

STEPS = 40
SINGLE, MIXTURE = "scenes_unires.py", "mres_unires.py:tiny,one,two"
NORMED, GROUPED = "scenes_unilseg.py", "scenes_grser.py"
#: Fields of the smallest UniLSeg with batch normalisation, in place of those of UniRES; its parameters
#: and running averages are averaged.
NORMED_FIELDS = {
    "model.image_size": 32,
    "model.form": "official",
    "model.swin_width": 16,
    "model.swin_depths": (1, 1),
    "model.swin_heads": (1, 2),
    "model.text_layers": 1,
    "model.text_width": 16,
    "model.embedding_width": 16,
    "model.query_layers": 1,
    "model.dropout": 0.1,
    "model.norm": "batch",
    "optim.ema_decay": 0.9,
    "optim.muon": "",
    "loop.eval_every": 10,
}
#: Fields of the smallest GRSer, in place of those of UniRES: groups of Scenes and texts that pictures
#: share, the mirror branch with features of its own, dropout, an average of the parameters.
GROUPED_FIELDS = {
    "data.dataset": "scenes",
    "data.images": 3,
    "mixture.texts.weight": 1.0,
    "mixture.texts.batch_size": 4,
    "model.image_size": 64,
    "model.swin_width": 16,
    "model.swin_depths": (1, 1),
    "model.swin_heads": (1, 2),
    "model.drop_path": 0.1,
    "model.text_layers": 1,
    "model.text_width": 24,
    "model.text_hidden": 32,
    "model.text_dropout": 0.1,
    "model.width": 16,
    "model.group_size": 3,
    "model.predictor_width": 16,
    "model.rank": "both",
    "model.mirror_encodes": True,
    "objective.mirror": 1.0,
    "optim.ema_decay": 0.9,
    "optim.muon": "",
    "eval.canvas": (64, 64),
    "eval.protocol": "grd,gres",
    "loop.eval_every": 10,
}
OWN_FIELDS: dict[str, dict[str, Any]] = {NORMED: NORMED_FIELDS, GROUPED: GROUPED_FIELDS}
SCENES = ScenesConfig(
    image_size=64,
    train=12,
    val=0,
    test=0,
    train_groups=4,
    val_groups=1,
    test_groups=1,
    novel_train=0,
    novel_test=0,
    group_size=4,
)
#: Seconds after which a run that gets nowhere counts as hung.
PATIENCE = 300


class Runs:
    """Runs of `main.py` on one dataset, compiled once."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        build_tiny_dataset(folder / "data", {"train": 30, "val": 3, "test": 4})
        # A val image of `two` that `one` must not train on.
        build_pool(folder / "data", "one", train=range(13), val=[40])
        build_pool(folder / "data", "two", train=range(20, 29), val=[3])
        scenes.build(folder / "data", SCENES)

    def start(
        self, workdir: Path, *more: str, config: str = SINGLE, **variables: str
    ) -> subprocess.Popen[bytes]:
        own = {name: value for name, value in OVERRIDES.items() if not name.startswith("model.")}
        fields: dict[str, Any] = {
            **({**own, **OWN_FIELDS[config]} if config in OWN_FIELDS else OVERRIDES),
            "steps": STEPS,
            "data.data_dir": self.folder / "data",
            "loop.save_every": 4,
            "eval.oracle": "",
        }
        arguments = [f"--config.{name}={value}" for name, value in fields.items()]
        workdir.mkdir(exist_ok=True)
        environment = {
            **os.environ,
            "JAX_PLATFORMS": "cpu",
            "JAX_COMPILATION_CACHE_DIR": str(self.folder / "cache"),
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
            **variables,
        }
        with (workdir / "output.txt").open("ab") as output:
            return subprocess.Popen(
                [
                    *(sys.executable, "main.py", f"--config=configs/{config}"),
                    *(f"--workdir={workdir}", *arguments, *more),
                ],
                cwd=ROOT,
                env=environment,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Runs:
    return Runs(tmp_path_factory.mktemp("soak"))


@pytest.fixture(scope="module")
def alone(runs: Runs) -> Path:
    """The run that nobody disturbed."""
    workdir = runs.folder / "alone"
    finish(runs.start(workdir), workdir)
    return workdir


def finish(process: subprocess.Popen[bytes], workdir: Path) -> None:
    assert process.wait(PATIENCE) == 0, (workdir / "output.txt").read_text()[-3000:]


def batches(workdir: Path, process: int = 0) -> list[tuple[int, Any]]:
    path = workdir / f"batches-{process}.jsonl"
    if not path.exists():
        return []
    whole = [line for line in path.read_text().splitlines(keepends=True) if line.endswith("\n")]
    return [(entry["step"], entry["rows"]) for entry in map(json.loads, whole)]


def kill_at(process: subprocess.Popen[bytes], workdir: Path, step: int) -> None:
    """SIGKILL as soon as the run has begun this step."""
    end = time.monotonic() + PATIENCE
    while not any(done >= step for done, _ in batches(workdir)):
        assert process.poll() is None, (workdir / "output.txt").read_text()[-3000:]
        assert time.monotonic() < end, f"step {step} was not reached"
        time.sleep(0.01)
    # With its workers, as a machine that goes down takes them.
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def state(workdir: Path) -> dict[str, np.ndarray]:
    """All arrays of the last checkpoint: parameters, averages, moments."""
    last = workdir / "checkpoints" / str(STEPS)
    record = folder.read_record(last)
    return read_arrays(last, record, dict.fromkeys(record.arrays))


def assert_same_state(workdir: Path, expected: Path) -> None:
    found, wanted = state(workdir), state(expected)
    assert found.keys() == wanted.keys()
    for name, value in wanted.items():
        np.testing.assert_array_equal(found[name], value, err_msg=name)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_run_that_is_killed_three_times_ends_as_if_it_had_not_been(
    runs: Runs, alone: Path, workers: int
) -> None:
    assert_killed_ends_as(runs, alone, f"--config.data.num_workers={workers}", seed=workers)


def test_a_mixture_that_is_killed_three_times_ends_as_if_it_had_not_been(runs: Runs) -> None:
    fields = ("--config.epochs=0", "--config.mixture.one.weight=2", "--config.data.num_workers=2")
    alone = runs.folder / "mixture"
    finish(runs.start(alone, *fields, config=MIXTURE), alone)
    members = [keys[0][0].split("/")[0] for _, keys in batches(alone)]
    assert members[:6] == ["one", "one", "two"] * 2
    assert json.loads((alone / "leakage.json").read_text())["one"]["image_ids"] == ["3"]
    assert_killed_ends_as(runs, alone, *fields, config=MIXTURE, seed=7)


def test_batch_normalisation_that_is_killed_ends_as_if_it_had_not_been(runs: Runs) -> None:
    alone = runs.folder / "normed"
    finish(runs.start(alone, config=NORMED), alone)
    arrays = state(alone)
    averages = [name for name in arrays if name.endswith((".norm.mean", ".norm.variance"))]
    assert {name.split("/")[0] for name in averages} == {"params", "ema"}
    for name in averages:
        # They have moved, and the average of an average lags behind it.
        assert (arrays[name] != float(name.endswith("variance"))).any(), name
    assert (
        arrays["params/vision_path.masks.norm.mean"] != arrays["ema/vision_path.masks.norm.mean"]
    ).any()
    assert_killed_ends_as(runs, alone, config=NORMED, seed=11)


def test_a_model_of_groups_that_is_killed_ends_as_if_it_had_not_been(runs: Runs) -> None:
    alone = runs.folder / "grouped"
    finish(runs.start(alone, config=GROUPED), alone)
    members = [rows[0][0].split("/")[0] for _, rows in batches(alone)]
    assert members[:4] == ["groups", "texts"] * 2
    lines = map(json.loads, (alone / "metrics.jsonl").read_text().splitlines())
    terms = ("loss/mirror/cross_entropy", "loss/triplet")
    trained = [all(line[term] > 0 for term in terms) for line in lines if "loss" in line]
    assert len(trained) == STEPS and sum(trained) > STEPS // 2
    assert_killed_ends_as(runs, alone, config=GROUPED, seed=13)


def assert_killed_ends_as(
    runs: Runs, alone: Path, *more: str, config: str = SINGLE, seed: int
) -> None:
    """A run that is killed at three steps has the rows and the state of `alone`."""
    workdir = runs.folder / f"killed-{seed}"
    rng = np.random.default_rng(seed)
    for step in sorted(rng.choice(np.arange(5, STEPS - 1), 3, replace=False)):
        process = runs.start(workdir, *more, config=config)
        kill_at(process, workdir, int(step))
    finish(runs.start(workdir, *more, config=config), workdir)

    expected = dict(batches(alone))
    seen = batches(workdir)
    assert sorted(expected) == sorted({step for step, _ in seen})
    assert len(seen) > len(expected), "no step was done twice, so nothing was resumed"
    for step, rows in seen:
        assert rows == expected[step], f"step {step} had other rows"
    assert_same_state(workdir, alone)


def test_two_processes_train_on_the_same_batches_to_the_same_loss(runs: Runs, alone: Path) -> None:
    workdir = runs.folder / "two"
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    processes = [
        runs.start(
            workdir,
            "--distributed",
            JAX_COORDINATOR_ADDRESS=address,
            JAX_NUM_PROCESSES="2",
            JAX_PROCESS_ID=str(number),
        )
        for number in range(2)
    ]
    for process in processes:
        finish(process, workdir)
    expected = dict(batches(alone))
    halves = [dict(batches(workdir, number)) for number in range(2)]
    for step, rows in expected.items():
        together = [tuple(row) for half in halves for row in half[step]]
        assert sorted(together) == sorted(map(tuple, rows))
    first, last = losses(alone), losses(workdir)
    assert last[0] == pytest.approx(first[0], abs=1e-6)
    np.testing.assert_allclose(last, first, atol=1e-4)


def losses(workdir: Path) -> list[float]:
    lines = map(json.loads, (workdir / "metrics.jsonl").read_text().splitlines())
    return [line["loss"] for line in lines if "loss" in line]
