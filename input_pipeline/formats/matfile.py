"""Reads MAT-files (MATLAB 5 to 7) of plain data: numbers, texts, structs and cells.

It replaces scipy's reader, which allocates the sizes that a file states before it has read as many
bytes. Here no array can be larger than its data. What a file becomes is counted while it is read, and
bounded: its decompressed bytes, numbers that take more room than they are stored in, texts, and the
objects themselves.

Source: MATLAB's "MAT-File Format" (Level 5).
"""

import math
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np

from refseg_jax.errors import UserError
from refseg_jax.images.files import read_file

#: Most bytes of memory that a file may take; the masks of one image of PASCAL-Part take up to 150 MB.
_LARGEST = 1 << 29
#: Bytes of memory of an array, a struct or a cell besides its content, and of a field of a struct.
_OBJECT, _FIELD = 256, 128
#: Deepest nesting of structs and cells, and most axes of an array.
_DEEPEST, _AXES = 32, 8

#: Bytes that are decompressed at a time. zlib makes at most 1032 times as many of them.
_PIECE = 1 << 10

_COMPRESSED, _MATRIX = 15, 14
#: Types of stored numbers.
_STORED = {
    1: "i1",
    2: "u1",
    3: "i2",
    4: "u2",
    5: "i4",
    6: "u4",
    7: "f4",
    9: "f8",
    12: "i8",
    13: "u8",
}
#: Types of stored texts, beside integers.
_ENCODED = {16: "utf-8", 17: "utf-16", 18: "utf-32"}
_CELL, _STRUCT, _CHAR = 1, 2, 4
#: Classes of numeric arrays.
_NUMERIC = {
    6: "f8",
    7: "f4",
    8: "i1",
    9: "u1",
    10: "i2",
    11: "u2",
    12: "i4",
    13: "u4",
    14: "i8",
    15: "u8",
}
_NO_PLAIN = {3: "an object", 5: "a sparse array", 16: "a function", 17: "an object"}


class MatError(UserError):
    """A MAT-file cannot be read."""


def load_mat(path: Path) -> dict[str, Any]:
    """Reads the variables of a file.

    Args:
        path: a MAT-file of version 5 to 7 (7.3 is HDF5).

    Returns:
        Variables by name. Numeric arrays are numpy arrays with their shape, texts are `str` (in stored,
        column-major order), structs are lists of dicts and cells are lists, both in MATLAB's order (the
        first index runs fastest).

    Raises:
        MatError: one line with the file, the reason and the cure.
    """
    try:
        data = read_file(path)
    except OSError as error:
        raise MatError(f"{path}: {error.strerror}; check the path") from None
    try:
        return _variables(data, _Room(_LARGEST))
    except (_DamageError, struct.error, zlib.error, ValueError, IndexError, OverflowError) as error:
        raise MatError(f"{path}: no MAT-file of plain data ({error}); download it again") from None


class _DamageError(Exception):
    """The reason why a file cannot be read."""


class _Room:
    """Counts the memory that a file takes."""

    def __init__(self, left: int) -> None:
        self.left = left

    def take(self, size: int) -> None:
        """Takes bytes of memory, before they are used; raises a `_DamageError` if there are no more."""
        self.left -= size
        if self.left < 0:
            raise _DamageError(f"its content takes more than {_LARGEST:,} bytes")


def _variables(data: bytes, room: _Room) -> dict[str, Any]:
    if data[:4] == b"\x89HDF" or (data[126:128] == b"IM" and data[125:126] == b"\2"):
        raise _DamageError("version 7.3")
    order = {b"IM": "<", b"MI": ">"}.get(data[126:128])
    if order is None:
        raise _DamageError("it does not begin like one")
    variables: dict[str, Any] = {}
    reader = _Reader(memoryview(data)[128:], order, room)
    while not reader.ended():
        kind, body = reader.element()
        if kind == _COMPRESSED:
            whole = memoryview(_decompressed(body, room))
            kind, body = _Reader(whole, order, room).element()
        if kind != _MATRIX:
            raise _DamageError(f"a variable of the type {kind}")
        name, value = _matrix(body, order, room, 0)
        variables[name] = value
    return variables


def _decompressed(body: memoryview, room: _Room) -> bytearray:
    machine, whole = zlib.decompressobj(), bytearray()
    for start in range(0, len(body), _PIECE):
        piece = machine.decompress(body[start : start + _PIECE])
        room.take(len(piece))
        whole += piece
        # The checksum stands at the end of the stream, and was right then.
        if machine.eof:
            return whole
    raise _DamageError("a compressed variable is truncated")


class _Reader:
    """Reads elements, each a tag and bytes, in order."""

    def __init__(self, data: memoryview, order: str, room: _Room) -> None:
        self._data, self._order, self.room = data, order, room

    def ended(self) -> bool:
        return not self._data

    def left(self) -> int:
        return len(self._data)

    def element(self) -> tuple[int, memoryview]:
        """Type and bytes of the next element."""
        first, size = struct.unpack_from(f"{self._order}II", self._data)
        start, stop = 8, 8 + size
        if first >> 16:  # A small element: 16 bits of size, 16 of type, 4 bytes of data.
            first, size = first & 0xFFFF, first >> 16
            start, stop = 4, 4 + size
            if size > 4:
                raise _DamageError("a small element of more than 4 bytes")
        if stop > len(self._data):
            raise _DamageError("it is truncated")
        body = self._data[start:stop]
        padded = stop if first == _COMPRESSED else -(-stop // 8) * 8
        self._data = self._data[padded:]
        return first, body

    def numbers(self) -> np.ndarray:
        kind, body = self.element()
        if kind not in _STORED:
            raise _DamageError(f"numbers of the type {kind}")
        return np.frombuffer(body, np.dtype(self._order + _STORED[kind]))

    def text(self) -> str:
        kind, body = self.element()
        # Python takes up to 4 bytes a character.
        self.room.take(4 * len(body))
        if kind in _ENCODED:
            return bytes(body).decode(_ENCODED[kind] + self._suffix(kind))
        if kind in (1, 2):
            return bytes(body).decode("latin-1")
        if kind == 4:
            return bytes(body).decode("utf-16" + self._suffix(17))
        raise _DamageError(f"a text of the type {kind}")

    def _suffix(self, kind: int) -> str:
        return "" if kind == 16 else {"<": "-le", ">": "-be"}[self._order]


def _matrix(body: memoryview, order: str, room: _Room, depth: int) -> tuple[str, Any]:
    """Name and value of an array."""
    room.take(_OBJECT)
    if not body:
        return "", np.zeros((0, 0))
    if depth > _DEEPEST:
        raise _DamageError("structs within structs without end")
    reader = _Reader(body, order, room)
    flags = int(reader.numbers()[0])
    kind, complex_ = flags & 0xFF, flags & 0x800
    sizes = reader.numbers()
    if len(sizes) > _AXES or min(sizes, default=0) < 0:
        raise _DamageError(f"an array of the shape {sizes[:_AXES].tolist()}")
    shape = tuple(int(size) for size in sizes)
    name = reader.text()
    count = math.prod(shape)
    if kind == _CHAR:
        return name, reader.text() if count else ""
    if kind in _NUMERIC and not complex_:
        values = reader.numbers()
        if len(values) != count:
            raise _DamageError(f"{len(values)} numbers for the shape {shape}")
        wanted = np.dtype(_NUMERIC[kind])
        # Files store numbers in the smallest type that holds them.
        if values.dtype != wanted:
            room.take(count * wanted.itemsize)
            values = values.astype(wanted)
        return name, values.reshape(shape, order="F")
    if kind == _CELL:
        return name, [_member(reader, order, depth) for _ in range(_checked(count, reader))]
    if kind == _STRUCT:
        return name, _struct(reader, order, depth, count)
    raise _DamageError(_NO_PLAIN.get(kind, "complex numbers" if complex_ else f"class {kind}"))


def _struct(reader: _Reader, order: str, depth: int, count: int) -> list[dict[str, Any]]:
    (length,) = reader.numbers()
    _, packed = reader.element()
    step = int(length)
    if step < 1:
        raise _DamageError("a struct without names")
    number = -(-len(packed) // step)
    reader.room.take(number * (_FIELD + step))
    names = [
        bytes(packed[i : i + step]).split(b"\0")[0].decode("latin-1")
        for i in range(0, len(packed), step)
    ]
    reader.room.take(_checked(count * max(number, 1), reader) * _FIELD)
    return [{name: _member(reader, order, depth) for name in names} for _ in range(count)]


def _checked(count: int, reader: _Reader) -> int:
    """Returns the count if the remaining bytes have room for it (8 bytes an element at least)."""
    if 8 * count > reader.left():
        raise _DamageError(f"{count} elements in {reader.left()} bytes")
    return count


def _member(reader: _Reader, order: str, depth: int) -> Any:
    kind, body = reader.element()
    if kind != _MATRIX:
        raise _DamageError(f"a member of the type {kind}")
    return _matrix(body, order, reader.room, depth + 1)[1]
