"""The standard library's pickle reader with opcodes taken away, for files of unknown origin.

A pickle is a program: the one that `pickle.load` runs may call any function of the machine. A
subclass of `StrictUnpickler` says which opcodes run and, in `find_class`, what a global's name
becomes; everything else is refused before anything of it runs.
"""

import io
import pickle
import pickletools
import sys
from collections.abc import Callable
from typing import Any

from refseg_jax.errors import UserError

#: Opcodes that make plain data. `GLOBAL` and its like look names up: `find_class` refuses by name.
PLAIN = """
    MARK STOP POP POP_MARK DUP FRAME PROTO MEMOIZE PUT BINPUT LONG_BINPUT GET BINGET LONG_BINGET
    NONE NEWTRUE NEWFALSE INT BININT BININT1 BININT2 LONG LONG1 LONG4 FLOAT BINFLOAT
    STRING BINSTRING SHORT_BINSTRING UNICODE BINUNICODE SHORT_BINUNICODE BINUNICODE8
    BINBYTES SHORT_BINBYTES BINBYTES8 EMPTY_LIST LIST APPEND APPENDS
    EMPTY_DICT DICT SETITEM SETITEMS EMPTY_TUPLE TUPLE TUPLE1 TUPLE2 TUPLE3
    GLOBAL STACK_GLOBAL REDUCE
"""

_SCALARS = (str, bytes, int, float, bool, type(None))
_NAMES = {ord(opcode.code): opcode.name for opcode in pickletools.opcodes}


class PickleError(UserError, ValueError):
    """A pickle that is not of the kind that is read, or is damaged, or is not there."""


class RefusedError(Exception):
    """What the pickle asks for and does not get."""


class _Opcodes(dict[int, Callable[..., None]]):
    """The reader's table: an opcode that is not in it is refused by its name."""

    def __missing__(self, code: int) -> Callable[..., None]:
        known = _NAMES.get(code)
        if known is None:
            raise ValueError(f"byte 0x{code:02x} is no opcode")
        raise RefusedError(f"opcode {known} makes more than plain data")


def check_key(key: Any) -> Any:
    """The key of a dict.

    The hash of tuples in tuples, which a pickle writes in a few bytes, takes for ever; numbers
    beyond Python's modulus may all have the same hash, and each is then compared with all others.

    Raises:
        RefusedError: it is a tuple of anything but scalars, or has a number beyond the modulus.
    """
    if type(key) is tuple and not all(type(part) in _SCALARS for part in key):
        raise RefusedError("it has a tuple of no scalars as the key of a dict")
    parts = key if type(key) is tuple else (key,)
    if any(type(part) is int and abs(part) >= sys.hash_info.modulus for part in parts):
        raise RefusedError("it has a number of more than 60 bits as the key of a dict")
    return key


def _load_setitem(reader: Any) -> None:
    value, key = reader.stack.pop(), reader.stack.pop()
    reader.stack[-1][check_key(key)] = value


def _load_setitems(reader: Any) -> None:
    items = reader.pop_mark()
    for key, value in zip(items[::2], items[1::2], strict=True):
        reader.stack[-1][check_key(key)] = value


def _load_dict(reader: Any) -> None:
    items = reader.pop_mark()
    pairs = zip(items[::2], items[1::2], strict=True)
    reader.append({check_key(key): value for key, value in pairs})


_CHECKED = {
    pickle.SETITEM[0]: _load_setitem,
    pickle.SETITEMS[0]: _load_setitems,
    pickle.DICT[0]: _load_dict,
}


def opcodes(names: str) -> dict[int, Callable[..., None]]:
    """A `dispatch` table of the named opcodes."""
    codes = {vars(pickle)[name][0] for name in names.split()}
    plain = {code: pickle._Unpickler.dispatch[code] for code in codes}
    return _Opcodes({**plain, **{code: _CHECKED[code] for code in codes & _CHECKED.keys()}})


class StrictUnpickler(pickle._Unpickler):
    """The standard library's reader in Python, with fewer opcodes.

    The one in C is about four times faster (1 against 4 s for the refs of RefCOCO), but its opcodes
    cannot be taken away, and a few bytes make it allocate and touch memory without bound:
    `LONG_BINPUT` by its index, `BYTEARRAY8` by its size.
    """

    dispatch: dict[int, Callable[..., None]] = opcodes(PLAIN)

    def __init__(self, data: bytes, *, errors: str = "strict") -> None:
        super().__init__(io.BytesIO(data), encoding="utf-8", errors=errors)

    def find_class(self, module: str, name: str) -> Any:
        """Refuses every name.

        Raises:
            RefusedError: always; subclasses know some names.
        """
        raise RefusedError(f"it asks for {f'{module}.{name}'[:80]!r}, which is no plain data")


def run(reader: StrictUnpickler, *, name: str, cure: str) -> Any:
    """What the pickle makes.

    Args:
        reader: with the bytes.
        name: of the file, for the message.
        cure: what to do about a pickle that is refused.

    Raises:
        PickleError: one line with the file, the reason (the name of a refused global) and the cure.
    """
    try:
        return reader.load()
    except RefusedError as refused:
        raise PickleError(f"{name}: refused, {refused}; {cure}") from None
    except Exception as error:  # Damaged bytes make the reader fail in any way there is.
        reason = " ".join(f"{type(error).__name__} {error}".split())[:120]
        raise PickleError(
            f"{name}: damaged or no pickle ({reason}); download or copy the file again"
        ) from None
