"""Digests of a folder's files, so that a flipped bit is found before the files are used.

`manifest.json` holds the size and the SHA-256 of every file below the folder, and a SHA-256 of
that table itself, which distinguishes a damaged manifest from damaged files.
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

#: Errors of reading a manifest that is missing or malformed.
_UNREADABLE = (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError)

#: Hashing releases the interpreter's lock; more threads would only wait for the disk.
_THREADS = 4


class Soundness(enum.Enum):
    """Result of comparing a folder with its manifest."""

    SOUND = "sound"
    UNVERIFIED = "unverified"
    DAMAGED = "damaged"


class Verdict(NamedTuple):
    """Soundness of a folder and, unless it is sound, one line with the file and the reason."""

    soundness: Soundness
    reason: str = ""


def write(folder: Path) -> None:
    """Writes the folder's manifest atomically, and flushes it to the disk.

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
    """Replaces one file of a folder and, if the manifest is readable, the file's entry in it.

    If the process is killed half-way, the folder is at worst unverified, never damaged. The other
    files are not read, and their entries stay as they are.

    Args:
        folder: the folder of the manifest.
        name: path of the file, relative to the folder, with `/`.
        content: the new content.

    Raises:
        OSError: the new content cannot be written; the folder is unchanged.
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
    """Compares every file that the manifest names with its entry; ignores other files.

    A folder without a readable manifest is unverified: its files may be intact, but nothing proves
    it.
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
    """File -> (size in bytes, SHA-256); raises one of `_UNREADABLE` if that fails."""
    content = json.loads(path.read_bytes())
    files: dict[str, dict[str, Any]] = content["files"]
    if content["sha256"] != _table_digest(files):
        raise ValueError("it does not match its own digest")
    table = {name: (int(entry["bytes"]), str(entry["sha256"])) for name, entry in files.items()}
    if any(Path(name).is_absolute() or ".." in Path(name).parts for name in table):
        raise ValueError("it names files outside the folder")
    return table


def _compare(path: Path, size: int, digest: str) -> str:
    """One line on how a file differs from its entry, or `""`."""
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
    """Yields a temporary file beside `path` with the content, flushed; removes it unless renamed."""
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
