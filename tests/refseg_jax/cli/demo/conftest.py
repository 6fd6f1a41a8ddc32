"""A demo of a very small model with a presence head, served on loopback."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from refseg_jax.prediction.predictor import Predictor
from tests.refseg_jax.cli.demo.serving import FLAGS, ROOT, Served
from tests.refseg_jax.training.tiny_run import (
    WITH_PRESENCE,
    presence_params,
    save_unires,
    unires_run_config,
)


@pytest.fixture(scope="session")
def demo_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("demo") / "tiny_run"
    save_unires(folder, presence_params(-0.4), config=unires_run_config(0.55, WITH_PRESENCE))
    return folder


@pytest.fixture(scope="session")
def predictor(demo_run: Path) -> Predictor:
    return Predictor.from_checkpoint(demo_run)


@pytest.fixture(scope="session")
def served(demo_run: Path, predictor: Predictor) -> Iterator[Served]:
    """The command as people start it, in a process of its own, from which it is ended."""
    pytest.importorskip("gradio", reason="pip install -e '.[demo]' brings gradio")
    command = [sys.executable, "-m", "tools.demo", f"--checkpoint={demo_run}", *FLAGS]
    process = subprocess.Popen(
        command, cwd=ROOT, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    with process:
        assert process.stdout is not None
        line = process.stdout.readline()
        address = line.split()[0].rstrip(":") if line else ""
        if not line:
            _, said = process.communicate(timeout=10)
            raise AssertionError(said)
        assert line == f"{address}: tiny_run; API: {address}/v1/health\n"
        yield Served(address, predictor)
        process.terminate()
        _, said = process.communicate(timeout=20)
    assert process.returncode == 143 and said.endswith("stopped by SIGTERM\n")
