"""The table of questions on docs/scenes.md."""

import re

from input_pipeline.datasets.scenes.config import ScenesConfig
from refseg_jax.batch import ABSENCES
from tools import scenes_page


def test_each_wording_matches_as_often_as_not():
    counts = scenes_page.count(ScenesConfig(val=60), "val")
    assert {form for form, _ in counts} == set(ABSENCES)
    assert all(yes == no > 0 for yes, no in counts.values())


def test_rare_wordings_share_a_row():
    counts = {("kind", "the KIND"): (20, 20), ("kind", "a"): (2, 2), ("kind", "b"): (1, 1)}
    assert scenes_page.table(counts, least=30).splitlines()[2:5] == [
        "| kind | the KIND | 20 | 20 |",
        "| kind | other wordings | 3 | 3 |",
        "| **kind** | **all** | **23** | **23** |",
    ]


def test_only_the_table_of_the_page_is_replaced():
    page = f"head\n{scenes_page.BEGIN}old\n{scenes_page.END}\ntail\n"
    made = scenes_page.replaced(page, "| a |\n")
    assert made == f"head\n{scenes_page.BEGIN}\n| a |\n\n{scenes_page.END}\ntail\n"
    assert scenes_page.replaced(made, "| a |\n") == made


def test_the_page_has_a_table_of_every_form_in_balance():
    text = scenes_page.PAGE.read_text()
    rows = re.findall(r"^\| \*\*(\w+)\*\* .*\*\*([\d,]+)\*\* \| \*\*([\d,]+)\*\* \|$", text, re.M)
    assert [form for form, _, _ in rows] == list(ABSENCES)
    assert all(yes == no for _, yes, no in rows)
