"""Odd texts and odd names through every way in: right, told, or one clear line with the cure."""

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from input_pipeline.pipeline import PipelineConfig, check_eval, eval_batches, open_train
from tests.odd_files.made import PICTURE, POLYGON
from tests.odd_files.ways import WAYS, Seen, _png

Check = Callable[[Path, Path], Seen]

LINES = ("jsonl", "shards", "tar", "doctor")
BATCHES = ("training", "evaluation")
LAYOUTS = ("cris", "refer")
_BLANK = "'expression' is '&nbsp;', which has no word; say what to look for, or leave the line out"
_CUT = "of 2 texts, 2 take more than 17 tokens of clip, 2 more than 20, none more than 77"
_LEFT_OUT = "expressions without a word, left out: {}"


def blank(folder: Path) -> int:
    """The texts of the shared folder of blank texts; returns how many have no word."""
    texts = ["the red box", "&nbsp;", "\u200b", "\ufeff", "\U0001f697", "...", "\u2800"]
    texts += ["&amp;nbsp;", "\u00ad", "\ufffd", "\u3164"]
    folder.mkdir()
    (folder / "a.png").write_bytes(_png(PICTURE))
    lines = [{"image": "a.png", "expression": text, "segmentation": POLYGON} for text in texts]
    (folder / "train.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), "utf-8")
    return len(texts) - 3


def long(folder: Path) -> None:
    """Two texts that differ in their last word alone, in English and in Chinese."""
    folder.mkdir()
    (folder / "a.png").write_bytes(_png(PICTURE))
    start = (
        "in this picture of a plain wall that was taken by somebody who stood there, show me the"
    )
    lines = [
        {"image": "a.png", "expression": text, "segmentation": POLYGON}
        for text in (f"{start} red", "请在这张下午拍摄的墙面照片中找出红色的盒子")
    ]
    (folder / "train.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), "utf-8")


@pytest.mark.parametrize("way", LINES)
def test_own_texts_without_a_word_are_one_line(tmp_path: Path, way: str):
    blank(tmp_path / "odd")
    (tmp_path / "room").mkdir()
    seen = WAYS[way](tmp_path / "odd", tmp_path / "room")
    assert seen.code in (1, 2)
    assert [_BLANK in line for line in seen.said.splitlines() if line.startswith("error: ")] == [
        True
    ]


@pytest.mark.parametrize("way", LAYOUTS)
def test_published_texts_without_a_word_are_left_out_alone(tmp_path: Path, way: str):
    number = blank(tmp_path / "odd")
    (tmp_path / "room").mkdir()
    seen = WAYS[way](tmp_path / "odd", tmp_path / "room")
    assert seen.code == 0 and len(seen.pairs) == 3
    assert _LEFT_OUT.format(number) in seen.said


@pytest.mark.parametrize("way", ["jsonl", "shards", "tar", "doctor", "doctor of the build", "cris"])
def test_texts_that_are_cut_are_counted(tmp_path: Path, way: str):
    long(tmp_path / "odd")
    (tmp_path / "room").mkdir()
    seen = WAYS[way](tmp_path / "odd", tmp_path / "room")
    assert seen.code == 0
    assert any(f"train: {_CUT}" in line for line in seen.said.splitlines())
    assert ("2  expression of more than 17 tokens, whose" in seen.said) == way.startswith("doctor")


@pytest.mark.parametrize("way", BATCHES)
def test_batches_tell_of_texts_that_are_cut(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, way: str
):
    long(tmp_path / "odd")
    (tmp_path / "room").mkdir()
    assert WAYS["jsonl"](tmp_path / "odd", tmp_path / "room").code == 0
    config = PipelineConfig(
        str(tmp_path / "room" / "data"), "odd", "train", image_size=96, mask_stride=1
    )
    caplog.clear()
    if way == "training":
        open_train(config)
    else:
        check_eval(config)
        assert len(list(eval_batches(config, batch_size=2))) == 1
    (told,) = caplog.messages
    assert told.startswith(
        "odd train: 2 of 2 expressions are longer than 17 tokens of clip, and their"
    )
    assert told.endswith("; config.data.context_length=61 would read all of them")


@pytest.mark.parametrize("name", ["x" * 230, "é" * 110, "y" * 251], ids=["x", "e", "most"])
@pytest.mark.parametrize("way", ["jsonl", "doctor", *BATCHES])
def test_very_long_names_are_names(tmp_path: Path, way: str, name: str):
    folder = tmp_path / "odd"
    folder.mkdir()
    (folder / f"{name}.png").write_bytes(_png(PICTURE))
    line = {"image": f"{name}.png", "expression": "the box", "segmentation": POLYGON}
    (folder / "train.jsonl").write_text(json.dumps(line) + "\n", "utf-8")
    (tmp_path / "room").mkdir()
    assert WAYS[way](folder, tmp_path / "room").code == 0


@pytest.mark.parametrize("image", ["z" * 300 + ".png", "d/" * 3000 + "a.png"], ids=["name", "path"])
@pytest.mark.parametrize("way", ["jsonl", "doctor"])
def test_names_that_are_too_long_are_one_line(tmp_path: Path, way: str, image: str):
    folder = tmp_path / "odd"
    folder.mkdir()
    line = {"image": image, "expression": "the box", "segmentation": POLYGON}
    (folder / "train.jsonl").write_text(json.dumps(line) + "\n", "utf-8")
    (tmp_path / "room").mkdir()
    seen = WAYS[way](folder, tmp_path / "room")
    assert seen.code == 1
    (told,) = [line for line in seen.said.splitlines() if "train.jsonl:1" in line]
    assert "File name too long; correct the name" in told and len(told) < 600


def test_files_whose_names_are_not_utf8_are_left_out_by_name(tmp_path: Path):
    folder = tmp_path / "odd"
    folder.mkdir()
    Path(os.fsdecode(os.fsencode(folder) + b"/caf\xe9.png")).write_bytes(_png(PICTURE))
    # JSON cannot name the file; a name of other bytes is not there.
    line = {"image": "caf\ufffd.png", "expression": "the box", "segmentation": POLYGON}
    (folder / "train.jsonl").write_text(json.dumps(line) + "\n", "utf-8")
    (tmp_path / "room").mkdir()
    seen = WAYS["jsonl"](folder, tmp_path / "room")
    assert seen.code == 1 and "train.jsonl:1: " in seen.said and "caf\ufffd.png" in seen.said


@pytest.mark.parametrize("folder", ["blank_texts", "long_expressions", "chinese"])
def test_the_shared_folders_are_told(shared_data: Path, tmp_path: Path, folder: str):
    seen = WAYS["jsonl"](shared_data / "odd_files" / folder, tmp_path)
    assert (_BLANK if folder == "blank_texts" else _CUT) in seen.said
    assert seen.code == (folder == "blank_texts")
