"""Reads README.md, the pages of the site, docstrings and the notebook for tests."""

import ast
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted(
    path.relative_to(ROOT).as_posix() for path in [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")]
)
#: Python files whose docstrings have command lines.
SOURCES = [
    "main.py",
    *sorted(
        path.relative_to(ROOT).as_posix()
        for folder in ("configs", "input_pipeline", "refseg_jax", "tools")
        for path in ROOT.glob(f"{folder}/**/*.py")
    ),
]
NOTEBOOKS = sorted(path.relative_to(ROOT).as_posix() for path in ROOT.glob("notebooks/*.ipynb"))

_FENCE = re.compile(r"( *)(`{3,})(.*)")
_NOT_RUN = re.compile(r"<!-- *not run(?P<reason>.*)-->")
_COMMENT = re.compile(r"<!--.*?-->", re.DOTALL)


class Block(NamedTuple):
    """A fenced block of a page.

    Attributes:
        place: `page:line` of its first line, for messages.
        line: number of its first line.
        language: first word of the fence, or `""`.
        text: content of the block.
        not_run: reason in a comment `<!-- not run: REASON -->` above the fence; `""` if the comment has
            no reason, `None` without such a comment.
    """

    place: str
    line: int
    language: str
    text: str
    not_run: str | None


def blocks(page: str) -> Iterator[Block]:
    """The fenced blocks of a page, in order."""
    lines = (ROOT / page).read_text().splitlines()
    number = 0
    while number < len(lines):
        opening = _FENCE.fullmatch(lines[number])
        if opening is None:
            number += 1
            continue
        start = number + 1
        end = next(
            (n for n in range(start, len(lines)) if lines[n].strip() == opening[2]), len(lines)
        )
        indent = len(opening[1])
        yield Block(
            f"{page}:{start + 1}",
            start + 1,
            (opening[3].split() or [""])[0],
            "".join(f"{line[indent:]}\n" for line in lines[start:end]),
            _reason(lines[number - 1] if number else ""),
        )
        number = end + 1


def _reason(line: str) -> str | None:
    found = _NOT_RUN.search(line)
    return None if found is None else found["reason"].strip(" :")


def prose(page: str) -> str:
    """A page without its fenced blocks and comments; lines keep their numbers."""
    lines = (ROOT / page).read_text().splitlines()
    for block in blocks(page):
        for number in range(block.line - 2, block.line + block.text.count("\n")):
            lines[number] = ""
    return _COMMENT.sub(lambda comment: "\n" * comment[0].count("\n"), "\n".join(lines))


def docstrings(source: str) -> Iterator[str]:
    """All docstrings of a Python file."""
    for node in ast.walk(ast.parse((ROOT / source).read_text())):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef):
            yield ast.get_docstring(node) or ""


def cells(notebook: str) -> Iterator[str]:
    """The code cells of a notebook."""
    for cell in json.loads((ROOT / notebook).read_text())["cells"]:
        if cell["cell_type"] == "code":
            yield "".join(cell["source"])
