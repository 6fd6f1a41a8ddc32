"""One item that cannot be converted costs itself, and one text without a word costs itself."""

import dataclasses
import os
from pathlib import Path
from typing import Any

import pytest

from input_pipeline.building.conversion import NO_WORD, BuildError, Outcome, check_record, converted
from input_pipeline.schema import Expression, Record
from tests.input_pipeline.tiny_dataset import make_record
from tests.odd_files.made import BOX, PICTURE
from tests.odd_files.ways import _png, build, write_files

RECORD = make_record("train", 0, (32, 32))


class Refused(Exception):
    """An exception of a library that nobody knows."""


@pytest.mark.parametrize(
    "error", [MemoryError("no room"), KeyError("x"), RecursionError("deep"), Refused("so\nit is")]
)
def test_whatever_a_conversion_raises_is_a_problem_of_its_item(error: Exception):
    def convert(item: str, source: str) -> Outcome:
        raise error

    outcome = converted(convert, "tiny", "a.jpg")
    assert outcome.record is None
    (line,) = outcome.problems
    assert line.startswith(f"a.jpg: {type(error).__name__}: ") and "\n" not in line


def test_errors_that_are_not_of_one_item_stop_the_build():
    def convert(item: str, source: str) -> Outcome:
        raise BuildError("all of it")

    with pytest.raises(BuildError, match="all of it"):
        converted(convert, "tiny", "a.jpg")


def test_texts_without_a_word_are_left_out_alone_and_counted():
    blank = ("&nbsp;", "\u200b", "\u2800")
    said = [Expression(f"b{n}", text, (0,), "object") for n, text in enumerate(blank)]
    record = dataclasses.replace(RECORD, expressions=(said[0], *RECORD.expressions, *said[1:]))
    outcome = converted(lambda item, source: Outcome(record, notes={NO_WORD: 2}), "tiny", 0)
    assert outcome.record == RECORD and not outcome.problems
    assert outcome.notes == {NO_WORD: 5}
    with pytest.raises(BuildError, match=r"expression b0 is '&nbsp;', which has no word"):
        check_record(record)


@pytest.mark.parametrize(
    "changes",
    [
        {"file_name": "caf\udce9.jpg"},
        {"image_id": "tiny/caf\udce9"},
        {"targets": (dataclasses.replace(RECORD.targets[0], category="caf\udce9"),)},
        {"expressions": (Expression("1", "all caf\udce9", (0,), "group", group="caf\udce9"),)},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_names_that_are_not_utf8_are_problems(changes: dict[str, Any]):
    record: Record = dataclasses.replace(RECORD, **changes)
    outcome = converted(lambda item, source: Outcome(record), "tiny", 0)
    assert outcome.record is None
    (line,) = outcome.problems
    assert "is not UTF-8; rename it" in line and "caf\\udce9" in line
    line.encode()
    with pytest.raises(BuildError, match="is not UTF-8; correct its record") as caught:
        check_record(record)
    str(caught.value).encode()


def test_a_group_whose_folder_is_not_utf8_is_left_out_alone(tmp_path: Path):
    """CoCA's groups are named by their folders."""
    files: dict[str, bytes | str] = {
        "image/Box/a.jpg": _png(PICTURE),
        "binary/Box/a.png": _png(BOX * 255),
    }
    flag = write_files(tmp_path / "source", files)
    for top in ("image", "binary"):
        folder = tmp_path / "source" / top
        other = os.fsencode(folder) + b"/B\xe9"
        os.mkdir(other)  # noqa: PTH102
        for path in (folder / "Box").iterdir():
            Path(os.fsdecode(other), path.name).write_bytes(path.read_bytes())
    told = build("coca", tmp_path, flag, split="test")
    assert told.code == 1 and "'coca/B\\udce9/a' is not UTF-8; rename it" in told.said
    seen = build("coca", tmp_path, flag, "--skip_missing", split="test")
    assert seen.code == 0 and [name for name, _, _ in seen.pairs] == ["a.jpg"]
