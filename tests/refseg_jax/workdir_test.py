import os
from pathlib import Path

import pytest

from refseg_jax import workdir
from refseg_jax.errors import UserError
from refseg_jax.writers import FileWriter


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
