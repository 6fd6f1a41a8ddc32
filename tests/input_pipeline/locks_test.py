import threading
import time
from pathlib import Path

import pytest

from input_pipeline.locks import exclusive
from refseg_jax.errors import UserError


def test_it_is_held_once_and_leaves_nothing(tmp_path: Path):
    path = tmp_path / "new" / "folder" / "a.lock"
    with exclusive(path, UserError("busy")):
        with pytest.raises(UserError, match="busy"), exclusive(path, UserError("busy")):
            raise AssertionError
        with exclusive(path.with_name("b.lock"), UserError("busy")):
            assert path.exists()
    assert not list(tmp_path.iterdir())
    path.parent.mkdir(parents=True)
    path.touch()  # Of a killed process.
    with exclusive(path, UserError("busy")):
        pass
    assert not list(path.parent.iterdir()), "the folder is not its own"


def test_a_file_in_the_place_of_the_folder_is_an_error(tmp_path: Path):
    (tmp_path / "file").touch()
    (tmp_path / "link").symlink_to(tmp_path / "gone")
    for name in ("file", "link"):
        with pytest.raises(FileExistsError), exclusive(tmp_path / name / "a.lock", UserError("")):
            raise AssertionError


def test_never_two_hold_it_while_others_come_and_go(tmp_path: Path):
    inside, most, times, refused = [0], [0], [0], [0]

    def come_and_go():
        while times[0] < 400:
            try:
                with exclusive(tmp_path / "folder" / "a.lock", UserError("busy")):
                    inside[0] += 1
                    most[0] = max(most[0], inside[0])
                    times[0] += 1
                    time.sleep(1e-4)
                    inside[0] -= 1
            except UserError:
                refused[0] += 1

    threads = [threading.Thread(target=come_and_go) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most[0] == 1
    assert refused[0] > 0
