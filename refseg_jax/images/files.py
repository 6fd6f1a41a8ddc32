"""Finds and reads the files that hold images and masks."""

import errno
import os
import stat
import unicodedata
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


def spellings(name: str) -> list[str]:
    """The name of a file as given, and as other systems write it; each once.

    Windows has backslashes for slashes, and macOS decomposes letters with accents.
    """
    slashed = (name, name.replace("\\", "/"))
    forms = [unicodedata.normalize(form, text) for text in slashed for form in ("NFC", "NFD")]
    return list(dict.fromkeys((*slashed, *forms)))


def spelled(folder: Path, name: str) -> Path:
    """Path of a file below a folder, in whichever spelling it is there; as given if it is not there."""
    paths = [folder / text for text in spellings(name)]
    return next(filter(os.path.exists, paths), paths[0])


def same_name(name: str) -> str:
    """A key that is equal for all spellings of a name."""
    return unicodedata.normalize("NFC", name.replace("\\", "/"))
