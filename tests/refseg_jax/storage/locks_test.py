import errno
import fcntl
import logging
import os
import platform
import re
import threading
import time
from pathlib import Path

import pytest

from refseg_jax.errors import UserError
from refseg_jax.storage import locks
from refseg_jax.storage.locks import exclusive

ME = rf"^busy: process {os.getpid()} on {re.escape(platform.node())}$"


def busy(who: str) -> UserError:
    return UserError(f"busy: {who}")


def test_it_is_held_once_and_leaves_nothing(tmp_path: Path):
    path = tmp_path / "new" / "folder" / "a.lock"
    with exclusive(path, busy):
        with pytest.raises(UserError, match=ME), exclusive(path, busy):
            raise AssertionError
        with exclusive(path.with_name("b.lock"), busy):
            assert path.exists()
    assert not list(tmp_path.iterdir())
    path.parent.mkdir(parents=True)
    path.write_text("process 1 on the moon, and more than that")  # Of a killed process.
    with exclusive(path, busy), pytest.raises(UserError, match=ME), exclusive(path, busy):
        raise AssertionError
    assert not list(path.parent.iterdir()), "the folder is not its own"


def test_a_file_in_the_place_of_the_folder_is_an_error(tmp_path: Path):
    (tmp_path / "file").touch()
    (tmp_path / "link").symlink_to(tmp_path / "gone")
    for name in ("file", "link"):
        with pytest.raises(FileExistsError), exclusive(tmp_path / name / "a.lock", busy):
            raise AssertionError


def test_never_two_hold_it_while_others_come_and_go(tmp_path: Path):
    inside, most, times, refused = [0], [0], [0], [0]

    def come_and_go():
        while times[0] < 400:
            try:
                with exclusive(tmp_path / "folder" / "a.lock", busy):
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


def test_without_locks_it_warns_and_goes_on(tmp_path: Path, monkeypatch, caplog):
    def none(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", none)
    logging.getLogger("absl").propagate = True
    with exclusive(tmp_path / "folder" / "a.lock", busy):
        assert (tmp_path / "folder").is_dir()
    assert f"{tmp_path}/folder: this file system knows no locks (No locks avail" in caplog.text
    assert not list(tmp_path.iterdir())
    monkeypatch.setattr(locks, "_NO_LOCKS", frozenset())
    with pytest.raises(OSError, match="No locks"), exclusive(tmp_path / "a.lock", busy):
        raise AssertionError
