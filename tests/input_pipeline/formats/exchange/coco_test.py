"""COCO's JSON of several tools, and results of SAM 3."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from input_pipeline.building.conversion import NO_WORD, BuildError, SourceError
from input_pipeline.formats.exchange.coco import NOT_ALL, read
from input_pipeline.formats.exchange.lines import EMPTY, NO_MASK, NO_REGION, UNSURE
from input_pipeline.formats.places import Places
from refseg_jax.evaluation.predictions import encode
from tests.input_pipeline.formats.exchange.exports import (
    HEIGHT,
    LEFT,
    LEFT_POLYGON,
    RIGHT,
    WIDTH,
    coco,
    lines_of,
    picture,
    said,
    write,
)


def test_texts_and_categories_become_lines_with_the_union_of_their_regions(tmp_path: Path) -> None:
    """The three forms of a segmentation; a text beside it, and one in CVAT's attributes."""
    picture(tmp_path / "a.png")
    write(tmp_path / "any name.json", coco())
    found = read(Places(tmp_path))
    assert list(found) == ["train"]
    lines = lines_of(found["train"])
    assert said(lines) == {
        ("a.png", "the left cat"): encode(LEFT),
        ("a.png", "a small dog"): encode(RIGHT),
        ("a.png", "cat"): encode(LEFT | RIGHT),
        ("a.png", "dog"): encode(RIGHT),
    }
    assert [line.get("granularity") for line in lines] == [None, None, "category", "category"]
    assert [line["category"] for line in lines] == ["cat", "dog", "cat", "dog"]
    assert not found["train"].notes


def test_cvats_layout_has_splits_and_pictures_in_folders(tmp_path: Path) -> None:
    for split in ("train", "val"):
        picture(tmp_path / "images" / split / "a.png")
        write(tmp_path / "annotations" / f"instances_{split}.json", coco())
        write(tmp_path / "annotations" / f"person_keypoints_{split}.json", coco())
    found = read(Places(tmp_path))
    assert list(found) == ["train", "val"]
    names = {line["image"] for line in lines_of(found["val"], "val")}
    assert names == {"images/val/a.png"}


def _pairs(**more: Any) -> dict[str, Any]:
    """SA-Co: an entry for each picture and phrase."""
    size = {"file_name": "a.png", "height": HEIGHT, "width": WIDTH}
    phrases = ["two things", "a thing", "an elephant", "things that not all are drawn"]
    return {
        "images": [
            {"id": 10 + i, "text_input": phrase, "is_instance_exhaustive": int(i < 3), **size}
            for i, phrase in enumerate(phrases)
        ],
        "categories": [{"id": 1, "name": "visual"}],
        "annotations": [
            {"id": i, "image_id": image, "category_id": 1, "segmentation": encode(mask)}
            for i, (image, mask) in enumerate([(10, LEFT), (10, RIGHT), (11, LEFT), (13, LEFT)])
        ],
        **more,
    }


def test_a_phrase_of_sa_co_is_asked_whether_or_not_something_matches(tmp_path: Path) -> None:
    picture(tmp_path / "a.png")
    write(tmp_path / "train.json", _pairs())
    collected = read(Places(tmp_path))["train"]
    lines = lines_of(collected)
    assert said(lines) == {
        ("a.png", "two things"): encode(LEFT | RIGHT),
        ("a.png", "a thing"): encode(LEFT),
        ("a.png", "an elephant"): None,
    }
    assert [line.get("granularity") for line in lines] == ["multi", None, None]
    assert collected.notes == {NOT_ALL: 1}


@pytest.mark.parametrize("name", ["coco_predictions_segm.json", "train_results.json"])
def test_results_of_sam_3_take_the_place_of_the_annotations(tmp_path: Path, name: str) -> None:
    picture(tmp_path / "a.png")
    write(tmp_path / "train.json", _pairs())
    results = [
        {"image_id": image, "category_id": 1, "segmentation": encode(mask), "score": score}
        for image, mask, score in [(10, RIGHT, 0.9), (11, RIGHT, 0.5), (12, LEFT, 0.49)]
    ]
    write(tmp_path / name, results)
    collected = read(Places(tmp_path))["train"]
    assert said(lines_of(collected)) == {
        ("a.png", "two things"): encode(RIGHT),
        ("a.png", "a thing"): encode(RIGHT),
        ("a.png", "an elephant"): None,
    }
    assert collected.notes == {NOT_ALL: 1, UNSURE: 1}


def test_what_is_left_out_is_counted(tmp_path: Path) -> None:
    picture(tmp_path / "a.png")
    content = coco()
    content["annotations"] += [
        {"id": 4, "image_id": 1, "category_id": 1, "bbox": [0, 0, 5, 5], "segmentation": []},
        {**content["annotations"][1], "id": 5, "segmentation": encode(LEFT & RIGHT)},
        {**content["annotations"][1], "id": 6, "captions": [" ", "the left cat", "b"]},
    ]
    content["images"].append({"id": 2, "file_name": "b.png", "height": 9, "width": 9})
    write(tmp_path / "train.json", content)
    collected = read(Places(tmp_path))["train"]
    lines = lines_of(collected)
    assert said(lines)["a.png", "the left cat"] == encode(LEFT | RIGHT)
    assert collected.notes == {NO_MASK: 1, EMPTY: 1, NO_WORD: 1, NO_REGION: 1}


def _image(**fields: Any) -> dict[str, Any]:
    return {**coco(), "images": [{**coco()["images"][0], **fields}]}


def _first(**fields: Any) -> dict[str, Any]:
    content = coco()
    content["annotations"][0] |= fields
    return content


SHARES = [[x / WIDTH if i % 2 == 0 else x / HEIGHT for i, x in enumerate(LEFT_POLYGON)]]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({}, r"it lists no images; export with them"),
        ("[", r"no JSON file that holds an object there or in annotations/; put the export there"),
        ("{", r"damaged JSON .*; download it again"),
        ({**coco(), "images": []}, r"lists no images"),
        (_image(height=None), r"images\[0\] is not COCO's \(None is no whole number\); export it"),
        (_image(file_name=""), r"images\[0\] is not COCO's \(file_name ''\)"),
        ({**coco(), "images": [{"id": 1}]}, r"images\[0\] is not COCO's \(no 'file_name'\)"),
        ({**coco(), "images": coco()["images"] * 2}, r"the id 1 occurs twice"),
        (_first(image_id=5), r"annotation 1: the image 5 is not listed; export all images"),
        (_first(category_id=5), r"annotation 1: the category 5 is not listed; export the categ"),
        (_first(caption=3), r"annotations\[0\] is not COCO's \(3 is no text\)"),
        (_first(score="high"), r"is not COCO's \(score 'high' is no number\)"),
        (_first(segmentation=SHARES), r"annotation 1: its coordinates are shares of the picture"),
        (_first(segmentation=[[3, 2, 7]]), r"annotation 1: .*odd number"),
        (
            _first(segmentation=[[30, 2, 70, 2, 70, 6]]),
            r"annotation 1: a region .* leaves the image",
        ),
        (_first(segmentation=encode(np.ones((3, 3)))), r"annotation 1: the RLE's size is \[3, 3\]"),
        (_first(bbox=[3, 2, 7, 6]), r"annotation 1: .* is \[left, top, right, bottom\]"),
    ],
)
def test_what_is_wrong_is_one_line_with_its_place_and_the_cure(
    tmp_path: Path, content: Any, message: str
) -> None:
    picture(tmp_path / "a.png")
    write(tmp_path / "train.json", content)
    with pytest.raises((SourceError, BuildError), match=message) as raised:
        read(Places(tmp_path))["train"].images("train")
    assert "\n" not in str(raised.value)
    assert re.match(rf"{re.escape(str(tmp_path))}", str(raised.value))


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({}, "no JSON file that holds an object"),
        ({"train.json": _pairs(), "a.json": [], "b.json": []}, "results beside a.json; keep one"),
        ({"train.json": _pairs(), "val.json": _pairs(), "r.json": []}, "of which of train, val"),
        ({"my data.json": coco(), "train.json": coco()}, "cannot be called 'my data'"),
        ({"train.json": coco(), "annotations/train.json": coco()}, "two files for one split"),
    ],
)
def test_files_that_cannot_be_told_apart_are_refused(
    tmp_path: Path, files: dict[str, Any], message: str
) -> None:
    for name, content in files.items():
        write(tmp_path / name, content)
    with pytest.raises((SourceError, BuildError), match=message):
        read(Places(tmp_path))
