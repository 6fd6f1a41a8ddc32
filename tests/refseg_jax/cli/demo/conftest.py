"""A demo of a very small model with a presence head, served on loopback."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from refseg_jax.prediction.predictor import Predictor
from tests.refseg_jax.cli.demo.serving import FLAGS, ROOT, THRESHOLDS, Served
from tests.refseg_jax.training.tiny_run import (
    WITH_PRESENCE,
    presence_params,
    save_unires,
    unires_run_config,
)


@pytest.fixture(scope="session")
def demo_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("demo") / "tiny_run"
    save_unires(
        folder, presence_params(-0.4), config=unires_run_config(THRESHOLDS[0], WITH_PRESENCE)
    )
    return folder


@pytest.fixture(scope="session")
def predictor(demo_run: Path) -> Predictor:
    return Predictor.from_checkpoint(demo_run)


@pytest.fixture(scope="session")
def served(demo_run: Path, predictor: Predictor) -> Iterator[Served]:
    """The command as people start it, in a process of its own, from which it is ended."""
    pytest.importorskip("gradio", reason="pip install -e '.[demo]' brings gradio")
    command = [sys.executable, "-m", "tools.demo", f"--checkpoint={demo_run}", *FLAGS]
    # A file: a pipe that nobody reads would stop the server.
    with (
        (demo_run.parent / "said.txt").open("w+") as said,
        subprocess.Popen(
            command, cwd=ROOT, text=True, stdout=subprocess.PIPE, stderr=said
        ) as process,
    ):
        assert process.stdout is not None
        line = process.stdout.readline()
        address = line.split()[0].rstrip(":") if line else ""
        if not line:
            process.wait(10)
            said.seek(0)
            raise AssertionError(said.read())
        assert line == f"{address}: tiny_run; API: {address}/v1/health\n"
        yield Served(address, predictor)
        process.terminate()
        process.wait(20)
        said.seek(0)
        told = said.read()
        assert process.returncode == 143 and told.endswith("stopped by SIGTERM\n")
        assert "Traceback" not in told
