"""Reads the files that hold images and masks."""

import errno
import stat
from pathlib import Path

#: What a path may name besides a regular file and a folder.
_KINDS = (
    (stat.S_ISFIFO, "a pipe"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
)


def read_file(path: str | Path) -> bytes:
    """Reads a regular file, or one that a link names.

    Pipes and devices are not opened: reading a pipe waits for a writer, and `/dev/zero` never ends.

    Raises:
        OSError: the file cannot be read, or is no regular file; `strerror` has the reason.
    """
    check_regular(path)
    return Path(path).read_bytes()


def check_regular(path: str | Path) -> None:
    """Checks that a path names a regular file, without opening it.

    Raises:
        OSError: as `read_file`.
    """
    mode = Path(path).stat().st_mode
    for is_kind, words in _KINDS:
        if is_kind(mode):
            raise OSError(errno.EINVAL, f"is {words}, no file", str(path))
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, "Is a directory", str(path))
