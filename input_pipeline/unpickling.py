"""Reads pickles that hold plain data, and refuses every other one before anything of it runs.

A pickle is a program: the one that `pickle.load` runs may call any function of the machine. The
files of the RefCOCO family are pickles, so this reader knows only the opcodes that make dict, list,
tuple, str, bytes, int, float, bool and None, and looks no function up.
"""

import codecs
import io
import pickle
import pickletools
from collections.abc import Callable
from pathlib import Path
from typing import Any

from refseg_jax.errors import UserError

#: Opcodes that make plain data. `GLOBAL` and its like are here only to be refused by their name.
_OPCODES = """
    MARK STOP POP POP_MARK DUP FRAME PROTO MEMOIZE PUT BINPUT LONG_BINPUT GET BINGET LONG_BINGET
    NONE NEWTRUE NEWFALSE INT BININT BININT1 BININT2 LONG LONG1 LONG4 FLOAT BINFLOAT
    STRING BINSTRING SHORT_BINSTRING UNICODE BINUNICODE SHORT_BINUNICODE BINUNICODE8
    BINBYTES SHORT_BINBYTES BINBYTES8 EMPTY_LIST LIST APPEND APPENDS
    EMPTY_DICT DICT SETITEM SETITEMS EMPTY_TUPLE TUPLE TUPLE1 TUPLE2 TUPLE3
    GLOBAL STACK_GLOBAL INST OBJ REDUCE
"""

_NAMES = {ord(opcode.code): opcode.name for opcode in pickletools.opcodes}

_CURE = "use the original file, or write it again as dicts, lists, strings and numbers"


class PickleError(UserError, ValueError):
    """A pickle that is not plain data, or is damaged, or is not there."""


def load_pickle(path: str | Path) -> Any:
    """The plain data of a pickle file of any protocol, of Python 2 or 3.

    Strings of Python 2 are read as UTF-8; bytes that are no UTF-8 are read as Latin-1.

    Args:
        path: the file.

    Returns:
        dict, list, tuple, str, bytes, int, float, bool, None, in any nesting.

    Raises:
        PickleError: one line with the file, the reason (the name of a refused global) and the cure.
    """
    try:
        data = Path(path).read_bytes()
    except OSError as error:
        raise PickleError(f"{path}: {error.strerror}; check the path") from None
    return loads_pickle(data, name=str(path))


def loads_pickle(data: bytes, *, name: str) -> Any:
    """As `load_pickle`, of bytes at hand; `name` stands in the messages."""
    try:
        return _PlainUnpickler(data).load()
    except _RefusedError as refused:
        raise PickleError(f"{name}: refused, {refused}; {_CURE}") from None
    except Exception as error:  # Damaged bytes make the reader fail in any way there is.
        reason = " ".join(f"{type(error).__name__} {error}".split())[:120]
        raise PickleError(
            f"{name}: damaged or no pickle ({reason}); download or copy the file again"
        ) from None


class _RefusedError(Exception):
    """What the pickle asks for and does not get."""


class _Opcodes(dict[int, Callable[..., None]]):
    """The reader's table: an opcode that is not in it is refused by its name."""

    def __missing__(self, code: int) -> Callable[..., None]:
        known = _NAMES.get(code)
        if known is None:
            raise ValueError(f"byte 0x{code:02x} is no opcode")
        raise _RefusedError(f"opcode {known} makes more than plain data")


class _PlainUnpickler(pickle._Unpickler):
    """The standard library's reader in Python, with fewer opcodes.

    The one in C is about four times faster (1 against 4 s for the refs of RefCOCO), but its opcodes
    cannot be taken away, and a few bytes make it allocate and touch memory without bound:
    `LONG_BINPUT` by its index, `BYTEARRAY8` by its size.
    """

    dispatch = _Opcodes(
        {
            code: pickle._Unpickler.dispatch[code]
            for code in (vars(pickle)[n][0] for n in _OPCODES.split())
        }
    )

    def __init__(self, data: bytes) -> None:
        super().__init__(io.BytesIO(data), encoding="utf-8", errors="refseg_latin1")

    def find_class(self, module: str, name: str) -> Callable[..., bytes]:
        # Python 3 writes bytes like this for the protocols 0 to 2.
        if (module, name) == ("_codecs", "encode"):
            return _latin1_bytes
        if (module, name) in (("__builtin__", "bytes"), ("builtins", "bytes")):
            return _empty_bytes
        raise _RefusedError(f"it asks for {f'{module}.{name}'[:80]!r}, which is no plain data")


def _latin1_bytes(text: str, encoding: str) -> bytes:
    if type(text) is not str or encoding not in ("latin1", "latin-1"):
        raise _RefusedError("it asks for '_codecs.encode' of something else than Latin-1 text")
    return text.encode("latin-1")


def _empty_bytes() -> bytes:
    return b""


def _as_latin1(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeDecodeError):
        raise error
    return error.object[error.start : error.end].decode("latin-1"), error.end


codecs.register_error("refseg_latin1", _as_latin1)
