"""Whole runs whose worker processes die or hang (`make soak`)."""

import os
import signal
import subprocess
import time
from pathlib import Path

import pytest

from refseg_jax.checkpoints.folder import steps as checkpoint_steps
from refseg_jax.checkpoints.params import load_params
from tests.resume_soak_test import PATIENCE, Runs

pytestmark = pytest.mark.slow

WORKERS = ("--config.data.num_workers=2", "--config.steps=100000", "--config.loop.eval_every=0")


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Runs:
    return Runs(tmp_path_factory.mktemp("workers"))


def _workers(run: subprocess.Popen[bytes]) -> list[int]:
    """Ids of the run's worker processes."""
    found = []
    for children in Path(f"/proc/{run.pid}/task").glob("*/children"):
        for child in children.read_text().split():
            if b"spawn_main" in Path(f"/proc/{child}/cmdline").read_bytes():
                found.append(int(child))
    return sorted(found)


def _training(runs: Runs, workdir: Path, *more: str, **variables: str) -> subprocess.Popen[bytes]:
    """A run that has saved and trains on."""
    run = runs.start(workdir, *WORKERS, *more, **variables)
    deadline = time.monotonic() + PATIENCE
    while not any(step >= 8 for step in checkpoint_steps(workdir / "checkpoints")):
        assert time.monotonic() < deadline and run.poll() is None, (
            workdir / "output.txt"
        ).read_text()
        time.sleep(0.1)
    return run


@pytest.mark.parametrize(
    ("number", "words"),
    [
        (signal.SIGKILL, "a worker process of the input pipeline was killed by SIGKILL"),
        (signal.SIGSTOP, "no batch came for 5 s: the "),
    ],
)
def test_a_worker_that_dies_or_hangs_ends_a_run_with_one_line(
    runs: Runs, tmp_path: Path, number: signal.Signals, words: str
) -> None:
    workdir, room = tmp_path / "run", tmp_path / "room"
    room.mkdir()
    before = set(Path("/dev/shm").iterdir())
    run = _training(runs, workdir, TMPDIR=str(room))
    run.send_signal(signal.SIGTERM)
    assert run.wait(PATIENCE) == 143
    # Not before: a first batch takes long where many processes run.
    run = runs.start(workdir, *WORKERS, "--config.data.max_wait=5.0", TMPDIR=str(room))
    while not _workers(run) or b"step" not in _since_resumed(workdir):
        assert run.poll() is None, (workdir / "output.txt").read_text()
        time.sleep(0.1)
    os.kill(_workers(run)[0], number)
    assert run.wait(120) == 1
    last = _since_resumed(workdir).decode().replace("\r", "\n").strip().splitlines()[-1]
    assert last.startswith("error: ") and words in last
    assert b"Traceback" not in _since_resumed(workdir)
    assert not list(room.iterdir())
    left = {path for path in set(Path("/dev/shm").iterdir()) - before if path.name[:3] == "psm"}
    assert not left


def _since_resumed(workdir: Path) -> bytes:
    return (workdir / "output.txt").read_bytes().rpartition(b"resumed at step")[2]


def test_sigterm_is_heard_while_a_worker_hangs(runs: Runs, tmp_path: Path) -> None:
    run = _training(runs, tmp_path / "run")
    os.kill(_workers(run)[0], signal.SIGSTOP)
    time.sleep(5)
    run.send_signal(signal.SIGTERM)
    assert run.wait(60) == 143
    assert b"saved and stopped on SIGTERM" in (tmp_path / "run" / "output.txt").read_bytes()
    assert load_params(tmp_path / "run")[1]["progress"]["step"] > 8


def test_ctrl_c_ends_a_run_with_one_line(runs: Runs, tmp_path: Path) -> None:
    run = _training(runs, tmp_path / "run")
    run.send_signal(signal.SIGINT)
    assert run.wait(60) == 130
    output = (tmp_path / "run" / "output.txt").read_text()
    assert output.replace("\r", "\n").strip().splitlines()[-1] == "stopped by Ctrl-C"
    assert "Traceback" not in output
    assert load_params(tmp_path / "run")[1]["progress"]["step"] >= 8
