"""Exports of Label Studio."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from input_pipeline.building.conversion import BuildError, SourceError
from input_pipeline.formats.exchange.label_studio import CANCELLED, LOOSE, SEVERAL, read
from input_pipeline.formats.exchange.lines import NO_MASK, UNSURE
from input_pipeline.formats.places import Places
from refseg_jax.evaluation.predictions import encode
from tests.input_pipeline.formats.exchange.exports import (
    LEFT,
    RIGHT,
    brush,
    left_polygon,
    lines_of,
    picture,
    result,
    said,
    task,
    write,
)

BRUSH = result("x", "brushlabels", format="rle", rle=brush(RIGHT), brushlabels=["dog"])
POLYGON = result("y", "polygonlabels", points=left_polygon(), closed=True, polygonlabels=["cat"])


def _export(folder: Path, *tasks: Any, image: str = "a.png") -> Places:
    picture(folder / image)
    write(folder / "project-1-at-2026-12-01.json", list(tasks))
    return Places(folder)


def _read(folder: Path, *tasks: Any) -> Any:
    return read(_export(folder, *tasks))["train"]


def test_texts_else_choices_are_expressions_and_labels_categories(tmp_path: Path) -> None:
    collected = _read(
        tmp_path,
        task(
            *(BRUSH, POLYGON),
            result("x", "choices", choices=["small"]),
            # Label Studio repeats the region in what is said of it.
            result("x", "textarea", rle=brush(RIGHT), text=["a small dog", "the right one"]),
            result("y", "choices", choices=["striped", "asleep"]),
        ),
    )
    assert said(lines_of(collected)) == {
        ("a.png", "a small dog"): encode(RIGHT),
        ("a.png", "the right one"): encode(RIGHT),
        ("a.png", "striped"): encode(LEFT),
        ("a.png", "asleep"): encode(LEFT),
        ("a.png", "dog"): encode(RIGHT),
        ("a.png", "cat"): encode(LEFT),
    }
    assert not collected.notes


def test_a_brush_with_labels_of_its_own_is_one_region(tmp_path: Path) -> None:
    alone = result("x", "brush", format="rle", rle=brush(RIGHT))
    collected = _read(tmp_path, task(alone, result("x", "labels", labels=["dog"])))
    assert said(lines_of(collected)) == {("a.png", "dog"): encode(RIGHT)}


@pytest.mark.parametrize(
    ("address", "file"),
    [
        ("/data/upload/1/0123abcd-a.png", "a.png"),
        ("/data/upload/1/0123abcd-a.png", "images/0123abcd-a.png"),
        ("/data/upload/1/0123abcd-a.png", "upload/1/0123abcd-a.png"),
        ("/data/local-files/?d=photos%5Ca%20b.png", "photos/a b.png"),
        ("s3://bucket/photos/a.png", "a.png"),
        ("https://host/photos/a%20b.png?token=1", "a b.png"),
        ("a.png", "a.png"),
    ],
)
def test_pictures_are_found_under_the_names_that_label_studio_gives_them(
    tmp_path: Path, address: str, file: str
) -> None:
    places = _export(tmp_path, task(POLYGON, image=address), image=file)
    assert {line["image"] for line in lines_of(read(places)["train"])} == {file}


def test_predictions_count_where_nobody_has_annotated(tmp_path: Path) -> None:
    guess = {"result": [{**BRUSH, "score": 0.9}, {**POLYGON, "score": 0.3}]}
    unseen = task(annotations=[], predictions=[guess])
    skipped = task(annotations=[{"was_cancelled": True, "result": [POLYGON]}])
    collected = _read(tmp_path, unseen, skipped, {**skipped, "annotations": None})
    assert said(lines_of(collected)) == {("a.png", "dog"): encode(RIGHT)}
    assert collected.notes == {UNSURE: 1, CANCELLED: 2}


def test_of_several_annotations_the_ground_truth_is_read_else_the_first(tmp_path: Path) -> None:
    first, second = {"result": [POLYGON]}, {"result": [BRUSH]}
    collected = _read(tmp_path, task(annotations=[first, second]))
    assert list(said(lines_of(collected))) == [("a.png", "cat")]
    assert collected.notes == {SEVERAL: 1}
    true = {**second, "ground_truth": True}
    collected = _read(tmp_path, task(annotations=[first, true]))
    assert list(said(lines_of(collected))) == [("a.png", "dog")]
    assert not collected.notes


def test_what_is_no_mask_or_belongs_to_none_is_counted(tmp_path: Path) -> None:
    box = result("z", "rectanglelabels", x=1, y=1, width=9, height=9, rectanglelabels=["car"])
    corners = {key: box["value"][key] for key in ("x", "y", "width", "height")}
    said_of_box = result("z", "textarea", **corners, text=["a car"])
    caption = {"id": "w", "type": "textarea", "value": {"text": ["a street"]}}
    relation = {"type": "relation", "from_id": "y", "to_id": "z", "direction": "right"}
    collected = _read(tmp_path, task(POLYGON, box, said_of_box, caption, relation))
    assert list(said(lines_of(collected))) == [("a.png", "cat")]
    assert collected.notes == {NO_MASK: 1, LOOSE: 1}


SMALL = result("x", "brushlabels", format="rle", rle=brush(np.ones((2, 2))), brushlabels=["a"])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (["text"], r"task 1 is not Label Studio's .*export as JSON, not JSON-MIN"),
        ([{"id": 3, "image": "a.png", "tag": []}], r"task 3 is not Label Studio's \(no 'data'\)"),
        ([task(POLYGON, image="b.png")], r"task 7: the picture 'b.png' is in no folder; copy it"),
        ([{**task(POLYGON), "data": {"text": "hello"}}], r"task 7: 'data' has no picture"),
        ([task({**POLYGON, "image_rotation": 90})], r"region y: the picture was turned by 90 deg"),
        ([task(SMALL)], r"region x: the mask has 16 values, .* 20 x 12 pixels has 960; export it"),
        ([task({**BRUSH, "original_width": None})], r"task 7 is not Label Studio's \(None is no w"),
        (
            [task(BRUSH, {**POLYGON, "original_width": 30})],
            r"region y: a.png is 30 x 12, and 20 x 12",
        ),
        ([task(result("y", "polygonlabels", points=[[0], [1, 2]]))], r"is not Label Studio's"),
        ([task(result("y", "polygon", points=[[0, 0], [300, 0], [9, 9]]))], r"leaves the image"),
        ([task(result("x", "brush", format="png", rle=[]))], r"a brush of the format 'png'"),
    ],
)
def test_what_is_wrong_is_one_line_with_its_place_and_the_cure(
    tmp_path: Path, content: list[Any], message: str
) -> None:
    with pytest.raises((SourceError, BuildError), match=message) as raised:
        _read(tmp_path, *content)
    assert "\n" not in str(raised.value)


def test_an_object_is_no_export(tmp_path: Path) -> None:
    write(tmp_path / "a.json", {})
    with pytest.raises(SourceError, match="no JSON file that holds a list"):
        read(Places(tmp_path))
