"""Only regular files are opened."""

import os
import socket
from pathlib import Path

import pytest

from refseg_jax.images.files import read_file


def test_a_regular_file_and_a_link_to_one_are_read(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"content")
    (tmp_path / "link").symlink_to(tmp_path / "a")
    assert read_file(tmp_path / "a") == read_file(str(tmp_path / "link")) == b"content"


def test_nothing_else_is_opened(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to(tmp_path / "pipe")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(os.path.relpath(tmp_path / "socket"))
    said = {
        tmp_path / "pipe": "is a pipe, no file",
        tmp_path / "link": "is a pipe, no file",
        tmp_path / "socket": "is a socket, no file",
        Path("/dev/zero"): "is a device, no file",
        tmp_path: "Is a directory",
        tmp_path / "none": "No such file or directory",
    }
    for path, reason in said.items():
        with pytest.raises(OSError) as caught:
            read_file(path)
        assert caught.value.strerror == reason
