"""The standard library's pickle reader with opcodes taken away, for files of unknown origin.

A pickle is a program: the one that `pickle.load` runs may call any function of the machine. A
subclass of `StrictUnpickler` says which opcodes run and, in `find_class`, what a global's name
becomes; everything else is refused before anything of it runs.
"""

import io
import pickle
import pickletools
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


def opcodes(names: str) -> dict[int, Callable[..., None]]:
    """A `dispatch` table of the named opcodes."""
    codes = (vars(pickle)[name][0] for name in names.split())
    return _Opcodes({code: pickle._Unpickler.dispatch[code] for code in codes})


class StrictUnpickler(pickle._Unpickler):
    """The standard library's reader in Python, with fewer opcodes.

    The one in C is about four times faster (1 against 4 s for the refs of RefCOCO), but its opcodes
    cannot be taken away, and a few bytes make it allocate and touch memory without bound:
    `LONG_BINPUT` by its index, `BYTEARRAY8` by its size.
    """

    dispatch = opcodes(PLAIN)

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
