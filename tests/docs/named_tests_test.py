"""The tests that pages name are there; a promise without its test is none."""

import re

import pytest

from tests.docs.pages import PAGES, ROOT

_SPAN = re.compile(r"`((?:\w+/)*\w+_test\.py)`")
#: Pages may leave these out.
_BELOW = ("", "tests", "tests/refseg_jax")


def _named(page: str) -> list[str]:
    return _SPAN.findall((ROOT / page).read_text())


@pytest.mark.parametrize("page", [page for page in PAGES if _named(page)])
def test_the_tests_that_a_page_names_are_there(page: str) -> None:
    gone = [
        name
        for name in _named(page)
        # `NAME_test.py` is for the reader to fill in.
        if "NAME" not in name and not any((ROOT / below / name).is_file() for below in _BELOW)
    ]
    assert not gone


def test_every_row_of_the_robustness_page_names_a_test() -> None:
    text = (ROOT / "docs/robustness.md").read_text()
    rows = [row for row in text.splitlines() if row.startswith("| ") and "promise" not in row]
    assert len(rows) > 30
    silent = [
        row for row in rows if not (re.search(r"_test\.py`|the same|/`", row.split(" | ")[-1]))
    ]
    assert not silent
