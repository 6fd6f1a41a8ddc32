"""Unpacks untrusted archives: zip and tar (plain, .gz, .xz), completely or not at all.

It refuses names that lead out of the archive, links, devices, names that occur twice, encryption, and
bombs: archives whose content is more than 200 times their size, or with more members than any dataset
has. Stated sizes are not trusted before their bytes are read, and only plain files and folders are made.
"""

import contextlib
import gzip
import hashlib
import io
import lzma
import os
import re
import shutil
import stat
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any, NamedTuple

from input_pipeline.building.conversion import SourceError, as_given
from refseg_jax.errors import UserError
from refseg_jax.locks import exclusive

ENDINGS = (".zip", ".tar", ".tar.gz", ".tgz", ".tar.xz", ".txz")

#: Content of more than `_SMALL` bytes may be at most this many times as large as its archive.
_RATIO = 200
_SMALL = 64 << 20
_MEMBERS = 5_000_000
#: Bytes that are read at a time; longer headers of a tar are refused.
_PIECE = 1 << 20
#: Memory of the xz decoder; the best compression of `xz` needs 65 MiB.
_XZ_MEMORY = 256 << 20


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
    within = [path for path in folder.iterdir() if path.is_dir() and path.name != "__MACOSX"]
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
            for name, stream in _content(archive):
                path = partial / seen.add(name, folder=stream is None)
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
    with _one_line(archive), archive.open("rb") as file:
        size = archive.stat().st_size
        for member in _members(_Forward(file, size, file.seek)):
            name = seen.add(member.name, folder=member.isdir())
            if not member.isdir():
                if member.offset_data + member.size > size:
                    raise _RefusedError(f"{member.name!r:.80} is truncated")
                yield Member(name, member.offset_data, member.size)


class _RefusedError(Exception):
    """The reason why an archive is refused."""


@contextlib.contextmanager
def _one_line(archive: Path) -> Iterator[None]:
    damage = (
        *(tarfile.TarError, zipfile.BadZipFile, zlib.error, lzma.LZMAError, EOFError, ValueError),
        *(OverflowError, RuntimeError, OSError, struct.error),
    )
    try:
        yield
    except _RefusedError as error:
        raise ArchiveError(
            f"{archive}: {error}; if you trust it, unpack it yourself and give the folder"
        ) from None
    except damage as error:
        system = isinstance(error, OSError) and error.strerror
        reason = system or " ".join(str(error).split())[:120] or type(error).__name__
        cure = "look after the disk" if system else "download it again"
        raise ArchiveError(f"{archive}: cannot be unpacked ({reason}); {cure}") from None


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
        """The name as a path below the target; raises a `_RefusedError` if it is not allowed."""
        text = name.replace("\\", "/")
        parts = [part for part in text.split("/") if part not in ("", ".")]
        if text.startswith("/") or re.match("[A-Za-z]:", text) or ".." in parts:
            raise _RefusedError(f"the name {name!r:.80} leads out of the archive")
        if any(ord(letter) < 32 for letter in text) or not (parts or folder):
            raise _RefusedError(f"{name!r:.80} is no name of a file")
        path = "/".join(parts)
        if len(self._files) + len(self._folders) > _MEMBERS:
            raise _RefusedError(f"more than {_MEMBERS:,} members")
        above = path if folder else path.rpartition("/")[0]
        while above not in self._folders:
            if above in self._files:
                raise _RefusedError(f"{above!r:.80} is a file and a folder")
            self._folders.add(above)
            above = above.rpartition("/")[0]
        if not folder:
            if path in self._files or path in self._folders:
                raise _RefusedError(f"the name {name!r:.80} occurs twice")
            self._files.add(path)
        return path


def _content(archive: Path) -> Iterator[tuple[str, IO[bytes] | None]]:
    """Yields names and streams (`None` for a folder); read a stream before taking the next item."""
    size = archive.stat().st_size
    lower = archive.name.lower()
    with archive.open("rb") as file:
        if lower.endswith(".zip"):
            yield from _zip_content(file, size)
            return
        stream: Any = file
        if lower.endswith("gz"):
            stream = gzip.GzipFile(fileobj=file)
        elif lower.endswith("xz"):
            stream = io.BufferedReader(_Xz(file), _PIECE)
        forward = _Forward(stream, size, file.seek if stream is file else None)
        for member, data in _members_with_data(forward):
            yield member.name, data


def _zip_content(file: IO[bytes], size: int) -> Iterator[tuple[str, IO[bytes] | None]]:
    budget = _Budget(size)
    with zipfile.ZipFile(file) as stored:
        for info in stored.infolist():
            kind = stat.S_IFMT(info.external_attr >> 16)
            name = info.orig_filename
            if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
                raise _RefusedError(f"{name!r:.80} is a link or a device")
            if info.flag_bits & 1:
                raise _RefusedError(f"{name!r:.80} is encrypted")
            if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
                raise _RefusedError(f"{name!r:.80} is compressed by method {info.compress_type}")
            if name.endswith("/"):
                yield name, None
            else:
                with stored.open(info) as data:
                    yield name, _Counted(data, budget)  # pyright: ignore[reportReturnType]


class _Budget:
    """Counts the bytes that are read from an archive, and refuses too many."""

    def __init__(self, size: int) -> None:
        self._bound = max(_SMALL, _RATIO * size)
        self._spent = 0

    def spend(self, number: int) -> None:
        self._spent += number
        if self._spent > self._bound:
            raise _RefusedError(f"its content is more than {_RATIO} times as large as it")


class _Counted:
    """A file whose bytes count against a budget."""

    def __init__(self, file: IO[bytes], budget: _Budget) -> None:
        self._file, self._budget = file, budget

    def read(self, number: int) -> bytes:
        data = self._file.read(number)
        self._budget.spend(len(data))
        return data


class _Forward:
    """The stream that `tarfile` reads: forward only, counted, and in bounded pieces.

    Without the bound, `tarfile` would read headers with long names at once, at whatever length they
    state.
    """

    def __init__(
        self, stream: IO[bytes], size: int, skip: Callable[[int], int] | None = None
    ) -> None:
        self._stream, self._skip, self._budget = stream, skip, _Budget(size)
        self._at = 0
        self.last = b""

    def tell(self) -> int:
        return self._at

    def read(self, number: int) -> bytes:
        if not 0 <= number <= _PIECE:
            raise _RefusedError(f"a header of {number:,} bytes")
        self.last = self._stream.read(number)
        self._at += len(self.last)
        self._budget.spend(len(self.last))
        return self.last

    def seek(self, position: int) -> int:
        if position < self._at:
            raise _RefusedError("a member before the end of another")
        if self._skip is not None:
            self._at = self._skip(position)
        while self._at < position:
            if not self.read(min(position - self._at, _PIECE)):
                raise EOFError("it is truncated")
        return self._at


def _members_with_data(
    stream: _Forward,
) -> Iterator[tuple[tarfile.TarInfo, IO[bytes] | None]]:
    for member in _members(stream):
        yield member, None if member.isdir() else _Limited(stream, member)  # pyright: ignore


def _members(stream: _Forward) -> Iterator[tarfile.TarInfo]:
    """Yields the files and folders of a tar; raises a `_RefusedError` for any other member."""
    with tarfile.open(fileobj=stream, mode="r:") as stored:  # pyright: ignore
        while (member := stored.next()) is not None:
            if not member.isdir() and (
                member.type not in (tarfile.REGTYPE, tarfile.AREGTYPE) or member.issparse()
            ):
                raise _RefusedError(f"{member.name!r:.80} is a link, a device or sparse")
            yield member
            # `tarfile` would keep a list of all members.
            stored.members = []  # pyright: ignore[reportAttributeAccessIssue]
    # `tarfile` takes a damaged header for the end, which is a block of zeros.
    if stream.last != bytes(tarfile.BLOCKSIZE):
        raise EOFError("it is truncated or damaged")


class _Limited:
    """A stream of the bytes of one member of a tar."""

    def __init__(self, stream: _Forward, member: tarfile.TarInfo) -> None:
        self._stream, self._left = stream, member.size

    def read(self, number: int) -> bytes:
        data = self._stream.read(min(number, self._left))
        if self._left and not data:
            raise EOFError("it is truncated")
        self._left -= len(data)
        return data


class _Xz(io.RawIOBase):
    """Decodes an .xz file of any number of streams, with a bound on the decoder's memory."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self._machine = self._new()

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while True:
            chunk = b""
            if self._machine.eof:
                chunk = self._machine.unused_data or self._file.read(_PIECE)
                if not chunk.strip(b"\0"):
                    return 0
                self._machine = self._new()
            elif self._machine.needs_input:
                chunk = self._file.read(_PIECE)
                if not chunk:
                    raise EOFError("it is truncated")
            data = self._machine.decompress(chunk, len(buffer))
            if data:
                buffer[: len(data)] = data
                return len(data)

    @staticmethod
    def _new() -> lzma.LZMADecompressor:
        return lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=_XZ_MEMORY)
