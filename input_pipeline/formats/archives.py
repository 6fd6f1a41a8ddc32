"""Unpacks untrusted archives: zip and tar (plain, .gz, .xz), completely or not at all.

It refuses names that lead out of the archive or occur twice, more members than any dataset has, and what
`archive_streams` refuses. Only plain files and folders are made. Files that macOS adds (`._NAME` and
`__MACOSX`) are left out.
"""

import contextlib
import hashlib
import lzma
import os
import re
import shutil
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from input_pipeline.building.conversion import SourceError, as_given
from input_pipeline.formats.archive_streams import Forward, RefusedArchiveError, contents, headers
from refseg_jax.errors import UserError, instead
from refseg_jax.images.files import check_regular
from refseg_jax.images.kinds import HEAD, kind_of
from refseg_jax.storage.locks import exclusive

ENDINGS = (".zip", ".tar", ".tar.gz", ".tgz", ".tar.xz", ".txz")

#: Last letters of an ending -> how such a file begins.
_MARKS = {"zip": b"PK", "gz": b"\x1f\x8b", "xz": b"\xfd7zXZ"}

_MEMBERS = 5_000_000
#: Bytes that are copied at a time.
_PIECE = 1 << 20


class ArchiveError(UserError):
    """An archive is damaged, or refused for safety."""


class Member(NamedTuple):
    """A file of a plain tar: its name, the offset of its bytes, and its size in bytes."""

    name: str
    offset: int
    size: int


@contextlib.contextmanager
def source_folder(source: Path, data_dir: Path) -> Iterator[Path]:
    """Yields the folder of a source: the folder itself, or the content of an archive.

    Errors of the block name the archive, because the unpacked folder no longer exists when a person
    reads them.

    Args:
        source: a folder, an archive, or a folder within an archive (`FILE.zip/inner/folder`).
        data_dir: an archive is unpacked into a folder below it. The folder is removed at the end and
            after an error, but not if the process is interrupted: its name is the same each time, so
            that the next build uses it again.

    Raises:
        ArchiveError: the archive is damaged or refused, has no such folder, or is in use by another
            process.
    """
    archive = next((path for path in (source, *source.parents) if path.is_file()), None)
    if archive is None:
        yield source
        return
    if not archive.name.lower().endswith(ENDINGS):
        raise ArchiveError(f"{archive}: neither a folder nor an archive ({', '.join(ENDINGS)})")
    state = archive.stat()
    facts = f"{archive.resolve()} {state.st_size} {state.st_mtime_ns}"
    name = f"unpacked-{hashlib.sha256(facts.encode()).hexdigest()[:16]}"
    folder = data_dir / name

    def busy(who: str) -> ArchiveError:
        return ArchiveError(f"{archive}: {who} builds from it; wait for it")

    with exclusive(folder.with_name(f"{name}.lock"), busy):
        if not folder.is_dir():
            extract(archive, folder)
        inner = folder
        try:
            inner = _inner(folder, source.relative_to(archive), archive)
            yield inner
        except Exception as error:
            _rename(error, inner, source)
            shutil.rmtree(folder)
            raise
        shutil.rmtree(folder)


def _rename(error: Exception, folder: Path, source: Path) -> None:
    """Replaces the folder by the source in an error, and hints at the folder's only subfolder.

    There is no hint if the error already is about a path in that subfolder.
    """
    within = [path for path in folder.iterdir() if path.is_dir()]
    text, hint = str(error), ""
    if isinstance(error, SourceError) and str(folder) in text and len(within) == 1:
        only = within[0]
        if f"{only}{os.sep}" not in text:
            hint = f"; it holds one folder, perhaps you mean --source_dir={source / only.name}"
    error.args = tuple(
        as_given(part, folder, source) + hint if isinstance(part, str) else part
        for part in error.args
    )
    if isinstance(error, OSError) and error.filename is not None:
        error.filename = as_given(str(error.filename), folder, source)


def extract(archive: Path, folder: Path) -> None:
    """Unpacks an archive into a new folder, which gets its name when it is complete.

    Raises:
        ArchiveError: the archive is damaged or refused.
    """
    partial = folder.with_name(f"{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        partial.mkdir(parents=True)
        with _one_line(archive):
            seen = _Names()
            for name, stream in contents(archive):
                inner = seen.add(name, folder=stream is None)
                path = partial / inner
                if is_companion(inner):
                    continue
                if stream is None:
                    path.mkdir(parents=True, exist_ok=True)
                else:
                    path.parent.mkdir(parents=True, exist_ok=True)
                    with path.open("xb") as file:
                        shutil.copyfileobj(stream, file, _PIECE)
        partial.rename(folder)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


def tar_members(archive: Path) -> Iterator[Member]:
    """Yields the files of a plain tar in order, without reading their bytes.

    Raises:
        ArchiveError: the tar is compressed or damaged, or has a member that `extract` refuses.
    """
    seen = _Names()
    with _one_line(archive):
        check_regular(archive)
    with _one_line(archive), archive.open("rb") as file:
        size = archive.stat().st_size
        for member in headers(Forward(file, size, file.seek)):
            name = seen.add(member.name, folder=member.isdir())
            if not member.isdir() and not is_companion(name):
                if member.offset_data + member.size > size:
                    raise RefusedArchiveError(f"{member.name!r:.80} is truncated")
                yield Member(name, member.offset_data, member.size)


def is_companion(name: str) -> bool:
    """Whether a path in an archive is one that macOS adds: `._NAME`, or below `__MACOSX`."""
    parts = name.split("/")
    return "__MACOSX" in parts or any(part.startswith("._") for part in parts)


@contextlib.contextmanager
def _one_line(archive: Path) -> Iterator[None]:
    damage = (
        *(tarfile.TarError, zipfile.BadZipFile, zlib.error, lzma.LZMAError, EOFError, ValueError),
        *(OverflowError, RuntimeError, OSError, struct.error),
    )
    try:
        yield
    except RefusedArchiveError as error:
        raise ArchiveError(
            f"{archive}: {error}; if you trust it, unpack it yourself and give the folder"
        ) from None
    except damage as error:
        if what := _instead(archive):
            raise ArchiveError(f"{archive}: {what}") from None
        system = isinstance(error, OSError) and error.strerror
        reason = system or " ".join(str(error).split())[:120] or type(error).__name__
        cure = "look after the disk" if system else "download it again"
        raise ArchiveError(f"{archive}: cannot be unpacked ({reason}); {cure}") from None


def _instead(archive: Path) -> str:
    """What a file is that is no archive of its name, with the cure; it may not be readable."""
    with contextlib.suppress(OSError):
        check_regular(archive)
        with archive.open("rb") as file:
            start = file.read(HEAD)
        kind = kind_of(start)
        own = next(
            (mark for end, mark in _MARKS.items() if archive.name.lower().endswith(end)), b""
        )
        if kind is None or (own and start.startswith(own)):
            return instead(start)
        return instead(start) or f"is {kind.name}, which its name does not say; correct the name"
    return ""


def _inner(folder: Path, within: Path, archive: Path) -> Path:
    inner = folder / within
    if ".." in within.parts or not inner.is_dir():
        there = ", ".join(sorted(path.name for path in folder.iterdir())[:10])
        raise ArchiveError(f"{archive}: no folder {str(within)!r} in it; there are: {there}")
    return inner


class _Names:
    """Checks the names of an archive, and keeps those so far."""

    def __init__(self) -> None:
        # Strings, which take 140 MB for a million members; as `Path` they took 400 MB.
        self._files: set[str] = set()
        self._folders: set[str] = {""}

    def add(self, name: str, *, folder: bool) -> str:
        """The name as a path below the target; raises a `RefusedArchiveError` if it is not allowed."""
        text = name.replace("\\", "/")
        parts = [part for part in text.split("/") if part not in ("", ".")]
        if text.startswith("/") or re.match("[A-Za-z]:", text) or ".." in parts:
            raise RefusedArchiveError(f"the name {name!r:.80} leads out of the archive")
        if any(ord(letter) < 32 for letter in text) or not (parts or folder):
            raise RefusedArchiveError(f"{name!r:.80} is no name of a file")
        path = "/".join(parts)
        if len(self._files) + len(self._folders) > _MEMBERS:
            raise RefusedArchiveError(f"more than {_MEMBERS:,} members")
        above = path if folder else path.rpartition("/")[0]
        while above not in self._folders:
            if above in self._files:
                raise RefusedArchiveError(f"{above!r:.80} is a file and a folder")
            self._folders.add(above)
            above = above.rpartition("/")[0]
        if not folder:
            if path in self._files or path in self._folders:
                raise RefusedArchiveError(f"the name {name!r:.80} occurs twice")
            self._files.add(path)
        return path
