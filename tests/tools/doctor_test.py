"""A dataset with one of every defect, as `tools.doctor` sees it."""

import base64
import dataclasses
import io
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from input_pipeline.building.own import build_records
from input_pipeline.checks import (
    CHECKS,
    Finding,
    Identity,
    leak_findings,
    record_findings,
    split_findings,
)
from input_pipeline.schema import Expression, Record, Target, encode_mask
from tests.input_pipeline.datasets.refcoco_files import HEIGHT, WIDTH, jpeg
from tools import doctor


def square(top: int, left: int, side: int) -> bytes:
    mask = np.zeros((HEIGHT, WIDTH), np.uint8)
    mask[top : top + side, left : left + side] = 1
    return encode_mask(mask)


FRAME = np.ones((HEIGHT, WIDTH), np.uint8)
FRAME[10:20, 10:30] = 0


def make(number: int) -> Record:
    return Record(
        image=jpeg(seed=number),
        image_id=str(number),
        file_name=f"{number}.jpg",
        height=HEIGHT,
        width=WIDTH,
        source="mine",
        targets=(
            Target(square(2, 2, 20), "car"),
            Target(square(4, 4, 6), "wheel", 0, "part"),
            Target(square(24, 30, 20), "tree"),
        ),
        expressions=(
            Expression(f"{number}-0", "the car", (0,), "object", 0),
            Expression(f"{number}-1", "wheel of car", (1,), "part", 1),
            Expression(f"{number}-2", "a boat", (), "none", 2),
        ),
    )


def said(text: str, targets: tuple[int, ...], granularity: str = "object") -> Expression:
    return Expression("x", text, targets, granularity)


def with_target(target: Target) -> Callable[[Record], Record]:
    return lambda r: dataclasses.replace(r, targets=(*r.targets, target))


def with_expression(expression: Expression) -> Callable[[Record], Record]:
    return lambda r: dataclasses.replace(r, expressions=(*r.expressions, expression))


DEFECTS: dict[str, tuple[Callable[[Record], Record], str]] = {
    "damaged image": (
        lambda r: dataclasses.replace(r, image=r.image[:-700]),
        "the image is damaged",
    ),
    "image of another size than its record": (
        lambda r: dataclasses.replace(r, image=jpeg(HEIGHT, WIDTH + 2)),
        "is 66 x 48, its record says 64 x 48",
    ),
    "damaged mask": (with_target(Target(encode_mask(np.ones((3, 3))), "x")), "do not fill"),
    "empty mask": (with_target(Target(square(0, 0, 0), "hole")), "target 3 (hole)"),
    "target of fewer than 16 pixels": (with_target(Target(square(0, 0, 3), "dot")), "(dot) has 9"),
    "target that covers the whole image": (
        with_target(Target(encode_mask(np.ones((HEIGHT, WIDTH))), "sky", granularity="stuff")),
        "target 3 (sky)",
    ),
    "target that covers all four corners of the image": (
        with_target(Target(encode_mask(FRAME), "frame")),
        "target 3 (frame): if it is the background, invert the mask",
    ),
    "part that lies outside of its object": (
        with_target(Target(square(30, 40, 8), "wheel", 0, "part")),
        "0% of it in its object",
    ),
    "expression without a word": (with_expression(said("  ", (0,))), "x"),
    "expression that means nothing, but is not 'none'": (with_expression(said("a", ())), "'a' (x)"),
    "expression 'none' that means something": (with_expression(said("a", (0,), "none")), "'a' (x)"),
    "expression said twice of the same thing": (
        with_expression(said("The  car", (0,))),
        "car' (x)",
    ),
    "expression said of different things in one image": (
        with_expression(said("the car", (2,))),
        "'the car' (x)",
    ),
}


def test_a_sound_record_has_no_findings():
    assert record_findings(make(1), "val") == []
    group = with_expression(Expression("g", "the cat", (), "group", 3, "cats"))(make(1))
    assert record_findings(group, "val") == []


def test_stuff_may_cover_the_corners():
    stuff = Target(encode_mask(FRAME), "wall", granularity="stuff")
    assert record_findings(with_target(stuff)(make(1)), "val") == []


@pytest.mark.parametrize("check", DEFECTS)
def test_each_defect_is_found_and_nothing_else(check: str):
    damage, text = DEFECTS[check]
    (finding,) = record_findings(damage(make(1)), "val")
    assert (finding.check, finding.split) == (check, "val")
    assert finding.text.startswith("1.jpg (image 1): ")
    assert text in finding.text
    assert finding.is_fault == (CHECKS[check] == "fault")


def identity(image_id: str, picture: bytes = b"", *ids: str) -> Identity:
    return Identity(image_id, picture or image_id.encode(), ids)


def test_what_is_wrong_between_records():
    splits = {
        "val": [identity("1"), identity("4", b"3"), identity("5", b"", "a")],
        "train": [identity("1"), identity("2"), identity("2"), identity("3", b"", "a")],
        "train_more": [identity("1")],
        "testA": [identity("5")],
    }
    assert split_findings(splits) == [
        Finding("image that occurs twice in a split", "train", "image 2"),
        Finding("expression id that occurs twice", "val", "image 5: 'a'"),
        Finding(
            "image of a training split that is also in an evaluation split",
            "val",
            "image 1 is in train_more",
        ),
        Finding(
            "same picture under two image ids, in training and evaluation",
            "val",
            "image 4 is image 3 of train",
        ),
        Finding("image of two evaluation splits", "testA", "image 5 is in val"),
    ]


def test_what_leaks_into_the_evaluation_of_others():
    splits = {"val": [identity("9")], "train": [identity("2"), identity("1"), identity("3")]}
    sets = {"other/val": frozenset({"1", "2", "9"}), "third/test": frozenset({"9"})}
    (found,) = leak_findings(splits, sets)
    assert (found.split, found.number, found.is_fault) == ("train", 2, False)
    assert found.text == "2 images of other/val, e.g. image 1"


def test_every_check_of_a_record_is_tried():
    tried = set(DEFECTS) | {"damaged record"}
    between = {check for check in CHECKS if check not in tried}
    assert between == {
        "expression id that occurs twice",
        "image of a training split that is also in an evaluation split",
        "same picture under two image ids, in training and evaluation",
        "image that occurs twice in a split",
        "image of two evaluation splits",
        "image of a training split that is in an evaluation set beside it",
    }


def pictures(page: str) -> list[np.ndarray]:
    found = re.findall(r"src='data:image/jpeg;base64,([^']*)'", page)
    return [np.asarray(Image.open(io.BytesIO(base64.b64decode(data)))) for data in found]


def remarkable(number: int) -> Record:
    record = with_expression(said("<b>the car</b>", (0,)))(make(number))
    again = dataclasses.replace(said("<b>the car</b>", (0,)), id=f"y{number}")
    first = dataclasses.replace(record.expressions[-1], id=f"x{number}")
    return dataclasses.replace(record, expressions=(*record.expressions[:-1], first, again))


def test_a_built_dataset_without_faults(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    build_records("mine", {"train": [1, 2], "val": [3]}, remarkable, data_dir=tmp_path)
    page = tmp_path / "pages" / "doctor.html"
    arguments = ["--dataset=mine", f"--data_dir={tmp_path}", f"--page={page}", "--num_workers=0"]
    assert doctor.main(arguments) == 0
    out = capsys.readouterr().out
    assert "train: 2 images, 6 refs, 10 expressions; nothing is published of it" in out
    assert "remark         3  expression said twice of the same thing" in out
    text = page.read_text()
    assert "<b>the car" not in text
    assert "&lt;b&gt;the car" in text
    shown = pictures(text)
    assert len(shown) == 3 + 3
    assert "doctor.html: 3 sample pictures, examples of what was found" in out
    plain = np.asarray(Image.open(io.BytesIO(jpeg(seed=1)))).astype(int)
    # The target keeps its colours, up to JPEG's losses, and the rest is dimmed.
    lost = plain.sum(-1) - shown[0].astype(int).sum(-1)
    assert np.abs(lost[4:20, 4:20]).mean() < 30
    assert lost[30:, 30:].mean() > 100

    assert doctor.main([*arguments, "--splits=val"]) == 0
    assert "train" not in capsys.readouterr().out
    assert doctor.main([*arguments, "--splits=vla"]) == 2
    assert "unknown split of mine 'vla': did you mean 'val'" in capsys.readouterr().err


def test_the_page_has_samples_of_each_split_whatever_is_found(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    def damaged(number: int) -> Record:
        record = make(number)
        if number in (0, 25):
            return dataclasses.replace(record, expressions=(), metadata="")
        return record

    build_records("mine", {"train": range(50), "val": [50, 51]}, damaged, data_dir=tmp_path)
    page = tmp_path / "doctor.html"
    arguments = ["--dataset=mine", f"--data_dir={tmp_path}", f"--page={page}", "--num_workers=0"]
    assert doctor.main(arguments) == 0
    assert capsys.readouterr().out.endswith("6 sample pictures, nothing was found\n")
    text = page.read_text()
    captions = re.findall("<figcaption>(.*?)</figcaption>", text)
    assert captions == [
        "train: 0.jpg (image 0): no expression, 3 targets",
        "train: 12.jpg (image 12): “wheel of car”",
        "train: 25.jpg (image 25): no expression, 3 targets",
        "train: 37.jpg (image 37): “wheel of car”",
        "val: 50.jpg (image 50): “the car”",
        "val: 51.jpg (image 51): “wheel of car”",
    ]
    plain = np.asarray(Image.open(io.BytesIO(jpeg(seed=51)))).astype(int)
    lost = plain.sum(-1) - pictures(text)[-1].astype(int).sum(-1)
    assert np.abs(lost[4:10, 4:10]).mean() < 60
    assert lost[18:].mean() > 100


def test_leakage_and_damaged_records_are_faults(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    def make_leaking(item: tuple[str, int]) -> Record:
        record = make(item[1])
        ids = [dataclasses.replace(e, id=f"{item[0]}{e.id}") for e in record.expressions]
        return dataclasses.replace(record, expressions=tuple(ids))

    splits = {"train": [("a", 1), ("a", 2)], "val": [("b", 2)]}
    folder = build_records("mine", splits, make_leaking, data_dir=tmp_path)
    page = tmp_path / "doctor.html"
    arguments = ["--dataset=mine", f"--data_dir={tmp_path}", f"--page={page}", "--num_workers=2"]
    assert doctor.main(arguments) == 1
    leak = "fault          1  image of a training split that is also in an evaluation split"
    assert leak in capsys.readouterr().out
    (records,) = folder.glob("mine-val.array_record*")
    records.write_bytes(records.read_bytes()[:70_000])
    assert doctor.main([*arguments, "--num_workers=0"]) == 1
    assert "damaged record" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--dataset=refcoco/unk", "--source_dir=."], "unknown dataset with a known format"),
        (["--dataset=refcoco/unc", "--source_dir=nowhere"], "nowhere: no such folder"),
        (["--dataset=refcoco/unc", "--data_dir=nowhere"], "no built dataset"),
        (["--dataset=jsonl", "--source_dir=.", "--page=."], "--page=.: is a folder; name a file"),
    ],
)
def test_mistakes(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]):
    assert doctor.main(arguments) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
