"""Reads JSON files that are too large for memory, element by element."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from input_pipeline.building.conversion import SourceError
from refseg_jax.images.files import check_regular
from refseg_jax.text.encoding import EncodingError, check_start

#: Characters that are read at a time.
_CHUNK = 1 << 20
#: Most characters of one element; no annotation comes near it.
_LONGEST = 1 << 28

#: Characters that may follow a value.
_ENDS = frozenset(" \t\r\n,:]}")

_DECODER = json.JSONDecoder()


def elements(path: Path) -> Iterator[tuple[str, Any]]:
    """Yields the elements of a JSON file, in the file's order.

    If the file is an object (as COCO's files are), each element of each of its lists comes with the key
    of the list, and any other value with its own key. If it is a list, its elements come with the key
    `""`.

    Args:
        path: the file, UTF-8.

    Yields:
        Pairs (key, element).

    Raises:
        SourceError: the file is missing or damaged, or is neither a list nor an object.
    """
    try:
        check_regular(path)
        with path.open("rb") as start:
            check_start(start.read(16))
        with path.open(encoding="utf-8-sig") as file:
            yield from _Reader(file).elements()
    except EncodingError as error:
        raise SourceError(f"{path}: {error}") from None
    except FileNotFoundError:
        raise SourceError(f"{path}: not there; download it and put it there") from None
    except OSError as error:
        raise SourceError(f"{path}: {error.strerror}; it must be a JSON file") from None
    except (_JsonError, UnicodeDecodeError, RecursionError) as error:
        reason = " ".join(str(error).split())[:120]
        raise SourceError(f"{path}: damaged JSON ({reason}); download it again") from None


def words(text: str) -> str:
    """A text that can be stored: stripped, lone surrogates replaced.

    Raises:
        TypeError: `text` is not text.
    """
    if not isinstance(text, str):
        raise TypeError(f"{text!r:.40} is no text")
    return text.strip().encode("utf-8", "replace").decode("utf-8")


def integer(value: Any) -> int:
    """A whole number. Some programs write ids as texts (`"17"`), and sizes as `480.0`.

    Raises:
        ValueError: `value` is no whole number.
    """
    if type(value) is int:
        return value
    if isinstance(value, str) and re.fullmatch(r"-?\d+", value.strip(), re.ASCII):
        return int(value)
    if isinstance(value, float) and value.is_integer():
        return int(value)
    raise ValueError(f"{value!r:.40} is no whole number")


def packed(value: Any) -> bytes:
    """A value as compact JSON, which keeps plans small until their items are converted."""
    return json.dumps(value, separators=(",", ":")).encode()


class _JsonError(Exception):
    """The defect of a file, and its place."""


class _Reader:
    def __init__(self, file: IO[str]) -> None:
        self._file = file
        self._text = ""
        self._at = 0
        self._before = 0
        self._ended = False

    def elements(self) -> Iterator[tuple[str, Any]]:
        opening = self._next("[{")
        if opening == "[":
            yield from (("", element) for element in self._list())
        elif self._peek() == "}":
            self._next("}")
        else:
            yield from self._members()
        if self._peek(end=True):
            raise self._wrong("something follows the end")

    def _members(self) -> Iterator[tuple[str, Any]]:
        while True:
            if self._peek() != '"':
                raise self._wrong("no name of a field")
            key = self._value()
            self._next(":")
            if self._peek() == "[":
                self._next("[")
                yield from ((key, element) for element in self._list())
            else:
                yield key, self._value()
            if self._next(",}") == "}":
                return

    def _list(self) -> Iterator[Any]:
        if self._peek() == "]":
            self._next("]")
            return
        while True:
            yield self._value()
            if self._next(",]") == "]":
                return

    def _value(self) -> Any:
        self._peek()
        while True:
            try:
                value, end = _DECODER.raw_decode(self._text, self._at)
                # Only the next character shows where a number ends ("1" may go on as "1.5").
                if self._ended or self._text[end : end + 1] in _ENDS:
                    self._at = end
                    return value
            except json.JSONDecodeError as error:
                if self._ended:
                    raise self._wrong(error.msg) from None
            if len(self._text) - self._at > _LONGEST:
                raise self._wrong(f"an element of more than {_LONGEST:,} characters")
            self._more()

    def _next(self, allowed: str) -> str:
        letter = self._peek()
        if letter not in allowed:
            raise self._wrong(f"{letter!r} in the place of {' or '.join(map(repr, allowed))}")
        self._at += 1
        return letter

    def _peek(self, *, end: bool = False) -> str:
        """The next character that is not a blank, without taking it; `""` at an allowed end."""
        while True:
            while self._at < len(self._text):
                if self._text[self._at] not in " \t\r\n":
                    return self._text[self._at]
                self._at += 1
            if self._ended and end:
                return ""
            if self._ended:
                raise self._wrong("the end is missing")
            self._more()

    def _more(self) -> None:
        rest = self._text[self._at :]
        # Twice as much each time, so that a long element is parsed only a few times.
        chunk = self._file.read(max(_CHUNK, len(rest)))
        self._before += self._at
        self._text, self._at, self._ended = rest + chunk, 0, not chunk

    def _wrong(self, reason: str) -> _JsonError:
        return _JsonError(f"{reason}, at character {self._before + self._at:,}")
