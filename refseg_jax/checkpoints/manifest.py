"""Digests of a folder's files, so that a flipped bit is found before the files are used.

`manifest.json` holds the size and the SHA-256 of every file below the folder, and a SHA-256 of
that table itself, which distinguishes a damaged manifest from damaged files. Checkpoints and exports
have one.
"""

import contextlib
import enum
import errno
import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

from refseg_jax.errors import instead
from refseg_jax.storage import buckets

NAME = "manifest.json"

#: Second cure of a damaged manifest, for errors about checkpoints.
UNPROVEN = (
    " (a checkpoint without manifest.json is read unproven: delete one that is damaged itself)"
)

#: Errors of reading the JSON of a manifest that is malformed.
_UNREADABLE = (ValueError, TypeError, KeyError, AttributeError, RecursionError)

#: Hashing releases the interpreter's lock; more threads would only wait for the disk.
_THREADS = 4


#: Size in bytes and SHA-256 of a file.
Entry = tuple[int, str]


class ManifestError(ValueError):
    """A manifest that is damaged itself, so that nothing proves the files; one line with the file."""


class Soundness(enum.Enum):
    """Result of comparing a folder with its manifest; a folder without one is unverified."""

    SOUND = "sound"
    UNVERIFIED = "unverified"
    DAMAGED = "damaged"


class Verdict(NamedTuple):
    """Soundness of a folder and, unless it is sound, one line with the file and the reason."""

    soundness: Soundness
    reason: str = ""


def write(folder: Path) -> None:
    """Writes the folder's manifest atomically, and flushes it to the disk.

    All files are read for it, those of a bucket too: their digests are ours, not the bucket's.

    Raises:
        OSError: a file cannot be read, or the manifest cannot be written.
    """
    names = [name for name in buckets.files(folder) if name != NAME]
    with ThreadPoolExecutor(_THREADS) as pool:
        entries = list(pool.map(lambda name: _entry(folder / name), names))
    files = dict(zip(names, entries, strict=True))
    _replace(folder / NAME, _as_json(files))


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
        known = read(folder)
    except (FileNotFoundError, ManifestError):
        _replace(path, content)
        return
    files = {n: {"bytes": size, "sha256": digest} for n, (size, digest) in known.items()}
    table = _as_json({**files, name: entry})
    if buckets.is_remote(folder):
        (folder / NAME).unlink()
        buckets.write(path, content)
        buckets.write(folder / NAME, table)
        return
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

    A folder without a manifest is unverified: its files may be intact, but nothing proves it. That is
    what a process leaves that was killed before it wrote the manifest. A damaged manifest counts as
    damage, since what damaged it may have damaged the files.

    Raises:
        OSError: the folder lies in a bucket that cannot be reached.
    """
    try:
        reason = next(differences(folder, read(folder)), "")
    except FileNotFoundError:
        return Verdict(Soundness.UNVERIFIED, f"{folder / NAME}: missing")
    except ManifestError as error:
        reason = str(error)
    return Verdict(Soundness.DAMAGED if reason else Soundness.SOUND, reason)


def read(folder: Path) -> dict[str, Entry]:
    """The manifest's entries: path of a file, relative to the folder -> its entry.

    Raises:
        FileNotFoundError: there is no manifest.
        ManifestError: the manifest is damaged, or is no manifest.
    """
    path = folder / NAME
    if not present(folder):
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(path))
    try:
        return _table(json.loads(path.read_bytes()))
    except OSError as error:
        _raise_if_unreachable(path, error)
        why = f"cannot be read ({error.strerror or error})"
    except _OtherDigest:
        why = "damaged: it does not match its own digest"
    except _UNREADABLE as error:
        why = f"damaged or no manifest ({type(error).__name__})"
    raise ManifestError(f"{path}: {why}; nothing proves the files beside it")


def differences(folder: Path, entries: Mapping[str, Entry]) -> Iterator[str]:
    """One line for each file that is missing or is not what its entry says, in order."""
    with ThreadPoolExecutor(_THREADS) as pool:
        yield from filter(
            None, pool.map(lambda item: _compare(folder / item[0], *item[1]), entries.items())
        )


def added(folder: Path, entries: Mapping[str, Entry]) -> list[str]:
    """Sorted paths of files that have no entry; hidden files do not count."""
    names = buckets.files(folder)
    shown = {n for n in names if not any(part.startswith(".") for part in n.split("/"))}
    return sorted(shown - entries.keys() - {NAME})


class _OtherDigest(ValueError):
    """The table of a manifest does not match its digest."""


def _table(content: Any) -> dict[str, Entry]:
    """The entries of a manifest's JSON; raises one of `_UNREADABLE` if it is malformed."""
    files: dict[str, dict[str, Any]] = content["files"]
    if content["sha256"] != _table_digest(files):
        raise _OtherDigest
    table = {name: (int(entry["bytes"]), str(entry["sha256"])) for name, entry in files.items()}
    if any(Path(name).is_absolute() or ".." in Path(name).parts for name in table):
        raise ValueError("it names files outside the folder")
    return table


def _compare(path: Path, size: int, digest: str) -> str:
    """One line on how a file differs from its entry, or `""`."""
    try:
        actual = buckets.size(path)
        if not path.is_file():
            # A pipe is not opened: that would wait for a writer.
            return f"{path}: is no regular file"
        if actual != size:
            with path.open("rb") as file:
                what = instead(file.read(16))
            return f"{path}: {what or f'{actual} bytes instead of {size}'}"
        if _digest(path) != digest:
            return f"{path}: its content has changed since it was written (SHA-256)"
    except FileNotFoundError:
        return f"{path}: missing"
    except OSError as error:
        _raise_if_unreachable(path, error)
        return f"{path}: cannot be read ({error.strerror or error})"
    return ""


def _raise_if_unreachable(path: Path, error: OSError) -> None:
    """A bucket that does not answer says nothing of its files: they do not count as damaged."""
    if buckets.is_remote(path) and buckets.trouble(error):
        raise error


def _entry(path: Path) -> dict[str, Any]:
    return {"bytes": buckets.size(path), "sha256": _digest(path)}


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _as_json(files: dict[str, Any]) -> bytes:
    return json.dumps({"files": files, "sha256": _table_digest(files)}, indent=1).encode()


def _replace(path: Path, content: bytes) -> None:
    """Writes a file completely or not at all; on a disk, flushed."""
    if buckets.is_remote(path):
        buckets.write(path, content)
        return
    with _partial(path, content) as partial:
        partial.replace(path)
    _sync_folder(path.parent)


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
