import dataclasses
import multiprocessing
import os
import signal
import subprocess
import sys
from pathlib import Path

from input_pipeline.pipeline import eval_batches
from input_pipeline.workers import evaluation_workers, usable_cores
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
