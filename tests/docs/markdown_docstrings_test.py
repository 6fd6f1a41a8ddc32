"""What the documentation makes of docstrings."""

import importlib.util
from collections.abc import Callable, Iterator

import pytest

from tests.docs.pages import ROOT


@pytest.fixture(scope="module")
def convert() -> Callable[[str], Iterator[str]]:
    path = ROOT / "docs/_ext/markdown_docstrings.py"
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.convert


@pytest.mark.parametrize(
    ("markdown", "rest"),
    [
        ("Reads `a|b` or `*`.", "Reads ``a|b``\\  or ``*``\\ .\n"),
        # Over two lines, and a name that may have an entry.
        (
            "Of `[B, N,\nK]`, see `Batch.image`.",
            "Of ``[B, N, K]``\\ , see :py:obj:`Batch.image`\\ .\n",
        ),
        ("Mean of |a - b| for x_ and a\\b.", "Mean of \\|a - b\\| for x\\_ and a\\\\b.\n"),
        ("Text:\n\n    a  b\n\n    `c`\n\nMore.", "Text:\n\n::\n\n    a  b\n\n    `c`\n\nMore.\n"),
        (
            "Args:\n    a: one `x`.\n\n    b: two.",
            "Args:\n    a: one ``x``\\ .\n\n    b: two.\n",
        ),
        (
            "Attributes:\n    a, b: of `x`\n        and y.\n    c: z.",
            "\n.. attribute:: a\n                b\n\n   of ``x``\\ \n   and y.\n"
            "\n.. attribute:: c\n\n   z.\n",
        ),
        (
            "| a | `b` |\n|---|---|\n| c | d |",
            ".. list-table::\n   :header-rows: 1\n\n   * - a\n     - ``b``\\ \n   * - c\n     - d\n",
        ),
    ],
)
def test_markdown_becomes_what_napoleon_reads(
    convert: Callable[[str], Iterator[str]], markdown: str, rest: str
) -> None:
    assert "\n".join(convert(markdown)) == rest
