"""Reads the members of untrusted archives as streams: zip and tar (plain, .gz, .xz).

It refuses links, devices, encryption, and bombs: archives whose content is more than 200 times their
size. Stated sizes are not trusted before their bytes are read.

Every checksum is compared: a compressed tar is read to its end, where gzip and xz have theirs, and so is
each member of a zip, whose directory must list as many members as it states.
"""

import gzip
import io
import lzma
import stat
import struct
import tarfile
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

#: Content of more than `_SMALL` bytes may be at most this many times as large as its archive.
_RATIO = 200
_SMALL = 64 << 20
#: Bytes that are read at a time; longer headers of a tar are refused.
_PIECE = 1 << 20
#: Most bytes of the end records of a zip: 22, a comment, and 76 of those of 64 bits.
_ZIP_END = 22 + 0xFFFF + 76
#: Memory of the xz decoder; the best compression of `xz` needs 65 MiB.
_XZ_MEMORY = 256 << 20


class RefusedArchiveError(Exception):
    """The reason why an archive is refused."""


def contents(archive: Path) -> Iterator[tuple[str, IO[bytes] | None]]:
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
        forward = Forward(stream, size, file.seek if stream is file else None)
        for member, data in _members_with_data(forward):
            yield member.name, data
        if stream is not file:
            forward.read_to_the_end()


def _zip_content(file: IO[bytes], size: int) -> Iterator[tuple[str, IO[bytes] | None]]:
    budget = _Budget(size)
    with zipfile.ZipFile(file) as stored:
        _check_number(file, size, len(stored.infolist()))
        for info in stored.infolist():
            kind = stat.S_IFMT(info.external_attr >> 16)
            name = info.orig_filename
            if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
                raise RefusedArchiveError(f"{name!r:.80} is a link or a device")
            if info.flag_bits & 1:
                raise RefusedArchiveError(f"{name!r:.80} is encrypted")
            if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
                raise RefusedArchiveError(
                    f"{name!r:.80} is compressed by method {info.compress_type}"
                )
            if name.endswith("/"):
                yield name, None
            else:
                with stored.open(info) as data:
                    yield name, _Counted(data, budget)  # pyright: ignore[reportReturnType]


def _check_number(file: IO[bytes], size: int, listed: int) -> None:
    """Compares the number of members in the directory of a zip with that in its end record.

    Source: PKWARE's APPNOTE, sections 4.3.14 (the record of 64 bits) and 4.3.16.
    """
    file.seek(max(0, size - _ZIP_END))
    end = file.read(_ZIP_END)
    at = end.rfind(b"PK\5\6")
    (stated,) = struct.unpack_from("<H", end, at + 10)
    long = end.rfind(b"PK\6\6", 0, at) if stated == 0xFFFF else -1
    if long >= 0:
        (stated,) = struct.unpack_from("<Q", end, long + 32)
    # Programs without 64 bits write the lower 16 bits of a larger number.
    elif stated == listed % 0x10000:
        return
    if stated != listed:
        raise zipfile.BadZipFile(f"its directory lists {listed} members and states {stated}")


class _Budget:
    """Counts the bytes that are read from an archive, and refuses too many."""

    def __init__(self, size: int) -> None:
        self._bound = max(_SMALL, _RATIO * size)
        self._spent = 0

    def spend(self, number: int) -> None:
        self._spent += number
        if self._spent > self._bound:
            raise RefusedArchiveError(f"its content is more than {_RATIO} times as large as it")


class _Counted:
    """A file whose bytes count against a budget."""

    def __init__(self, file: IO[bytes], budget: _Budget) -> None:
        self._file, self._budget = file, budget

    def read(self, number: int) -> bytes:
        data = self._file.read(number)
        self._budget.spend(len(data))
        return data


class Forward:
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
        """Number of bytes read or skipped."""
        return self._at

    def read(self, number: int) -> bytes:
        """Reads at most so many bytes; refuses more than a piece."""
        if not 0 <= number <= _PIECE:
            raise RefusedArchiveError(f"a header of {number:,} bytes")
        self.last = self._stream.read(number)
        self._at += len(self.last)
        self._budget.spend(len(self.last))
        return self.last

    def read_to_the_end(self) -> None:
        """Reads what is left: the checksum of a compressed stream is compared at its end."""
        for _ in self.pieces(_PIECE):
            pass

    def pieces(self, number: int) -> Iterator[bytes]:
        """Yields what is left, so many bytes at a time."""
        try:
            while data := self.read(number):
                yield data
        except gzip.BadGzipFile as error:
            # `gzip` ignores what follows the last stream, too.
            if "Not a gzipped file" not in str(error):
                raise

    def seek(self, position: int) -> int:
        """Skips bytes up to a position that lies ahead."""
        if position < self._at:
            raise RefusedArchiveError("a member before the end of another")
        if self._skip is not None:
            self._at = self._skip(position)
        while self._at < position:
            if not self.read(min(position - self._at, _PIECE)):
                raise EOFError("it is truncated")
        return self._at


def _members_with_data(
    stream: Forward,
) -> Iterator[tuple[tarfile.TarInfo, IO[bytes] | None]]:
    for member in headers(stream):
        yield member, None if member.isdir() else _Limited(stream, member)  # pyright: ignore


def headers(stream: Forward) -> Iterator[tarfile.TarInfo]:
    """Yields the files and folders of a tar; raises a `RefusedArchiveError` for any other member."""
    with tarfile.open(fileobj=stream, mode="r:") as stored:  # pyright: ignore
        while (member := stored.next()) is not None:
            if not member.isdir() and (
                member.type not in (tarfile.REGTYPE, tarfile.AREGTYPE) or member.issparse()
            ):
                raise RefusedArchiveError(f"{member.name!r:.80} is a link, a device or sparse")
            yield member
            # `tarfile` would keep a list of all members.
            stored.members = []  # pyright: ignore[reportAttributeAccessIssue]
    # `tarfile` takes a damaged header for the end, which is a block of zeros.
    if stream.last != bytes(tarfile.BLOCKSIZE):
        raise EOFError("it is truncated or damaged")
    _check_nothing_follows(stream)


def _check_nothing_follows(stream: Forward) -> None:
    """Refuses a second tar behind the end of the first, which `tarfile` does not read."""
    for block in stream.pieces(tarfile.BLOCKSIZE):
        if not block.strip(b"\0"):
            continue
        try:
            tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
        except tarfile.HeaderError:
            # Padding of a tape, which every reader passes over.
            return
        raise RefusedArchiveError(
            "a second tar follows behind its end, as `cat a.tar b.tar` writes it; give each as a file"
        )


class _Limited:
    """A stream of the bytes of one member of a tar."""

    def __init__(self, stream: Forward, member: tarfile.TarInfo) -> None:
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
