"""An exported folder is whole or not there, and nobody else's files are touched."""

import os
import resource
import signal
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from refseg_jax.cli import export as command
from refseg_jax.errors import UserError
from refseg_jax.exports import onnx_environment
from refseg_jax.exports.arrays_file import write_arrays
from refseg_jax.exports.exporter import export
from refseg_jax.exports.folder import is_export, new_folder
from tests.refseg_jax.exports.folders import one_line, tiny_params
from tests.refseg_jax.training.tiny_run import save_unires


def test_a_folder_that_looks_like_a_partial_one_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "out.partial").mkdir()
    (tmp_path / "out.partial" / "mine").write_text("keep")
    with new_folder(tmp_path / "out") as target:
        (target / "file").write_text("x")
    assert (tmp_path / "out.partial" / "mine").read_text() == "keep"
    assert {path.name for path in tmp_path.iterdir()} == {"out", "out.partial"}


def test_of_two_exports_to_one_output_the_later_is_refused(tmp_path: Path) -> None:
    out = tmp_path / "out"
    with pytest.raises(UserError) as caught, new_folder(out) as slow:
        (slow / "slow").write_text("x")
        with new_folder(out) as fast:
            (fast / "fast").write_text("x")
    one_line(caught, str(out), "cannot be written")
    assert [path.name for path in out.iterdir()] == ["fast"]
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_others_may_read_the_folder_as_any_new_one(tmp_path: Path) -> None:
    (tmp_path / "any").mkdir()
    with new_folder(tmp_path / "out"):
        pass
    assert (tmp_path / "out").stat().st_mode == (tmp_path / "any").stat().st_mode


def test_a_link_to_nowhere_is_not_replaced(tmp_path: Path) -> None:
    link = tmp_path / "out"
    link.symlink_to(tmp_path / "unmounted")
    with pytest.raises(UserError) as caught, new_folder(link):
        pass
    one_line(caught, str(link), "exists already")
    assert link.is_symlink()


def test_a_full_disk_is_one_line_and_leaves_nothing(tmp_path: Path) -> None:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    with pytest.raises(UserError) as caught, new_folder(tmp_path / "out") as target:
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, before[1]))
        try:
            write_arrays(target / "a", {"a": np.zeros(1_000_000)})
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
    one_line(caught, str(tmp_path / "out"), "cannot be written")
    assert not list(tmp_path.iterdir())


def test_what_cannot_be_read_is_no_fault_of_the_output(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="too long") as caught:
        export(tmp_path / ("x" * 300), "safetensors", tmp_path / "out", command=["x"])
    assert "cannot be written" not in str(caught.value)


def test_a_run_with_weights_of_ones_own_beside_it_stays_a_run(tmp_path: Path) -> None:
    save_unires(tmp_path, tiny_params())
    (tmp_path / "model.safetensors").write_bytes(b"mine")
    assert not is_export(tmp_path)


def test_sigterm_kills_the_converter_and_leaves_nothing(tmp_path: Path) -> None:
    save_unires(tmp_path / "run", tiny_params())
    environment = tmp_path / "env"
    (environment / "bin").mkdir(parents=True)
    (environment / "refseg_jax_pins.txt").write_text(onnx_environment._content())
    # A converter that has begun to write, and takes its time.
    python, started = environment / "bin" / "python", environment / "pid"
    python.write_text(
        f'#!/bin/sh\necho half > "$4/decode.onnx"\necho $$ > {started}.new\n'
        f"mv {started}.new {started}\nexec sleep 60\n"
    )
    python.chmod(0o755)

    def stop() -> None:
        while not started.exists():
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGTERM)

    stopper = threading.Thread(target=stop, daemon=True)
    stopper.start()
    flags = [f"--checkpoint={tmp_path / 'run'}", "--format=onnx", f"--env={environment}"]
    code = command.main([*flags, f"--output={tmp_path / 'out'}"])
    assert code == 128 + signal.SIGTERM
    with pytest.raises(ProcessLookupError):
        os.kill(int(started.read_text()), 0)
    assert {path.name for path in tmp_path.iterdir()} == {"run", "env"}
