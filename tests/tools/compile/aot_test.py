"""Small models of all systems, compiled for TPUs that are not there; `make aot` runs this.

Each compilation takes a minute of a core, so that one gives the figures for several tests.
"""

import importlib.util
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from refseg_jax.models import MODELS
from tests.tools.compile.small import FIELDS

ROOT = Path(__file__).resolve().parents[3]

pytestmark = [
    pytest.mark.aot,
    pytest.mark.skipif(
        importlib.util.find_spec("libtpu") is None,
        reason="the compiler for TPUs is not installed: pip install 'jax[tpu]'",
    ),
]

#: Functions that only CPUs take.
CPU_KERNELS = {"_head_loop", "chunked_attention", "_forward_chunk", "_convolve_on_cpu"}


def _run(*flags: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "tools.compile", *flags]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True)


def _figures(report: Path, topology: str) -> list[dict[str, Any]]:
    return json.loads(report.read_text())["topologies"][topology]


def _kernels(text: str) -> set[str]:
    """Names of the functions that made a program's instructions."""
    (table,) = re.findall(r"^FunctionNames\n(.*?)\n\n", text, re.MULTILINE | re.DOTALL)
    return {name.split(".")[-1] for name in re.findall(r'"(.*?)"', table)}


def test_every_system_has_a_small_model() -> None:
    assert FIELDS.keys() == MODELS.keys()


@pytest.mark.parametrize("system", FIELDS)
def test_a_training_step_compiles_for_two_kinds_of_tpu(system: str, tmp_path: Path) -> None:
    """Without and with `fsdp`: the state of a device shrinks, and no kernel is a CPU's."""
    states = {}
    for topology, fsdp in (("v5e:2x2", 1), ("v6e:2x2", 4)):
        report = tmp_path / f"{topology}.json"
        done = _run(
            f"--config=tests/tools/compile/small.py:{system}",
            *(f"--topology={topology}", f"--json={report}", f"--hlo={tmp_path}"),
            f"--config.mesh.fsdp={fsdp}",
        )
        assert done.returncode == 0, done.stderr
        assert "fits" in done.stdout
        (one, *others) = _figures(report, topology)
        assert others == []
        assert one["fits"] is True
        assert one["devices"] == 4
        assert one["endless"] == 0
        assert 0 < one["flops"] < 1e12
        assert 0 < one["traffic"] < one["accessed"] < 1e12
        assert one["memory_seconds"] > one["arithmetic_seconds"] > 0
        assert one["needed"] >= one["state"] + one["temporaries"] > 0
        assert one["moved"]["all-reduce"]["bytes"] > 0
        if fsdp > 1:
            assert one["moved"]["all-gather"]["count"] > 10
        states[fsdp] = one["state"]
        programs = list(tmp_path.glob(f"{topology.replace(':', '-')}*.txt"))
        assert programs
        for program in programs:
            found = _kernels(program.read_text())
            assert "attention" in found
            assert not found & CPU_KERNELS
            assert 'custom_call_target="tpu_custom_call"' in program.read_text()
    # Parameters of less than 1024 numbers are not cut; `command_test` has larger ones.
    assert 0.25 <= states[4] / states[1] < 0.5


def test_a_batch_beyond_all_memory_is_refused_with_the_cure(tmp_path: Path) -> None:
    done = _run(
        "--config=tests/tools/compile/small.py:unires",
        *("--topology=v5e:2x2", "--config.batch_size=1048576", f"--json={tmp_path / 'it.json'}"),
    )
    assert done.returncode == 1
    (line,) = re.findall(r"^error: (.*)$", done.stderr, re.MULTILINE)
    assert line.startswith("--topology=v5e:2x2: training step of 1048576 rows does not fit (")
    assert line.endswith(
        " of 15.75 GiB); try --config.mesh.fsdp=2, --config.model.remat=True, "
        "--config.optim.accumulation=2, a smaller --config.batch_size"
    )
    (one,) = _figures(tmp_path / "it.json", "v5e:2x2")
    assert one["fits"] is False
    assert one["needed"] > one["available"] == 15.75 * 2**30


@pytest.mark.parametrize("topology", ["v5e:3x3", "v5p:3x2x2"])
def test_a_topology_that_no_tpu_has_gets_one_line(topology: str) -> None:
    done = _run("--config=configs/scenes_unires.py", f"--topology={topology}")
    assert done.returncode == 1
    (line,) = re.findall(r"^error: (.*)$", done.stderr, re.MULTILINE)
    assert line.startswith(f"--topology={topology}: there is no such topology (")
    assert "; take a multiple of a host's 2x2" in line
    assert line.count(topology) <= 2


def test_two_slices_are_joined_along_the_batch(tmp_path: Path) -> None:
    """Of an evaluation, which uses all devices."""
    report = tmp_path / "it.json"
    flags = ("--config=tests/tools/compile/small.py:unires", f"--json={report}")
    done = _run(*flags, "--topology=v5e:2x2", "--slices=2", "--mode=eval")
    assert done.returncode == 0, done.stderr
    (one,) = _figures(report, "v5e:2x2")
    assert one["mesh"] == {"data": 8, "fsdp": 1, "tensor": 1}
    assert one["hosts"] == 2


def test_a_predictors_functions_compile(tmp_path: Path) -> None:
    report = tmp_path / "it.json"
    flags = ("--config=tests/tools/compile/small.py:unires", f"--json={report}")
    done = _run(*flags, "--topology=tpu7x:2x2x1", "--mode=predict")
    assert done.returncode == 0, done.stderr
    found = _figures(report, "tpu7x:2x2x1")
    assert [one["name"] for one in found] == ["encode_image", "encode_text", "decode"]
    assert all(one["fits"] for one in found)
    assert {one["devices"] for one in found} == {1}
    assert all(one["needed"] >= one["state"] > 0 for one in found)
