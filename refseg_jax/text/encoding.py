"""Decodes the text files of users: UTF-8, with or without a byte order mark, and lists of texts."""

import json
import re
from typing import Any

from refseg_jax.errors import instead

#: Bytes at the beginning of a file -> the encoding that they are the mark of, longer marks first.
_MARKS = {
    b"\xff\xfe\0\0": "UTF-32",
    b"\0\0\xfe\xff": "UTF-32",
    b"\xff\xfe": "UTF-16",
    b"\xfe\xff": "UTF-16",
}
_BOM = b"\xef\xbb\xbf"
#: Beginning of a compressed file -> the program that compressed it.
_COMPRESSED = {
    b"\x1f\x8b": "gzip",
    b"PK\x03\x04": "zip",
    b"BZh": "bzip2",
    b"\xfd7zXZ\0": "xz",
    b"\x28\xb5\x2f\xfd": "zstd",
}
_CURE = "save it as UTF-8"


class EncodingError(ValueError):
    """A text is not UTF-8; the message has the reason and the cure."""


def decoded(data: bytes) -> str:
    """The text of bytes; a byte order mark before it is left out.

    Programs on Windows begin files by one, so that it may stand before any line of files that were
    joined.

    Raises:
        EncodingError: the bytes are not UTF-8.
    """
    check_start(data)
    try:
        return data.removeprefix(_BOM).decode("utf-8")
    except UnicodeDecodeError as error:
        raise EncodingError(f"is not UTF-8 ({error.reason}); {_CURE}") from None


def lines_of_any(data: bytes) -> list[str]:
    """The lines of a text in any encoding of Unicode; UTF-16 and UTF-32 begin with a byte order mark.

    Lines end as on Unix, Windows or old Macs. (`str.splitlines` splits at more characters, which a text
    may have.)

    Raises:
        EncodingError: the bytes are of no such encoding, or the text is JSON or RTF.
    """
    for mark, name in _MARKS.items():
        if data.startswith(mark):
            try:
                text = data.decode(name)
            except UnicodeDecodeError as error:
                raise EncodingError(f"is damaged {name} ({error.reason}); {_CURE}") from None
            break
    else:
        text = decoded(data)
    lines = [line.removeprefix("\ufeff") for line in re.split("\r\n|\r|\n", text)]
    if what := _of_a_program(text, lines[0]):
        raise EncodingError(f"is {what}, no list of texts; write one text a line")
    # What follows the last line end is no line.
    return lines if lines[-1] else lines[:-1]


def _of_a_program(text: str, first: str) -> str:
    """The form of a text that is written for programs: JSON, lines of it, or RTF; else `""`."""
    start = text.lstrip()[:5]
    if start == r"{\rtf":
        return "RTF"
    for part in (first, text) if start[:1] in ("{", "[") else ():
        try:
            json.loads(part)
        except (ValueError, RecursionError):
            continue
        return "JSON"
    return ""


def json_of(line: bytes) -> Any:
    """The JSON of a line.

    Raises:
        EncodingError: the line is not UTF-8.
        ValueError: it is no JSON, or states a field twice, of which Python would take the last.
        RecursionError: it is nested too deeply.
    """
    # Without the line end: a truncated JSON would otherwise seem to end on the next line.
    return json.loads(decoded(line).rstrip(), object_pairs_hook=_unique)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) < len(pairs):
        for name, value in pairs:
            if made[name] != value:
                raise ValueError(f"the field {name!r:.40} stands there twice")
    return made


def is_blank(line: bytes) -> bool:
    """Whether a line has nothing but white space and byte order marks."""
    return not line.removeprefix(_BOM).strip()


def check_start(data: bytes) -> None:
    """Checks that the beginning of a text is not UTF-16 or UTF-32, which PowerShell and Excel write.

    Raises:
        EncodingError: it is, or the file is compressed, a Git LFS pointer or a web page.
    """
    if what := instead(data):
        raise EncodingError(what)
    for mark, name in _COMPRESSED.items():
        if data.startswith(mark):
            raise EncodingError(f"is compressed by {name}; unpack it")
    for mark, name in _MARKS.items():
        if data.startswith(mark):
            raise EncodingError(f"is {name}, not UTF-8; {_CURE}")
    # Without a mark, zero bytes tell: neither JSON nor lists of names have any.
    if b"\0" in data[:16]:
        raise EncodingError(f"is UTF-16 or no text, not UTF-8; {_CURE}")
