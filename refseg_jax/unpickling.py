"""Reads pickles of unknown origin safely: the standard library's reader with fewer opcodes.

A pickle is a program that `pickle.load` runs, and it may call any function on the machine. A subclass
of `StrictUnpickler` lists the opcodes that may run and, in `find_class`, what the name of a global
becomes. Any other opcode or name is refused before it has an effect.

`load_pickle` reads plain data, which is all that the files of the RefCOCO family hold: dict, list,
tuple, str, bytes, int, float, bool and None. On request it also reads numpy's arrays of numbers, as
lists.
"""

import codecs
import io
import pickle
import pickletools
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from refseg_jax.errors import UserError, instead

#: Opcodes that make plain data. `GLOBAL` and `STACK_GLOBAL` are among them because `find_class`
#: decides about each name, so that the error can tell which name was refused.
PLAIN = """
    MARK STOP POP POP_MARK DUP FRAME PROTO MEMOIZE PUT BINPUT LONG_BINPUT GET BINGET LONG_BINGET
    NONE NEWTRUE NEWFALSE INT BININT BININT1 BININT2 LONG LONG1 LONG4 FLOAT BINFLOAT
    STRING BINSTRING SHORT_BINSTRING UNICODE BINUNICODE SHORT_BINUNICODE BINUNICODE8
    BINBYTES SHORT_BINBYTES BINBYTES8 EMPTY_LIST LIST APPEND APPENDS
    EMPTY_DICT DICT SETITEM SETITEMS EMPTY_TUPLE TUPLE TUPLE1 TUPLE2 TUPLE3
    GLOBAL STACK_GLOBAL REDUCE
"""

#: Most parts of a tuple that is the key of a dict, and most others of the same hash. By chance there are
#: none, except that -1 and -2 have the same hash.
_LONGEST_KEY, _ALIKE = 16, 64

_SCALARS = (str, bytes, int, float, bool, type(None))
_NAMES = {ord(opcode.code): opcode.name for opcode in pickletools.opcodes}


class PickleError(UserError, ValueError):
    """A pickle is missing, damaged, or asks for more than it may."""


class RefusedError(Exception):
    """The pickle asks for something that it may not have; the message says what."""


class _Opcodes(dict[int, Callable[..., None]]):
    """A dispatch table that refuses missing opcodes by name."""

    def __missing__(self, code: int) -> Callable[..., None]:
        known = _NAMES.get(code)
        if known is None:
            raise ValueError(f"byte 0x{code:02x} is no opcode")
        raise RefusedError(f"opcode {known} makes more than plain data")


def _load_setitem(reader: Any) -> None:
    value, key = reader.stack.pop(), reader.stack.pop()
    reader.stack[-1][reader.check_key(key)] = value


def _load_setitems(reader: Any) -> None:
    items = reader.pop_mark()
    for key, value in zip(items[::2], items[1::2], strict=True):
        reader.stack[-1][reader.check_key(key)] = value


def _load_dict(reader: Any) -> None:
    items = reader.pop_mark()
    pairs = zip(items[::2], items[1::2], strict=True)
    reader.append({reader.check_key(key): value for key, value in pairs})


_CHECKED = {
    pickle.SETITEM[0]: _load_setitem,
    pickle.SETITEMS[0]: _load_setitems,
    pickle.DICT[0]: _load_dict,
}


def opcodes(names: str) -> dict[int, Callable[..., None]]:
    """A `dispatch` table of the named opcodes (separated by blanks), with checked keys of dicts."""
    codes = {vars(pickle)[name][0] for name in names.split()}
    plain = {code: pickle._Unpickler.dispatch[code] for code in codes}
    return _Opcodes({**plain, **{code: _CHECKED[code] for code in codes & _CHECKED.keys()}})


class StrictUnpickler(pickle._Unpickler):
    """The standard library's reader written in Python, with fewer opcodes.

    The reader written in C is about four times as fast (1 s instead of 4 s for the refs of RefCOCO).
    But its opcodes cannot be removed, and a few bytes make it allocate memory without bound: the
    index of `LONG_BINPUT`, or the size of `BYTEARRAY8`.
    """

    dispatch: dict[int, Callable[..., None]] = opcodes(PLAIN)

    def __init__(
        self, source: bytes | BinaryIO, *, size: int | None = None, errors: str = "strict"
    ) -> None:
        """Prepares a reader.

        Args:
            source: the pickle, or a stream of it.
            size: number of bytes of a stream.
            errors: what to do about texts that are no UTF-8, a name of `codecs`.
        """
        stream = io.BytesIO(source) if isinstance(source, bytes) else source
        super().__init__(stream, encoding="utf-8", errors=errors)
        known = len(source) if isinstance(source, bytes) else size or 0
        # An array may be copied twice: from text to bytes, and from bytes to numbers.
        self._left = 2 * known
        # Hash -> the tuples of this hash that are keys of dicts.
        self._tuples: dict[int, list[tuple[Any, ...]]] = {}

    def check_key(self, key: Any) -> Any:
        """Returns a key of a dict if the dict cannot take forever.

        A dict compares a key with all others of the same hash. Integers beyond the modulus of Python's
        hash can be chosen to collide, and so can tuples of any integers. Nested tuples, which a pickle
        describes in a few bytes, take exponential time to hash, and a long one takes its time at every
        use, because tuples do not keep their hash. The hashes of texts and bytes are random.

        Raises:
            RefusedError: the key is such an integer, or a tuple that is long, has anything but scalars,
                or has the hash of more than `_ALIKE` other keys of the pickle.
        """
        parts = key if type(key) is tuple else (key,)
        if type(key) is tuple and not all(type(part) in _SCALARS for part in parts):
            raise RefusedError("it has a tuple of no scalars as the key of a dict")
        if len(parts) > _LONGEST_KEY:
            raise RefusedError(f"it has a tuple of {len(parts)} parts as the key of a dict")
        if any(type(part) is int and abs(part) >= sys.hash_info.modulus for part in parts):
            raise RefusedError("it has a number of more than 60 bits as the key of a dict")
        if type(key) is tuple:
            alike = self._tuples.setdefault(hash(key), [])
            if key not in alike:
                if len(alike) > _ALIKE:
                    raise RefusedError("it has many tuples of the same hash as keys of dicts")
                alike.append(key)
        return key

    def spend(self, number: int) -> None:
        """Counts copied bytes; there may not be more of them than twice those of the pickle.

        Raises:
            RefusedError: there are more, because many objects share a few bytes.
        """
        self._left -= number
        if self._left < 0:
            raise RefusedError("its arrays or bytes share their memory")

    def latin1_bytes(self, text: Any, encoding: Any) -> bytes:
        """Stands for `_codecs.encode`, by which protocols 0 to 2 write bytes.

        Raises:
            RefusedError: it is called with something else than Latin-1 text.
        """
        if type(text) is not str or encoding not in ("latin1", "latin-1"):
            raise RefusedError("it asks for '_codecs.encode' of something else than Latin-1 text")
        self.spend(len(text))
        return text.encode("latin-1")

    def find_class(self, module: str, name: str) -> Any:
        """Refuses every name.

        Raises:
            RefusedError: always; subclasses accept some names.
        """
        raise RefusedError(f"it asks for {f'{module}.{name}'[:80]!r}, which is no plain data")


def run(reader: StrictUnpickler, *, name: str, cure: str) -> Any:
    """Runs a reader and returns the object that the pickle describes.

    Args:
        reader: a reader that holds the bytes.
        name: the file, for the message.
        cure: what to do about a refused pickle, for the message.

    Raises:
        PickleError: the pickle is refused or damaged; one line with the file, the reason (with the
            name of a refused global) and the cure.
    """
    try:
        return reader.load()
    except RefusedError as refused:
        raise PickleError(f"{name}: refused, {refused}; {cure}") from None
    except Exception as error:  # Damaged bytes make the reader raise exceptions of any type.
        reason = " ".join(f"{type(error).__name__} {error}".split())[:120]
        raise PickleError(
            f"{name}: damaged or no pickle ({reason}); download or copy the file again"
        ) from None


_CURE = "use the original file, or write it again as dicts, lists, strings and numbers"


def load_pickle(path: str | Path, *, arrays: bool = False) -> Any:
    """The plain data of a pickle file of any protocol, of Python 2 or 3.

    Strings of Python 2 are decoded as UTF-8, and bytes that are not valid UTF-8 as Latin-1.

    Args:
        path: the file.
        arrays: also read numpy's arrays of numbers, as (nested) lists, and its scalars, as Python
            numbers.

    Returns:
        dict, list, tuple, str, bytes, int, float, bool and None, nested in any way.

    Raises:
        PickleError: the file is missing, damaged or refused; one line with the file, the reason (with
            the name of a refused global) and the cure.
    """
    try:
        data = Path(path).read_bytes()
    except OSError as error:
        raise PickleError(f"{path}: {error.strerror}; check the path") from None
    if what := instead(data):
        raise PickleError(f"{path}: {what}")
    return loads_pickle(data, name=str(path), arrays=arrays)


def loads_pickle(data: bytes, *, name: str, arrays: bool = False) -> Any:
    """Like `load_pickle`, for bytes in memory; messages call them `name`."""
    reader = _ArrayUnpickler if arrays else _PlainUnpickler
    return run(reader(data, errors="refseg_latin1"), name=name, cure=_CURE)


class _PlainUnpickler(StrictUnpickler):
    # INST and OBJ are here only so that the error names the class that they ask for.
    dispatch = opcodes(f"{PLAIN} INST OBJ")

    def find_class(self, module: str, name: str) -> Callable[..., bytes]:
        # In protocols 0 to 2, Python 3 writes bytes as a call of one of these functions.
        if (module, name) == ("_codecs", "encode"):
            return self.latin1_bytes
        if (module, name) in (("__builtin__", "bytes"), ("builtins", "bytes")):
            return _empty_bytes
        return super().find_class(module, name)


def _empty_bytes() -> bytes:
    return b""


def numbers_of(shape: Any, kind: Any, data: Any, *, fortran: bool) -> np.ndarray:
    """The array that a pickle describes, which shares the memory of `data` and is read-only.

    Raises:
        RefusedError: it is not an array of numbers, or has more than four axes.
    """
    if type(kind) is not Kind or type(data) is not bytes:
        raise RefusedError("it has an array of something else than numbers")
    if len(shape) > 4:
        raise RefusedError(f"it has an array of {len(shape)} axes")
    return np.frombuffer(data, kind.dtype()).reshape(shape, order="F" if fortran else "C")


class _Array(list[Any]):
    """Stands for an array until `fill` gets its numbers, which the pickle holds after it."""

    def fill(self, state: Any) -> None:
        _, shape, kind, fortran, data = state
        values = numbers_of(shape, kind, data, fortran=fortran)
        # An array without elements may still claim any number of rows: `tolist` would make them all.
        self[:] = np.atleast_1d(values).tolist() if values.size else []


class Kind:
    """Stands for a `numpy.dtype` of numbers."""

    def __init__(self, name: Any, *rest: Any) -> None:
        if type(name) is not str or not re.fullmatch("b1|[iu][1248]|f[248]", name):
            raise RefusedError(f"it has an array of {name!r:.40}, which are no numbers")
        self._name, self._order = name, "<"

    def fill(self, state: Any) -> None:
        """Takes the byte order, which the pickle holds after the name."""
        self._order = ">" if state[1] == ">" else "<"

    def dtype(self) -> np.dtype:
        """The type itself."""
        return np.dtype(self._order + self._name)


_NDARRAY = object()


def _array(kind: Any, *rest: Any) -> _Array:
    if kind is not _NDARRAY:
        raise RefusedError("it has an array of a class of its own")
    return _Array()


def scalar(kind: Any, data: Any) -> Any:
    """Stands for numpy's function of a scalar: the Python number."""
    (number,) = np.frombuffer(data, kind.dtype()).tolist()
    return number


class _ArrayUnpickler(_PlainUnpickler):
    """Also accepts the names that a pickled array asks for, without calling the functions of numpy."""

    def find_class(self, module: str, name: str) -> Any:
        known = {
            ("numpy", "ndarray"): _NDARRAY,
            ("numpy", "dtype"): Kind,
            ("numpy.core.multiarray", "_reconstruct"): _array,
            ("numpy.core.multiarray", "scalar"): scalar,
        }
        key = (module.replace("numpy._core", "numpy.core"), name)
        return known[key] if key in known else super().find_class(module, name)

    def _load_build(self) -> None:
        reader: Any = self
        state = reader.stack.pop()
        made = reader.stack[-1]
        if type(made) not in (_Array, Kind):
            raise RefusedError("opcode BUILD makes more than plain data")
        made.fill(state)
        if type(made) is _Array:
            reader.spend(len(state[-1]))

    dispatch = opcodes(f"{PLAIN} INST OBJ")
    dispatch[pickle.BUILD[0]] = _load_build


def _as_latin1(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeDecodeError):
        raise error
    return error.object[error.start : error.end].decode("latin-1"), error.end


codecs.register_error("refseg_latin1", _as_latin1)
