import dataclasses
from collections.abc import Sequence

import pytest
import scipy.special

from tools.ablation_page import Cell, Scores, by_chance, difference, markdown
from tools.studies import Row, Study, Table
from tools.studies.rela import NO_TARGET, RELA
from tools.studies.study import by_pixels
from tools.studies.unilseg import UNILSEG_PARTS
from tools.studies.unires import GROUP_TOKENS


def test_a_cell_is_the_mean_and_its_standard_error():
    cell = Cell.of([0.5, 0.6, 0.7])
    assert cell.mean == pytest.approx(0.6)
    assert cell.error == pytest.approx(0.1 / 3**0.5)
    with pytest.raises(ValueError, match="needs two scores or more, there are 1"):
        Cell.of([0.5])


def test_a_difference_is_resolved_above_two_standard_errors():
    assert Cell(0.11, 0.05).resolved
    assert Cell(-0.11, 0.05).resolved
    assert not Cell(0.09, 0.05).resolved
    assert not Cell(0.0, 0.0).resolved, "both are 0 for every seed: nothing differs"


def test_other_trainings_scatter_apart_and_the_same_ones_together():
    scores, base = [0.52, 0.62, 0.72], [0.51, 0.60, 0.69]
    apart = difference(scores, base, paired=False)
    assert apart.mean == pytest.approx(0.02)
    assert apart.error == pytest.approx((0.01 / 3 + 0.0081 / 3) ** 0.5)
    paired = difference(scores, base, paired=True)
    assert paired.mean == pytest.approx(0.02)
    assert paired.error == pytest.approx(0.01 / 3**0.5), "of 0.01, 0.02 and 0.03"
    assert paired.resolved and not apart.resolved


@pytest.mark.parametrize("freedom", [1, 2, 3, 4, 5, 8, 9, 30])
def test_the_chance_of_two_standard_errors_is_students(freedom: int):
    assert by_chance(freedom) == pytest.approx(2 * scipy.special.stdtr(freedom, -2.0))


def _scores(*values: float) -> Scores:
    return [dict.fromkeys(GROUP_TOKENS.metrics, value) for value in values]


def _rows(text: str) -> list[list[str]]:
    """The cells of a page's tables, without their headers."""
    lines = [line for line in text.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines[2:]]


def _page(rows: Sequence[Row], scores: Sequence[Scores]) -> str:
    study = dataclasses.replace(GROUP_TOKENS, tables=(Table("group tokens", tuple(rows)),))
    return markdown(study, [scores], seeds=(0, 1, 2), steps=400, command="make it")


def test_the_table_marks_small_differences_and_the_page_how_it_was_made():
    rows = [Row(name, name) for name in ("both", "low only", "none")]
    scores = [_scores(0.59, 0.60, 0.61), _scores(0.58, 0.59, 0.60), _scores(0.49, 0.50, 0.51)]
    text = _page(rows, scores)
    assert "| group tokens | object/mIoU | part/mIoU | multi/mIoU | mIoU |" in text
    first, second, third = _rows(text)
    assert first[:2] == ["both", "60.00 ± 0.58"]
    assert second[:2] == ["low only", "59.00 ± 0.58 (≈)"]
    assert third[:2] == ["none", "50.00 ± 0.58 (-10.00)"]
    assert text.startswith("# Group tokens on and off, 400 steps\n")
    assert "over seeds 0, 1, 2." in text
    assert "\n```bash\nmake it\n```\n" in text


def test_rows_of_the_same_trainings_are_compared_seed_by_seed():
    scores = [_scores(0.4, 0.6, 0.8), _scores(0.41, 0.62, 0.83), _scores(0.41, 0.62, 0.83)]
    rows = [Row("head", "both"), Row("pixels", "both", by_pixels), Row("other", "none")]
    _, same, other = _rows(_page(rows, scores))
    assert same[1] == "62.00 ± 12.12 (+2.00)"
    assert other[1] == "62.00 ± 12.12 (≈)"


def test_a_single_seed_is_judged_by_the_noise_of_other_studies():
    study = dataclasses.replace(
        UNILSEG_PARTS, tables=(Table("parts", tuple(Row(n, n) for n in ("a", "b", "c"))),)
    )
    scores: list[Scores] = [[dict.fromkeys(study.metrics, value)] for value in (0.30, 0.345, 0.346)]
    text = markdown(study, [scores], seeds=(0,), steps=200, command="make it")
    assert [row[1] for row in _rows(text)] == ["30.00", "34.50 (≈)", "34.60 (+4.60)"]
    assert "of one training from seed 0." in text
    assert "at most 4.5 points" in text and "over seeds by 1.6 points" in text
    assert "±" not in text and "chance" not in text.lower()


def test_two_rows_of_zeros_differ_in_nothing():
    rows = [Row("both", "both"), Row("none", "none"), Row("again", "both")]
    _, *others = _rows(_page(rows, [_scores(0.0, 0.0, 0.0)] * 3))
    assert [row[1] for row in others] == ["0.00 ± 0.00 (≈)"] * 2


def test_the_page_tells_how_many_differences_there_are_and_what_chance_makes_of_them():
    text = _page([Row("both", "both"), Row("none", "none")], [_scores(0.1, 0.2, 0.3)] * 2)
    assert "about 0 of the page's 4 differences" in text
    assert "(Student's t: 0.12 for each of the 4 between different trainings)" in text
    text = _text_of_constants(RELA)
    assert "about 10 of the page's 68 differences" in text
    assert "0.12 for each of the 44 between different trainings, 0.18 for each of the 24 " in text
    assert "of the page's 20 differences" in _text_of_constants(NO_TARGET)
    deciders = dataclasses.replace(NO_TARGET, tables=NO_TARGET.tables[:2])
    text = _text_of_constants(deciders)
    assert "(Student's t: 0.18 for each of the 16 between rows of the same trainings)" in text
    assert "different trainings" not in text


def _text_of_constants(study: Study) -> str:
    some = dict.fromkeys(study.metrics, 0.5)
    scores = [[[some, some, some]] * len(table.rows) for table in study.tables]
    return markdown(study, scores, seeds=(0, 1, 2), steps=200, command="make it")
