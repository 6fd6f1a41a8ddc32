import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from refseg_jax.checkpoints import workdir
from refseg_jax.errors import UserError
from refseg_jax.reporting.writers import FileWriter


def _fail(folder: Path, tell: bool = False, first: bool = True) -> None:
    with workdir.opened(folder, first=first):
        writer = FileWriter(folder)
        (folder / "checkpoints").mkdir(exist_ok=True)
        try:
            if tell:
                writer.scalars(1, {"loss": 0.5})
            raise UserError("it cannot start")
        finally:
            writer.close()


def test_a_start_that_fails_leaves_no_folder(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="it cannot start"):
        _fail(tmp_path / "runs" / "new")
    assert not (tmp_path / "runs" / "new").exists()


def test_a_folder_stays_that_was_there_or_tells_something_or_is_anothers(tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    for name, tell, first in (("there", False, True), ("told", True, True), ("of", False, False)):
        with pytest.raises(UserError):
            _fail(tmp_path / name, tell, first)
        assert (tmp_path / name / "metrics.jsonl").is_file(), name


def test_a_run_that_ends_well_keeps_its_folder(tmp_path: Path) -> None:
    with workdir.opened(tmp_path / "new"):
        pass
    assert (tmp_path / "new").is_dir()


def test_a_folder_is_of_one_run_at_a_time(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    with workdir.opened(folder):
        said = rf"run: another run \(process {os.getpid()} on .*\) is at it: .* another --workdir$"
        with pytest.raises(UserError, match=said), workdir.opened(folder):
            raise AssertionError
        assert folder.is_dir()
        # Of the same run, where that has several processes.
        with workdir.opened(folder, first=False):
            pass
    with workdir.opened(folder):
        pass
    assert not list(folder.iterdir())


#: One of two processes that open a folder: what it was told, or nothing.
MEMBER = """
import sys
from pathlib import Path
import jax
from refseg_jax.checkpoints import workdir
from refseg_jax.errors import UserError
jax.distributed.initialize(sys.argv[2], 2, int(sys.argv[3]))
try:
    with workdir.opened(Path(sys.argv[1]), first=jax.process_index() == 0):
        print("opened")
except UserError as error:
    print(error)
"""


def test_all_processes_of_a_run_are_refused_together(tmp_path: Path) -> None:
    def told() -> list[str]:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            address = f"127.0.0.1:{probe.getsockname()[1]}"
        members = [
            subprocess.Popen(
                [sys.executable, "-c", MEMBER, str(tmp_path), address, str(number)],
                env={**os.environ, "JAX_PLATFORMS": "cpu"},
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                text=True,
            )
            for number in range(2)
        ]
        return [member.communicate(timeout=120)[0].splitlines()[-1] for member in members]

    assert told() == ["opened", "opened"]
    with workdir.opened(tmp_path):
        first, second = told()
    assert f"{tmp_path}: another run (process {os.getpid()} on " in first
    assert f"{tmp_path}: another run (process 0 tells which) is at it" in second
