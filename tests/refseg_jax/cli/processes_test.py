"""Processes of a run end together, and tell why."""

import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from refseg_jax.cli import processes
from refseg_jax.errors import UserError
from tests.refseg_jax.cli.process_steps import MAX_SILENCE

_ROOT = Path(__file__).resolve().parents[3]
#: Seconds in which a process that is told to end has ended, on a machine that is busy.
_SLACK = 30


class Group:
    """Three processes joined by `processes.joined`, with their outputs in files."""

    def __init__(self, folder: Path, mode: str) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            address = f"127.0.0.1:{probe.getsockname()[1]}"
        self.outputs = [folder / f"{number}.txt" for number in range(3)]
        self.processes = []
        for number, path in enumerate(self.outputs):
            environment = {
                **os.environ,
                "JAX_PLATFORMS": "cpu",
                "JAX_COORDINATOR_ADDRESS": address,
                "JAX_NUM_PROCESSES": "3",
                "JAX_PROCESS_ID": str(number),
            }
            with path.open("wb") as output:
                self.processes.append(
                    subprocess.Popen(
                        [sys.executable, "-m", "tests.refseg_jax.cli.process_steps", mode],
                        cwd=_ROOT,
                        env=environment,
                        stdout=output,
                        stderr=output,
                    )
                )

    def wait_until_joined(self) -> None:
        end = time.monotonic() + 120
        while not all("joined" in path.read_text() for path in self.outputs):
            assert all(process.poll() is None for process in self.processes), self.told()
            assert time.monotonic() < end, self.told()
            time.sleep(0.05)

    def codes(self, within: float) -> list[int]:
        """Exit codes; a process that is still there after so many seconds is an error."""
        end = time.monotonic() + within
        try:
            return [process.wait(max(end - time.monotonic(), 0.01)) for process in self.processes]
        finally:
            for process in self.processes:
                process.kill()
                process.wait()

    def told(self) -> list[str]:
        return [path.read_text(errors="replace") for path in self.outputs]


@pytest.mark.parametrize(
    ("address", "count", "number", "line"),
    [
        ("10.0.0.1", "2", "0", "JAX_COORDINATOR_ADDRESS=10.0.0.1: give host:port of process 0"),
        (
            "10.0.0.1:1",
            "2",
            "2",
            "JAX_NUM_PROCESSES=2 JAX_PROCESS_ID=2: number the processes from 0",
        ),
        ("10.0.0.1:1", "two", "0", "JAX_NUM_PROCESSES=two JAX_PROCESS_ID=0: number the processes"),
    ],
)
def test_variables_that_are_wrong_are_named(
    monkeypatch: pytest.MonkeyPatch, address: str, count: str, number: str, line: str
) -> None:
    monkeypatch.setenv("JAX_COORDINATOR_ADDRESS", address)
    monkeypatch.setenv("JAX_NUM_PROCESSES", count)
    monkeypatch.setenv("JAX_PROCESS_ID", number)
    with pytest.raises(UserError) as told, processes.joined(True, MAX_SILENCE):
        pass
    assert str(told.value).startswith(line)


def test_a_process_that_finds_no_others_says_what_to_set() -> None:
    """In a process of its own: JAX joins nothing after its first computation."""
    clusters = ("JAX_", "SLURM_", "OMPI_", "TPU_", "KUBERNETES_")
    alone = {name: v for name, v in os.environ.items() if not name.startswith(clusters)}
    done = subprocess.run(
        [sys.executable, "-m", "tests.refseg_jax.cli.process_steps", "for_ever"],
        cwd=_ROOT,
        env={**alone, "JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1
    (line,) = done.stderr.strip().splitlines()
    assert line.startswith("error: --distributed: JAX finds no other processes (coordinator_")
    assert "set JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID" in line


def test_another_config_is_refused_by_all_and_the_field_is_named(tmp_path: Path) -> None:
    group = Group(tmp_path, "other_config")
    assert group.codes(120) == [1, 1, 1]
    first, second, third = group.told()
    assert "error: process 1 was given config.optim.lr=0.5, process 0 0.25: give the" in second
    for text in (first, third):
        assert "error: another process was given another config" in text
    assert not any("Traceback" in text or "joined" in text for text in group.told())


def test_places_of_files_may_differ(tmp_path: Path) -> None:
    group = Group(tmp_path, "other_places")
    assert group.codes(120) == [0, 0, 0], group.told()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("mode", "line"),
    [("one_fails", "error: /data/shard-3: no such file"), ("one_breaks", "TypeError: a bug")],
)
def test_an_error_of_one_ends_all(tmp_path: Path, mode: str, line: str) -> None:
    group = Group(tmp_path, mode)
    group.wait_until_joined()
    codes = group.codes(MAX_SILENCE + _SLACK)
    assert codes[1] == 1 and all(codes), codes
    told = group.told()
    assert line in told[1].splitlines(), told[1]
    assert all(line not in text for text in (told[0], told[2]))


@pytest.mark.slow
@pytest.mark.parametrize("sent", [signal.SIGKILL, signal.SIGSTOP])
def test_the_others_end_and_name_the_process_that_is_gone(tmp_path: Path, sent: int) -> None:
    group = Group(tmp_path, "for_ever")
    group.wait_until_joined()
    gone = group.processes.pop()
    gone.send_signal(sent)
    try:
        assert all(group.codes(MAX_SILENCE + _SLACK))
    finally:
        gone.kill()
        gone.wait()
    for text in group.told()[:2]:
        # The task is "2", or in older versions of JAX a path that ends with it.
        assert re.search(r"\(stopped sending heartbeats\):\n(\S*:)?2\n", text), text
        assert "Fatal Python error" not in text, "stacks of all threads would bury it"


@pytest.mark.slow
def test_the_others_end_without_the_coordinator(tmp_path: Path) -> None:
    group = Group(tmp_path, "for_ever")
    group.wait_until_joined()
    group.processes[0].kill()
    codes = group.codes(MAX_SILENCE + _SLACK)
    assert all(codes), codes
    for text in group.told()[1:]:
        assert "the leader task" in text or "coordination service" in text, text
