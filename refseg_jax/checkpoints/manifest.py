"""Digests of a folder's files, so that a flipped bit is found before the files are used.

`manifest.json` holds the size and the SHA-256 of every file below the folder, and a SHA-256 over
that table itself, so that damage to the manifest is told apart from damage to what it describes.
"""

import contextlib
import enum
import hashlib
import json
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

NAME = "manifest.json"

#: What reading a manifest that is missing or not ours leads to.
_UNREADABLE = (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError)

#: Hashing leaves the interpreter's lock; more threads than this wait for the disk anyway.
_THREADS = 4


class Soundness(enum.Enum):
    """What a manifest says about its folder."""

    SOUND = "sound"
    UNVERIFIED = "unverified"
    DAMAGED = "damaged"


class Verdict(NamedTuple):
    """Soundness of a folder and, unless it is sound, one line with the file and the reason."""

    soundness: Soundness
    reason: str = ""


def write(folder: Path) -> None:
    """Writes the folder's manifest; it is whole and on the disk, or not there.

    Raises:
        OSError: a file cannot be read, or the manifest cannot be written.
    """
    paths = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != NAME)
    with ThreadPoolExecutor(_THREADS) as pool:
        digests = list(pool.map(_digest, paths))
    files = {
        path.relative_to(folder).as_posix(): {"bytes": path.stat().st_size, "sha256": digest}
        for path, digest in zip(paths, digests, strict=True)
    }
    with _partial(folder / NAME, _as_json(files)) as partial:
        partial.replace(folder / NAME)
    _sync_folder(folder)


def rewrite(folder: Path, name: str, content: bytes) -> None:
    """Replaces one file of a folder, and its entry in the manifest where that can be read.

    Killed half-way, it leaves the folder unverified at worst, never damaged; the other files are not
    read, so that what the manifest says of them stays as it was.

    Raises:
        OSError: it cannot be written; then nothing has changed.
    """
    path = folder / name
    entry = {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    try:
        known = _read(folder / NAME)
    except _UNREADABLE:
        with _partial(path, content) as partial:
            partial.replace(path)
        return
    files = {n: {"bytes": size, "sha256": digest} for n, (size, digest) in known.items()}
    table = _as_json({**files, name: entry})
    with _partial(path, content) as partial, _partial(folder / NAME, table) as described:
        (folder / NAME).unlink()
        _sync_folder(folder)
        partial.replace(path)
        _sync_folder(path.parent)
        described.replace(folder / NAME)
    _sync_folder(folder)


def present(folder: Path) -> bool:
    """Whether the folder has a manifest, sound or not."""
    return (folder / NAME).is_file()


def check(folder: Path) -> Verdict:
    """Compares every file with the manifest; files that it does not name are ignored.

    A folder without a readable manifest is unverified: its content may be whole, but nothing
    proves it.
    """
    path = folder / NAME
    if not path.is_file():
        return Verdict(Soundness.UNVERIFIED, f"{path}: missing")
    try:
        files = _read(path)
    except _UNREADABLE as error:
        return Verdict(Soundness.UNVERIFIED, f"{path}: unreadable ({type(error).__name__})")
    with ThreadPoolExecutor(_THREADS) as pool:
        reasons = pool.map(lambda item: _compare(folder / item[0], *item[1]), files.items())
        reason = next(filter(None, reasons), "")
    return Verdict(Soundness.DAMAGED if reason else Soundness.SOUND, reason)


def _read(path: Path) -> dict[str, tuple[int, str]]:
    """File -> (size, SHA-256); `check` names the exceptions that anything else leads to."""
    content = json.loads(path.read_bytes())
    files: dict[str, dict[str, Any]] = content["files"]
    if content["sha256"] != _table_digest(files):
        raise ValueError("it does not match its own digest")
    table = {name: (int(entry["bytes"]), str(entry["sha256"])) for name, entry in files.items()}
    if any(Path(name).is_absolute() or ".." in Path(name).parts for name in table):
        raise ValueError("it names files outside the folder")
    return table


def _compare(path: Path, size: int, digest: str) -> str:
    """Why a file differs from its entry, or `""`."""
    try:
        actual = path.stat().st_size
        if actual != size:
            return f"{path}: {actual} bytes instead of {size}"
        if _digest(path) != digest:
            return f"{path}: its content has changed since it was written (SHA-256)"
    except FileNotFoundError:
        return f"{path}: missing"
    except OSError as error:
        return f"{path}: cannot be read ({error.strerror})"
    return ""


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _as_json(files: dict[str, Any]) -> bytes:
    return json.dumps({"files": files, "sha256": _table_digest(files)}, indent=1).encode()


@contextlib.contextmanager
def _partial(path: Path, content: bytes) -> Iterator[Path]:
    """A file beside `path` that holds the content on the disk; removed unless it gets a name."""
    partial = path.with_name(f"{path.name}.partial")
    try:
        with partial.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        yield partial
    finally:
        partial.unlink(missing_ok=True)


def _table_digest(files: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(files, sort_keys=True).encode()).hexdigest()


def _sync_folder(folder: Path) -> None:
    """Makes a rename inside the folder survive a power cut."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
