"""Reads pickles that hold plain data, and refuses every other one before anything of it runs.

The files of the RefCOCO family are pickles. This reader knows only the opcodes that make dict, list,
tuple, str, bytes, int, float, bool and None, and looks no function up (where asked for, also those of
numpy's arrays of numbers, which become lists); `refseg_jax.unpickling` has the machine.
"""

import codecs
import pickle
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from refseg_jax.unpickling import PLAIN, PickleError, RefusedError, StrictUnpickler, opcodes, run

_CURE = "use the original file, or write it again as dicts, lists, strings and numbers"


def load_pickle(path: str | Path, *, arrays: bool = False) -> Any:
    """The plain data of a pickle file of any protocol, of Python 2 or 3.

    Strings of Python 2 are read as UTF-8; bytes that are no UTF-8 are read as Latin-1.

    Args:
        path: the file.
        arrays: numpy's arrays of numbers are plain data, too, and become lists, its numbers Python's.

    Returns:
        dict, list, tuple, str, bytes, int, float, bool, None, in any nesting.

    Raises:
        PickleError: one line with the file, the reason (the name of a refused global) and the cure.
    """
    try:
        data = Path(path).read_bytes()
    except OSError as error:
        raise PickleError(f"{path}: {error.strerror}; check the path") from None
    return loads_pickle(data, name=str(path), arrays=arrays)


def loads_pickle(data: bytes, *, name: str, arrays: bool = False) -> Any:
    """As `load_pickle`, of bytes at hand; `name` stands in the messages."""
    reader = _ArrayUnpickler if arrays else _PlainUnpickler
    return run(reader(data, errors="refseg_latin1"), name=name, cure=_CURE)


class _PlainUnpickler(StrictUnpickler):
    # The last two are here only to be refused by the name that they ask for.
    dispatch = opcodes(f"{PLAIN} INST OBJ")

    def find_class(self, module: str, name: str) -> Callable[..., bytes]:
        # Python 3 writes bytes like this for the protocols 0 to 2.
        if (module, name) == ("_codecs", "encode"):
            return _latin1_bytes
        if (module, name) in (("__builtin__", "bytes"), ("builtins", "bytes")):
            return _empty_bytes
        return super().find_class(module, name)


def _latin1_bytes(text: str, encoding: str) -> bytes:
    if type(text) is not str or encoding not in ("latin1", "latin-1"):
        raise RefusedError("it asks for '_codecs.encode' of something else than Latin-1 text")
    return text.encode("latin-1")


def _empty_bytes() -> bytes:
    return b""


class _Array(list[Any]):
    """Stands for an array, whose numbers come after it."""

    def fill(self, state: Any) -> None:
        _, shape, kind, fortran, data = state
        if type(kind) is not _Kind or type(data) is not bytes:
            raise RefusedError("it has an array of something else than numbers")
        if len(shape) > 4:
            raise RefusedError(f"it has an array of {len(shape)} axes")
        values = np.frombuffer(data, kind.dtype()).reshape(shape, order="F" if fortran else "C")
        # An array without elements may still have any number of rows.
        self[:] = np.atleast_1d(values).tolist() if values.size else []


class _Kind:
    """Stands for numpy's type of a number."""

    def __init__(self, name: Any, *rest: Any) -> None:
        if type(name) is not str or not re.fullmatch("b1|[iu][1248]|f[248]", name):
            raise RefusedError(f"it has an array of {name!r:.40}, which are no numbers")
        self._name, self._order = name, "<"

    def fill(self, state: Any) -> None:
        self._order = ">" if state[1] == ">" else "<"

    def dtype(self) -> np.dtype:
        return np.dtype(self._order + self._name)


_NDARRAY = object()


def _array(kind: Any, *rest: Any) -> _Array:
    if kind is not _NDARRAY:
        raise RefusedError("it has an array of a class of its own")
    return _Array()


def _number(kind: Any, data: Any) -> Any:
    (number,) = np.frombuffer(data, kind.dtype()).tolist()
    return number


class _ArrayUnpickler(_PlainUnpickler):
    """Knows the names that a pickled array asks for; none of numpy's own functions is called."""

    def __init__(self, data: bytes, *, errors: str = "strict") -> None:
        super().__init__(data, errors=errors)
        self._left = len(data)

    def find_class(self, module: str, name: str) -> Any:
        known = {
            ("numpy", "ndarray"): _NDARRAY,
            ("numpy", "dtype"): _Kind,
            ("numpy.core.multiarray", "_reconstruct"): _array,
            ("numpy.core.multiarray", "scalar"): _number,
        }
        key = (module.replace("numpy._core", "numpy.core"), name)
        return known[key] if key in known else super().find_class(module, name)

    def _load_build(self) -> None:
        reader: Any = self
        state = reader.stack.pop()
        made = reader.stack[-1]
        if type(made) not in (_Array, _Kind):
            raise RefusedError("opcode BUILD makes more than plain data")
        made.fill(state)
        if type(made) is _Array:
            # Many arrays of the same few bytes would fill the memory.
            reader._left -= len(state[-1])
            if reader._left < 0:
                raise RefusedError("its arrays share their bytes")

    dispatch = opcodes(f"{PLAIN} INST OBJ")
    dispatch[pickle.BUILD[0]] = _load_build


def _as_latin1(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeDecodeError):
        raise error
    return error.object[error.start : error.end].decode("latin-1"), error.end


codecs.register_error("refseg_latin1", _as_latin1)
