"""A run over four hosts that loses one, and goes on with two (`make soak`).

Processes of one machine stand for hosts: each has two forced CPU devices, over all of which parameters
are cut, and all have one workdir.
"""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from refseg_jax.checkpoints import folder as checkpoint_folder
from refseg_jax.checkpoints import manifest
from refseg_jax.checkpoints.manifest import Soundness
from tests.input_pipeline.tiny_dataset import build_tiny_dataset
from tests.main_test import OVERRIDES, ROOT

pytestmark = pytest.mark.slow

STEPS, KILLED_AT, LOST = 8, 5, 2
#: Seconds of `config.loop.max_silence`, and those that a busy machine may take beyond them.
MAX_SILENCE, SLACK = 20, 30
PATIENCE = 1200
FIELDS: dict[str, Any] = {
    **OVERRIDES,
    "steps": STEPS,
    "batch_size": 8,
    # The smallest model: each process compiles its steps.
    "model.vision_heads": 1,
    "model.text_heads": 1,
    "model.decoder_heads": 1,
    "model.decoder_width": 32,
    "model.decoder_hidden": 32,
    "model.embedding_width": 16,
    "model.low_tokens": 0,
    "model.high_tokens": 0,
    "model.stem_width": 0,
    "model.mask_stride": 4,
    "eval.batch_size": 8,
    "eval.oracle": "",
    # Adam's full steps for tiny gradients would let rounding errors grow.
    "optim.lr": 1e-4,
    "optim.muon": "",
    "loop.eval_every": 4,
    "loop.save_every": 2,
    "loop.max_silence": MAX_SILENCE,
    "evals.shuffled.when": "never",
}
FLAGS = "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"


class Hosts:
    """Processes of `main.py` on one workdir."""

    def __init__(self, folder: Path, name: str, count: int, devices: int) -> None:
        self.workdir = folder / name
        self.outputs = [folder / f"{name}-of{count}-{number}.txt" for number in range(count)]
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            address = f"127.0.0.1:{probe.getsockname()[1]}"
        fields = {**FIELDS, "data.data_dir": folder / "data", "mesh.fsdp": count * devices}
        command = [
            *(sys.executable, "main.py", "--config=configs/scenes_unires.py"),
            *(f"--config.{field}={value}" for field, value in fields.items()),
            f"--workdir={self.workdir}",
        ]
        if count > 1:
            command.append("--distributed")
        self.processes = []
        for number, path in enumerate(self.outputs):
            environment = {
                **os.environ,
                "JAX_PLATFORMS": "cpu",
                "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices} {FLAGS}",
                "JAX_COORDINATOR_ADDRESS": address,
                "JAX_NUM_PROCESSES": str(count),
                "JAX_PROCESS_ID": str(number),
            }
            with path.open("wb") as output:
                self.processes.append(
                    subprocess.Popen(
                        command,
                        cwd=ROOT,
                        env=environment,
                        stdout=output,
                        stderr=output,
                        start_new_session=True,
                    )
                )

    def wait_until(self, step: int) -> None:
        """Waits until every process has the batch of this step."""
        end = time.monotonic() + PATIENCE
        while any(
            max(batches(self.workdir, number), default=-1) < step
            for number in range(len(self.processes))
        ):
            assert all(process.poll() is None for process in self.processes), self.told()
            assert time.monotonic() < end, self.told()
            time.sleep(0.02)

    def codes(self, within: float = PATIENCE) -> list[int]:
        """Exit codes; a process that is still there after so many seconds is an error."""
        end = time.monotonic() + within
        return [process.wait(max(end - time.monotonic(), 0.01)) for process in self.processes]

    def told(self) -> str:
        return "\n\n".join(path.read_text(errors="replace")[-3000:] for path in self.outputs)

    def end(self) -> None:
        for process in self.processes:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("hosts")
    build_tiny_dataset(folder / "data", {"train": 30, "val": 3, "test": 4})
    return folder


@pytest.fixture(scope="module")
def alone(place: Path) -> Path:
    """The run of one process on one device that nobody disturbed."""
    hosts = Hosts(place, "alone", 1, 1)
    try:
        assert hosts.codes() == [0], hosts.told()
    finally:
        hosts.end()
    return hosts.workdir


@pytest.fixture(scope="module")
def lost(place: Path) -> Iterator[tuple[Hosts, list[int]]]:
    """The run of four processes that lost one of them, and how the others ended."""
    hosts = Hosts(place, "four", 4, 2)
    try:
        hosts.wait_until(KILLED_AT)
        os.killpg(hosts.processes[LOST].pid, signal.SIGKILL)
        killed = time.monotonic()
        codes = hosts.codes(within=MAX_SILENCE + SLACK)
        print(f"the others had ended after {time.monotonic() - killed:.1f} s: {codes}")
        yield hosts, codes
    finally:
        hosts.end()


def batches(workdir: Path, process: int) -> dict[int, list[list[str]]]:
    """Step -> rows of a process."""
    path = workdir / f"batches-{process}.jsonl"
    text = path.read_text() if path.exists() else ""
    whole = [line for line in text.splitlines(keepends=True) if line.endswith("\n")]
    return {entry["step"]: entry["rows"] for entry in map(json.loads, whole)}


def losses(workdir: Path) -> dict[int, float]:
    lines = map(json.loads, (workdir / "metrics.jsonl").read_text().splitlines())
    return {line["step"]: line["loss"] for line in lines if "loss" in line}


def assert_same_batches(workdir: Path, expected: Path, processes: int) -> list[int]:
    """Compares the rows of all processes with those of one; returns the steps."""
    parts = [batches(workdir, number) for number in range(processes)]
    whole = batches(expected, 0)
    steps = sorted(set.intersection(*map(set, parts)))
    for step in steps:
        together = [tuple(row) for part in parts for row in part[step]]
        assert sorted(together) == sorted(map(tuple, whole[step])), f"step {step} had other rows"
    return steps


def test_the_others_end_and_say_which_is_gone(lost: tuple[Hosts, list[int]]) -> None:
    hosts, codes = lost
    assert codes.pop(LOST) == -signal.SIGKILL
    assert all(codes), codes
    for number in {0, 1, 2, 3} - {LOST}:
        text = hosts.outputs[number].read_text(errors="replace")
        found = re.search(rf"\(stopped sending heartbeats\):\n(\S*:)?{LOST}\n", text)
        assert found, text[-3000:]


def test_nothing_is_half_saved(lost: tuple[Hosts, list[int]]) -> None:
    steps = checkpoint_folder.steps(lost[0].workdir / "checkpoints")
    assert max(steps) in (2, 4)
    for step, folder in steps.items():
        assert manifest.check(folder).soundness is Soundness.SOUND, step


def test_two_hosts_go_on_to_the_numbers_of_one(
    place: Path, alone: Path, lost: tuple[Hosts, list[int]]
) -> None:
    workdir = lost[0].workdir
    before = losses(workdir)
    assert set(assert_same_batches(workdir, alone, 4)) >= set(range(KILLED_AT))
    for path in workdir.glob("batches-*.jsonl"):
        path.unlink()
    hosts = Hosts(place, "four", 2, 2)
    try:
        assert hosts.codes() == [0, 0], hosts.told()
    finally:
        hosts.end()
    assert "resumed at step " in hosts.outputs[0].read_text(errors="replace")
    steps = assert_same_batches(workdir, alone, 2)
    assert steps[0] in (2, 4) and steps[-1] == STEPS - 1
    found, expected = losses(workdir), losses(alone)
    assert (
        list(found) == list(range(1, STEPS + 1))
        and before.items() >= {step: found[step] for step in range(1, steps[0] + 1)}.items()
    )
    worst = max(abs(found[step] - expected[step]) for step in expected)
    print(f"largest difference of a loss: {worst:.1e}")
    np.testing.assert_allclose([found[s] for s in expected], list(expected.values()), atol=1e-6)
    ours, theirs = (json.loads((w / "summary.json").read_text()) for w in (workdir, alone))
    for name in ("mIoU", "val/mIoU", "count", "val/count"):
        assert ours[name] == pytest.approx(theirs[name], abs=1e-6), name
