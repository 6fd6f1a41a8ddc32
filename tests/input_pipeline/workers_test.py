import dataclasses
import itertools
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from input_pipeline.pipeline import eval_batches, train_batches
from input_pipeline.workers import Batches, PipelineError, evaluation_workers, hang, usable_cores
from refseg_jax.batch import Interrupted
from tests.input_pipeline.batches import assert_same_rows, make_config, rows_of
from tests.input_pipeline.tiny_dataset import build_tiny_dataset

#: Trains nothing: takes a batch and waits, its two workers' queues full.
READER = """
import multiprocessing, sys, time
from pathlib import Path
from input_pipeline.pipeline import train_batches
from tests.input_pipeline.batches import make_config

if __name__ == "__main__":
    batches = train_batches(
        make_config(Path(sys.argv[1]), "train", num_workers=2), batch_size=2, seed=0
    )
    next(batches)
    print(len(multiprocessing.active_children()), flush=True)
    time.sleep(600)
"""


def test_no_worker_outlives_a_run_that_was_killed(tmp_path: Path) -> None:
    build_tiny_dataset(tmp_path / "data", {"train": 6})
    script = tmp_path / "reader.py"
    script.write_text(READER)
    reader = subprocess.Popen(
        [sys.executable, str(script), str(tmp_path / "data")],
        env={**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[2])},
        stdout=subprocess.PIPE,
        text=True,
    )
    assert reader.stdout is not None
    try:
        assert reader.stdout.readline() == "2\n"
    finally:
        reader.send_signal(signal.SIGKILL)
    # Workers hold the same pipe, so its end is read when the last of them is gone.
    assert reader.communicate(timeout=60)[0] == ""


#: Reads on after a SIGTERM, as a run does that is about to save.
STUBBORN = """
import signal, sys
from pathlib import Path
from input_pipeline.pipeline import train_batches
from tests.input_pipeline.batches import make_config

if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: None)
    batches = train_batches(
        make_config(Path(sys.argv[1]), "train", num_workers=2), batch_size=2, seed=0
    )
    for _ in range(4):  # So many that both workers have started.
        next(batches)
    print("reading", flush=True)
    sys.stdin.readline()
    for _ in range(40):
        next(batches)
    print("read", flush=True)
    del batches  # While grain's modules are there, which its workers' end needs.
"""


def test_a_signal_to_the_group_leaves_the_workers_to_their_parent(tmp_path: Path) -> None:
    """As `timeout`, a scheduler or a terminal sends it."""
    build_tiny_dataset(tmp_path / "data", {"train": 6})
    script = tmp_path / "reader.py"
    script.write_text(STUBBORN)
    reader = subprocess.Popen(
        [sys.executable, str(script), str(tmp_path / "data")],
        env={**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[2])},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert reader.stdout is not None
    assert reader.stdout.readline() == "reading\n"
    os.killpg(reader.pid, signal.SIGTERM)
    assert reader.communicate("go on\n", timeout=60)[0] == "read\n"
    assert reader.returncode == 0


def test_an_evaluation_has_no_worker_without_a_core_or_a_batch() -> None:
    cores = usable_cores()
    assert evaluation_workers(cores + 1, 1000) == cores
    assert evaluation_workers(1000, 1) == 1
    assert evaluation_workers(1, 1000) == 1
    assert evaluation_workers(0, 1000) == 0


def test_an_evaluation_starts_no_worker_without_a_batch(tmp_path: Path) -> None:
    build_tiny_dataset(tmp_path, {"val": 4})
    config = make_config(tmp_path)
    before = set(multiprocessing.active_children())
    batches = eval_batches(dataclasses.replace(config, num_workers=8), batch_size=16)
    found = [next(batches)]
    assert len(set(multiprocessing.active_children()) - before) == 1
    assert_same_rows(rows_of(found), rows_of(list(eval_batches(config, batch_size=16))))


class Blocking:
    """A dataset of the numbers 0, 1, ... as grain has it; number `at` waits until it is let go."""

    def __init__(self, at: int) -> None:
        self.at, self.go, self.closed = at, threading.Event(), 0

    def __iter__(self) -> "BlockingIterator":
        return BlockingIterator(self)


class BlockingIterator:
    def __init__(self, dataset: Blocking) -> None:
        self.dataset, self.next = dataset, 0

    def __iter__(self) -> Iterator[Any]:
        return self

    def __next__(self) -> Any:
        number, self.next = self.next, self.next + 1
        if number == self.dataset.at:
            assert self.dataset.go.wait(60)
        return number

    def get_state(self) -> Any:
        return {"next_index": self.next}

    def set_state(self, state: Any) -> None:
        self.next = state["next_index"]

    def close(self) -> None:
        self.dataset.closed += 1


def test_a_batch_that_never_comes_is_one_line_within_the_limit() -> None:
    dataset: Any = Blocking(2)
    batches = Batches(dataset, max_wait=0.5)
    assert [next(batches), next(batches)] == [0, 1]
    begun = time.monotonic()
    with pytest.raises(
        PipelineError, match=r"no batch came for 0\.5 s: the threads hang"
    ) as caught:
        next(batches)
    assert 0.5 <= time.monotonic() - begun < 5
    assert "config.data.max_wait" in str(caught.value) and "\n" not in str(caught.value)
    assert hang()
    dataset.go.set()
    assert next(batches) == 2
    assert not hang()


def test_a_process_that_was_suspended_has_not_waited(monkeypatch: pytest.MonkeyPatch) -> None:
    dataset: Any = Blocking(0)
    clock = itertools.chain([0.0], itertools.count(10_000.0, 0.2))

    def monotonic() -> float:
        now = next(clock)
        if now > 10_001:
            dataset.go.set()
        return now

    monkeypatch.setattr("input_pipeline.workers.time", types.SimpleNamespace(monotonic=monotonic))
    assert next(Batches(dataset, max_wait=100.0)) == 0


class Panic(BaseException):
    """As a library in Rust raises it."""


def test_no_error_passes_for_the_end_of_the_batches() -> None:
    def rows() -> Iterator[Any]:
        yield 0
        raise Panic("index out of bounds")

    batches = Batches(_Listed(rows()))
    assert next(batches) == 0
    with pytest.raises(Panic, match="out of bounds"):
        next(batches)


class _Listed:
    """A dataset of what a generator yields."""

    def __init__(self, rows: Iterator[Any]) -> None:
        self._rows = rows

    def __iter__(self) -> "_Listed":
        return self

    def __next__(self) -> Any:
        return next(self._rows)

    def get_state(self) -> Any:
        return {}


@pytest.mark.parametrize("at", [0, 2])
@pytest.mark.parametrize("resumed", [False, True])
def test_the_position_is_before_the_batch_that_is_awaited(at: int, resumed: bool) -> None:
    dataset: Any = Blocking(at + 5 * resumed)
    asked: list[bool] = []

    def stop() -> bool:
        asked.append(True)
        return True

    batches = Batches(dataset, stop=stop)
    if resumed:
        batches.set_state({"next_index": 5})
    for number in range(at):
        assert next(batches) == number + 5 * resumed
    assert not asked  # A batch that is there is no wait.
    with pytest.raises(Interrupted):
        next(batches)
    assert batches.get_state() == {"next_index": dataset.at}
    dataset.go.set()
    # The iterator moves on in its thread, and the position does not.
    deadline = time.monotonic() + 10
    while hang() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert batches.get_state() == {"next_index": dataset.at}
    assert next(batches) == dataset.at
    assert batches.get_state() == {"next_index": dataset.at + 1}


def _with_workers(data: Path, at_most: float, stop: Callable[[], bool] = lambda: False) -> Any:
    """Batches of two workers, which have given as many as their queues hold."""
    batches = train_batches(
        make_config(data, "train", num_workers=2, max_wait=at_most, prefetch=1),
        batch_size=2,
        seed=0,
        stop=stop,
    )
    before = set(multiprocessing.active_children())
    found = [next(batches) for _ in range(4)]
    return (
        batches,
        sorted(set(multiprocessing.active_children()) - before, key=lambda w: w.pid or 0),
        found,
    )


@pytest.mark.parametrize(
    ("number", "words"),
    [
        (
            signal.SIGKILL,
            "was killed by SIGKILL, perhaps for want of memory: lower config.data.pre",
        ),
        (signal.SIGSEGV, "was killed by SIGSEGV, perhaps by a decoder's fault"),
        (signal.SIGSTOP, "no batch came for 4 s: the 2 worker processes hang"),
    ],
)
def test_a_worker_that_dies_or_hangs_is_one_line(
    tmp_path: Path, number: signal.Signals, words: str
) -> None:
    build_tiny_dataset(tmp_path / "data", {"train": 6})
    batches, workers, _ = _with_workers(tmp_path / "data", 60.0)
    if number == signal.SIGSTOP:
        batches._max_wait = 4.0  # Not before: a start takes long where many tests run.
    os.kill(workers[0].pid, number)
    begun = time.monotonic()
    with pytest.raises(PipelineError) as caught:
        for _ in range(40):
            next(batches)
    assert words in str(caught.value) and "\n" not in str(caught.value)
    assert time.monotonic() - begun < 40
    for worker in workers:
        worker.join(30)
        assert worker.exitcode is not None


def test_a_stop_while_a_worker_hangs_is_heard_and_loses_no_batch(tmp_path: Path) -> None:
    build_tiny_dataset(tmp_path / "data", {"train": 6})
    asked = threading.Event()
    batches, workers, found = _with_workers(tmp_path / "data", 60.0, asked.is_set)
    os.kill(workers[0].pid, signal.SIGSTOP)
    threading.Timer(1.0, asked.set).start()
    with pytest.raises(Interrupted):
        while True:
            found.append(next(batches))
    state = batches.get_state()
    whole = train_batches(make_config(tmp_path / "data", "train"), batch_size=2, seed=0)
    expected = [next(whole) for _ in range(len(found) + 2)]
    assert_same_rows(rows_of(found), rows_of(expected[: len(found)]))
    again = train_batches(
        make_config(tmp_path / "data", "train", num_workers=2), batch_size=2, seed=0
    )
    again.set_state(state)
    assert_same_rows(rows_of([next(again), next(again)]), rows_of(expected[len(found) :]))
    again.close()
