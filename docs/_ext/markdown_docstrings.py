"""This project's docstrings, Markdown with Google sections, as the reStructuredText that napoleon reads.

Code spans become literals (or links, where they may name something that has an entry), indented blocks
become code, tables become tables, and `Attributes:` become attributes that can be linked to.
"""

import itertools
import re
from collections.abc import Iterator

#: Headings whose indented text is not code.
_SECTION = re.compile(r"(Args|Attributes|Raises|Returns|Yields):$")
_CODE_SPAN = re.compile(r"(?<!`)`([^`]+)`(?!`)")
_LINKABLE = re.compile(r"(refseg_jax|input_pipeline|[A-Z]\w*)(\.\w+)*")
#: What is plain text in Markdown and markup in reStructuredText.
_MARKUP = re.compile(r"\\|\||(?<=\w)_(?!\w)")
_FIELD = re.compile(r"    (\w+(?:, \w+)*): (.*)")


def convert(text: str) -> Iterator[str]:
    """The lines of a docstring as reStructuredText with Google sections."""
    section, in_code = "", False
    for block in _blocks(text):
        if not block[0].startswith(" "):
            section = block[0] if _SECTION.match(block[0]) else ""
        was_in_code, in_code = in_code, block[0].startswith("    ") and not section
        if section == "Attributes:":
            yield from _attributes(block)
        elif in_code:
            yield from block if was_in_code else ("::", "", *block)
        elif block[0].startswith("|"):
            yield from _table(block)
        else:
            yield from _inline(block)
        yield ""


def _blocks(text: str) -> Iterator[list[str]]:
    """Lines without an empty one between them."""
    for filled, lines in itertools.groupby(text.splitlines(), key=lambda line: bool(line.strip())):
        if filled:
            yield list(lines)


def _inline(block: list[str]) -> list[str]:
    """Literals in the place of code spans, which may go over two lines."""
    pieces = _CODE_SPAN.split("\n".join(block))
    pieces[::2] = [_MARKUP.sub(r"\\\g<0>", text) for text in pieces[::2]]
    pieces[1::2] = [_literal(" ".join(code.split())) for code in pieces[1::2]]
    return "".join(pieces).split("\n")


def _literal(code: str) -> str:
    # A space that is not printed, since letters may follow: `Batch`es.
    return f":py:obj:`{code}`\\ " if _LINKABLE.fullmatch(code) else f"``{code}``\\ "


def _attributes(block: list[str]) -> Iterator[str]:
    """One directive for each `name: text` or `name, name: text`."""
    for line in block:
        if line == "Attributes:":
            continue
        if field := _FIELD.fullmatch(line):
            first, *others = field[1].split(", ")
            yield from ("", f".. attribute:: {first}")
            yield from (f"                {name}" for name in others)
            yield ""
            line = field[2]
        yield from (f"   {text}" for text in _inline([line.strip()]))


def _table(block: list[str]) -> Iterator[str]:
    yield from (".. list-table::", "   :header-rows: 1", "")
    for line in block:
        if set(line) <= set("|-: "):
            continue
        for column, cell in enumerate(line.strip("|").split("|")):
            yield f"   {' *'[not column]} - {''.join(_inline([cell.strip()]))}"
