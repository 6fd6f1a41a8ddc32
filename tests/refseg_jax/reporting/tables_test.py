"""The table a person reads, and the summary a program reads."""

import json
from pathlib import Path

import pytest

from refseg_jax.evaluation.protocols import build_protocol, build_protocols
from refseg_jax.reporting import tables as report

COLUMNS = ("mIoU", "oIoU", "Pr@0.5", "Pr@0.7", "Pr@0.9")
SCORES = {
    "mIoU": 0.51234,
    "oIoU": 0.6,
    "Pr@0.5": 1.0,
    "Pr@0.7": 0.5,
    "Pr@0.9": 0.0,
    "count": 8.0,
    "part/mIoU": 0.25,
    "object/mIoU": 0.75,
    "shuffled/mIoU": 0.1,
    "oracle/object": 0.333,
}


def _rows(text: str) -> list[list[str]]:
    return [line.split() for line in text.splitlines()]


def test_the_table_has_a_row_for_every_granularity_in_order() -> None:
    assert _rows(report.table(SCORES, COLUMNS)) == [
        ["mIoU", "oIoU", "Pr@0.5", "Pr@0.7", "Pr@0.9"],
        ["object", "75.00", "-", "-", "-", "-"],
        ["part", "25.00", "-", "-", "-", "-"],
        ["all", "51.23", "60.00", "100.00", "50.00", "0.00"],
    ]


def test_forms_of_absence_have_rows_of_their_own() -> None:
    scores = {"N_acc": 0.5, "none/N_acc": 0.5, "none/attribute/N_acc": 0.25}
    text = report.table(scores, ("N_acc",))
    assert _rows(text)[1:] == [["none", "50.00"], ["none/attribute", "25.00"], ["all", "50.00"]]
    assert len({len(line) for line in text.splitlines()}) == 1


def test_columns_are_aligned() -> None:
    lines = report.table(SCORES, COLUMNS).splitlines()
    assert len({len(line) for line in lines}) == 1
    assert lines[0].index("oIoU") + 4 == lines[3].index("60.00") + 5


def test_a_prefix_chooses_its_own_scores() -> None:
    assert _rows(report.table(SCORES, COLUMNS, "shuffled/"))[1:] == [
        ["all", "10.00", "-", "-", "-", "-"]
    ]
    assert len(_rows(report.table({}, COLUMNS))) == 1


def _parts(scores: dict[str, float], prefixes: list[str], names: str = "cris") -> list[str]:
    return report.full_text(scores, prefixes, build_protocols(names), 0.35).split("\n\n")


def test_the_full_text_names_every_evaluation_and_the_oracle() -> None:
    columns = build_protocol("cris").columns
    test, shuffled, oracle, protocol = _parts(SCORES, ["", "shuffled/"])
    assert test == "test\n" + report.table(SCORES, columns)
    assert shuffled == "shuffled\n" + report.table(SCORES, columns, "shuffled/")
    assert _rows(oracle)[1:] == [["object", "33.30"]]
    assert protocol == f"cris: comparable with {build_protocol('cris').comparable}"
    assert _parts(SCORES, ["", "never_run/", "shuffled/"])[1] == shuffled
    assert "oracle" not in "".join(_parts({"mIoU": 0.5}, [""]))


def test_every_protocol_has_a_table_of_its_own() -> None:
    scores = {"mIoU": 0.5, "gres/gIoU": 0.25, "gres/none/gIoU": 1.0, "gres/N_acc": 0.75}
    cris, gres, lines = _parts(scores, [""], "cris,gres")
    assert _rows(cris)[-1][:2] == ["all", "50.00"]
    assert gres.startswith("test, gres\n")
    assert _rows(gres)[2:] == [
        ["none", "100.00", "-", "-", "-", "-", "-", "-"],
        ["all", "25.00", "-", "75.00", "-", "-", "-", "-"],
    ]
    assert [line.split(":")[0] for line in lines.splitlines()] == ["cris", "gres"]
    # ReLA takes the likelier of two classes.
    assert lines.endswith("(where masks are cut at 0.5, here at 0.35)")


def test_a_summary_is_read_back_to_the_last_digit(tmp_path: Path) -> None:
    path = tmp_path / "summary.json"
    assert report.read_summary(path) == {}
    scores = {"b": 0.1 + 0.2, "a": 1 / 3}
    report.write_summary(path, {"z": 1.0})
    report.write_summary(path, scores)
    assert report.read_summary(path) == scores
    assert list(json.loads(path.read_text())) == ["a", "b"]
    assert list(tmp_path.iterdir()) == [path]


def test_a_summary_that_cannot_be_written_leaves_the_earlier_one(tmp_path: Path) -> None:
    path = tmp_path / "summary.json"
    report.write_summary(path, {"mIoU": 0.5})
    with pytest.raises(TypeError):
        report.write_summary(path, {"mIoU": object()})  # pyright: ignore[reportArgumentType]
    assert report.read_summary(path) == {"mIoU": 0.5}
    assert list(tmp_path.iterdir()) == [path]
