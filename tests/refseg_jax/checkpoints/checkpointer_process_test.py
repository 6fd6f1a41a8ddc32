"""Checkpoints across devices and processes, kills, a full disk and preemption."""

import json
import os
import random
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from tests.refseg_jax.checkpoints.checkpoint_steps import MAX_SILENCE

_ROOT = Path(__file__).resolve().parents[3]


def _start(folder: Path, mode: str, *more: object, devices: int = 1) -> subprocess.Popen[str]:
    environment = {
        **os.environ,
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}",
    }
    module = "tests.refseg_jax.checkpoints.checkpoint_steps"
    return subprocess.Popen(
        [sys.executable, "-m", module, str(folder), mode, *map(str, more)],
        cwd=_ROOT,
        env=environment,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


def _result(process: subprocess.Popen[str]) -> Any:
    out, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors[-3000:]
    return json.loads(out.splitlines()[-1])


def _pair(folder: Path, mode: str) -> list[subprocess.Popen[str]]:
    """Two processes joined by `jax.distributed`."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    return [_start(folder, mode, address, 2, number) for number in range(2)]


def test_restores_on_another_number_of_devices(tmp_path: Path) -> None:
    _result(_start(tmp_path, "save", devices=4))
    for devices in (2, 1, 4):
        found = _result(_start(tmp_path, "restore", devices=devices))
        assert (found["step"], found["identical"]) == (3, True)
        assert found["held"] == 512 * 64 // devices


def test_restores_on_another_number_of_processes(tmp_path: Path) -> None:
    """Each process gets back its own data state; one that has none takes that of process 0."""
    for process in _pair(tmp_path, "save"):
        _result(process)
    for number, process in enumerate(_pair(tmp_path, "restore")):
        found = _result(process)
        assert (found["step"], found["identical"]) == (3, True)
        assert found["data_state"] == {"next": 3, "process": number}
    found = _result(_start(tmp_path, "restore", devices=2))
    assert (found["step"], found["identical"]) == (3, True)
    assert found["data_state"] == {"next": 3, "process": 0}


def test_processes_agree_on_the_sound_one(tmp_path: Path) -> None:
    for process in _pair(tmp_path, "save"):
        _result(process)
    path = next((tmp_path / "3" / "state" / "d").iterdir())
    content = bytearray(path.read_bytes())
    content[100] ^= 1
    path.write_bytes(content)
    for process in _pair(tmp_path, "restore"):
        found = _result(process)
        assert (found["step"], found["identical"]) == (2, True)


def _kill_and_resume(folder: Path, times: int, seed: int) -> None:
    delay = random.Random(seed)
    last = 0
    for _ in range(times):
        process = _start(folder, "save_for_ever")
        assert process.stdout is not None
        found = json.loads(process.stdout.readline())
        assert found["step"] >= last
        assert found.get("identical", True)
        last = found["step"]
        time.sleep(delay.uniform(0.05, 0.6))
        process.kill()
        process.communicate()
    found = _result(_start(folder, "restore"))
    assert found["identical"]
    assert found["step"] >= max(last, 1)


def test_killed_at_random_moments(tmp_path: Path) -> None:
    _kill_and_resume(tmp_path, times=3, seed=0)


@pytest.mark.slow
def test_killed_at_many_random_moments(tmp_path: Path) -> None:
    _kill_and_resume(tmp_path, times=40, seed=1)


@pytest.mark.slow
@pytest.mark.parametrize("lost", [0, 1])
def test_a_process_that_is_lost_in_a_save_leaves_the_checkpoint_before(
    tmp_path: Path, lost: int
) -> None:
    processes = _pair(tmp_path, "save_for_ever")
    try:
        end = time.monotonic() + 120
        saving: list[int] = []
        while not saving:
            assert time.monotonic() < end
            names = [path.name for path in tmp_path.iterdir()]
            unfinished = [int(n.split(".")[0]) for n in names if ".orbax-checkpoint-tmp" in n]
            saving = [step for step in unfinished if step > 3]
        processes[lost].kill()
        assert processes[1 - lost].wait(MAX_SILENCE + 50) != 0
    finally:
        for process in processes:
            process.kill()
            process.communicate()
    found = _result(_start(tmp_path, "restore", devices=2))
    assert found["identical"]
    # The save may have ended before the signal came, but no later one began.
    assert saving[0] - 1 <= found["step"] <= saving[0] + 1


def test_full_disk(tmp_path: Path) -> None:
    found = _result(_start(tmp_path, "full_disk"))
    assert "\n" not in found["message"]
    assert str(tmp_path) in found["message"]
    assert "File too large" in found["message"]
    assert "checkpoints kept: 1" in found["message"]
    assert (found["found"]["step"], found["found"]["identical"]) == (1, True)
    assert (found["after"]["step"], found["after"]["identical"]) == (2, True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["1", "2"]


def test_preemption(tmp_path: Path) -> None:
    process = _start(tmp_path, "until_preempted")
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGTERM)
    saved = _result(process)["saved"]
    found = _result(_start(tmp_path, "restore"))
    assert (found["step"], found["identical"]) == (saved, True)


def test_preemption_of_one_process_reaches_both(tmp_path: Path) -> None:
    processes = _pair(tmp_path, "until_preempted")
    for process in processes:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    processes[1].send_signal(signal.SIGTERM)
    first, second = (_result(process) for process in processes)
    assert first == second
    found = _result(_start(tmp_path, "restore", devices=2))
    assert (found["step"], found["identical"]) == (first["saved"], True)
