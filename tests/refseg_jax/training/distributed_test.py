"""Layouts over several devices and processes give what one device gives."""

import json
import os
import socket
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.refseg_jax.layers.compiling import FLAGS

_ROOT = Path(__file__).resolve().parents[3]


def start(*arguments: object, devices: int) -> subprocess.Popen[str]:
    environment = {
        **os.environ,
        "JAX_PLATFORMS": "cpu",
        # Compiled in a hurry: the sums are the same.
        "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices} {FLAGS}",
    }
    command = [
        sys.executable,
        "-m",
        "tests.refseg_jax.training.distributed_steps",
        *map(str, arguments),
    ]
    return subprocess.Popen(
        command,
        cwd=_ROOT,
        env=environment,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


def result(process: subprocess.Popen[str]) -> dict[str, Any]:
    out, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors[-3000:]
    return json.loads(out.splitlines()[-1])


pytestmark = pytest.mark.long


@cache
def one_device(model: str = "unires") -> dict[str, Any]:
    return result(start(model, 1, 1, 1, devices=1))


@pytest.mark.parametrize(
    ("model", "mesh"),
    [
        ("unires", (2, 1, 1)),
        ("unires", (1, 4, 1)),
        ("unires", (1, 8, 1)),
        ("unires", (8, 1, 1)),
        ("unires", (2, 2, 2)),
        ("rela_official", (8, 1, 1)),
        ("rela_paper", (2, 2, 1)),
        ("grser", (2, 1, 1)),
        ("grser", (2, 2, 1)),
        ("grser_random", (2, 2, 1)),
        ("unilseg", (2, 1, 1)),
        ("unilseg", (2, 2, 1)),
    ],
)
def test_layout_equals_one_device(model: str, mesh: tuple[int, int, int]):
    devices = int(np.prod(mesh))
    got, alone = result(start(model, *mesh, devices=devices)), one_device(model)
    # The first loss sees equal parameters; later ones also what rounding did to the updates.
    assert got["losses"][0] == pytest.approx(alone["losses"][0], abs=1e-6)
    np.testing.assert_allclose(got["losses"], alone["losses"], atol=1e-5)
    cut = mesh[1] * (mesh[2] if mesh[1] == 1 else 1)
    assert got["held"] <= alone["held"] / cut * 1.3
    assert got["counts"] == alone["counts"]
    assert got["scores"] == alone["scores"]
    assert got["averages"].keys() == alone["averages"].keys()
    assert bool(got["averages"]) == (model == "unilseg")
    for path, average in alone["averages"].items():
        np.testing.assert_allclose(got["averages"][path], average, rtol=1e-5, atol=1e-5)


def test_two_processes_equal_one():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    processes = [start("unires", 2, 1, 1, address, 2, number, devices=1) for number in range(2)]
    first, second = (result(process) for process in processes)
    assert first["losses"] == second["losses"]
    np.testing.assert_allclose(first["losses"], one_device()["losses"], atol=1e-6)
    assert first["counts"] + second["counts"] == one_device()["counts"]
    assert first["scores"] == second["scores"] == one_device()["scores"]
    assert {"mIoU", "part/count", "gres/gIoU", "lavt/object/Pr@0.5"} <= first["scores"].keys()
