"""Reads MAT-files (MATLAB 5 to 7) of plain data: numbers, texts, structs and cells.

It replaces scipy's reader, which allocates the sizes that a file states before it has read as many
bytes. Here no array can be larger than its data, and decompressed bytes and arrays are bounded.

Source: MATLAB's "MAT-File Format" (Level 5).
"""

import math
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np

from refseg_jax.errors import UserError

#: Most bytes of all decompressed variables of a file together, and of one array.
_LARGEST = 1 << 29
#: Deepest nesting of structs and cells.
_DEEPEST = 32

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
        data = path.read_bytes()
    except OSError as error:
        raise MatError(f"{path}: {error.strerror}; check the path") from None
    try:
        return _variables(data)
    except (_DamageError, struct.error, zlib.error, ValueError, IndexError, OverflowError) as error:
        raise MatError(f"{path}: no MAT-file of plain data ({error}); download it again") from None


class _DamageError(Exception):
    """The reason why a file cannot be read."""


def _variables(data: bytes) -> dict[str, Any]:
    if data[:4] == b"\x89HDF" or (data[126:128] == b"IM" and data[125:126] == b"\2"):
        raise _DamageError("version 7.3")
    order = {b"IM": "<", b"MI": ">"}.get(data[126:128])
    if order is None:
        raise _DamageError("it does not begin like one")
    variables: dict[str, Any] = {}
    room = _LARGEST
    reader = _Reader(memoryview(data)[128:], order)
    while not reader.ended():
        kind, body = reader.element()
        if kind == _COMPRESSED:
            whole = _decompressed(body, room)
            room -= len(whole)
            kind, body = _Reader(memoryview(whole), order).element()
        if kind != _MATRIX:
            raise _DamageError(f"a variable of the type {kind}")
        name, value = _matrix(body, order, 0)
        variables[name] = value
    return variables


def _decompressed(body: memoryview, room: int) -> bytes:
    machine = zlib.decompressobj()
    # A maximal length of 0 would mean no limit.
    data = machine.decompress(body, max(room, 1))
    if not machine.eof:
        raise _DamageError("a compressed variable is truncated, or too large")
    return data


class _Reader:
    """Reads elements, each a tag and bytes, in order."""

    def __init__(self, data: memoryview, order: str) -> None:
        self._data, self._order = data, order

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
        if kind in _ENCODED:
            return bytes(body).decode(_ENCODED[kind] + self._suffix(kind))
        if kind in (1, 2):
            return bytes(body).decode("latin-1")
        if kind == 4:
            return bytes(body).decode("utf-16" + self._suffix(17))
        raise _DamageError(f"a text of the type {kind}")

    def _suffix(self, kind: int) -> str:
        return "" if kind == 16 else {"<": "-le", ">": "-be"}[self._order]


def _matrix(body: memoryview, order: str, depth: int) -> tuple[str, Any]:
    """Name and value of an array."""
    if not body:
        return "", np.zeros((0, 0))
    if depth > _DEEPEST:
        raise _DamageError("structs within structs without end")
    reader = _Reader(body, order)
    flags = int(reader.numbers()[0])
    kind, complex_ = flags & 0xFF, flags & 0x800
    shape = tuple(int(size) for size in reader.numbers())
    name = reader.text()
    count = math.prod(shape)
    if min(shape, default=0) < 0 or len(shape) > 8:
        raise _DamageError(f"an array of the shape {shape[:8]}")
    if kind == _CHAR:
        return name, reader.text() if count else ""
    if kind in _NUMERIC and not complex_:
        values = reader.numbers()
        if len(values) != count:
            raise _DamageError(f"{len(values)} numbers for the shape {shape}")
        if count * np.dtype(_NUMERIC[kind]).itemsize > _LARGEST:
            raise _DamageError(f"an array of the shape {shape} is too large")
        # Files store numbers in the smallest type that holds them.
        return name, values.astype(_NUMERIC[kind], copy=False).reshape(shape, order="F")
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
    names = [
        bytes(packed[i : i + step]).split(b"\0")[0].decode("latin-1")
        for i in range(0, len(packed), step)
    ]
    _checked(count * max(len(names), 1), reader)
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
    return _matrix(body, order, depth + 1)[1]
