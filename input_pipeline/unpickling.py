"""Reads pickles that hold plain data, and refuses every other one before anything of it runs.

The files of the RefCOCO family are pickles. This reader knows only the opcodes that make dict, list,
tuple, str, bytes, int, float, bool and None, and looks no function up; `refseg_jax.unpickling` has
the machine.
"""

import codecs
from collections.abc import Callable
from pathlib import Path
from typing import Any

from refseg_jax.unpickling import PLAIN, PickleError, RefusedError, StrictUnpickler, opcodes, run

_CURE = "use the original file, or write it again as dicts, lists, strings and numbers"


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
    return run(_PlainUnpickler(data, errors="refseg_latin1"), name=name, cure=_CURE)


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


def _as_latin1(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeDecodeError):
        raise error
    return error.object[error.start : error.end].decode("latin-1"), error.end


codecs.register_error("refseg_latin1", _as_latin1)
