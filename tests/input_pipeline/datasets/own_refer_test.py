"""Refer's layout as people's own sets have it: ids of other types, coordinates in other units."""

import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from input_pipeline.building.conversion import BuildError, SourceError
from tests.input_pipeline.datasets.refcoco_files import (
    HEIGHT,
    WIDTH,
    build,
    default_refs,
    read_instances,
    read_records,
    write_instances,
    write_source,
)

Change = Callable[[dict[str, Any]], None]


def texts(stored: dict[str, Any]) -> None:
    for name, fields in {
        "images": ("id", "height", "width"),
        "annotations": ("id", "image_id", "category_id"),
        "categories": ("id",),
    }.items():
        for entry in stored[name]:
            entry |= {field: str(entry[field]) for field in fields}


def texts_of_images(stored: dict[str, Any]) -> None:
    for entry in stored["images"]:
        entry["id"] = f"{entry['id']:012d}"


def texts_of_categories(stored: dict[str, Any]) -> None:
    for entry in stored["annotations"]:
        entry["category_id"] = str(entry["category_id"])


def floats(stored: dict[str, Any]) -> None:
    for entry in stored["images"]:
        entry |= {"id": float(entry["id"]), "height": 48.0}


def with_a_licence(stored: dict[str, Any]) -> None:
    stored["licenses"] = [{"name": "CC0"}]
    stored["info"] = {"id": "x"}


@pytest.mark.parametrize(
    "change", [texts, texts_of_images, texts_of_categories, floats, with_a_licence]
)
def test_ids_of_any_type_are_the_same_ids(tmp_path: Path, change: Change):
    source = write_source(tmp_path / "source")
    expected = read_records(build("refcoco/unc", source, tmp_path / "before"), "train")
    stored = read_instances(source)
    change(stored)
    write_instances(source, stored)
    assert read_records(build("refcoco/unc", source, tmp_path / "after"), "train") == expected


def test_ids_of_numpy_in_refs(tmp_path: Path):
    source = write_source(tmp_path / "source")
    expected = read_records(build("refcoco/unc", source, tmp_path / "before"), "train")
    refs = default_refs()
    for ref in refs:
        ref |= {"ann_id": np.array([ref["ann_id"]]), "image_id": np.int64(ref["image_id"])}
        ref["sentences"] = [{**s, "sent_id": np.int32(s["sent_id"])} for s in ref["sentences"]]
    (source / "refcoco" / "refs(unc).p").write_bytes(pickle.dumps(refs))
    assert read_records(build("refcoco/unc", source, tmp_path / "after"), "train") == expected


@pytest.mark.parametrize("bad", [1.5, True, None, "one", [1], float("inf"), {}])
def test_an_id_that_is_no_number_is_one_line(tmp_path: Path, bad: Any):
    source = write_source(tmp_path / "source")
    stored = read_instances(source)
    stored["annotations"][0]["image_id"] = bad
    write_instances(source, stored)
    with pytest.raises(SourceError, match=r"instances\.json: damaged or not COCO's .*whole number"):
        build("refcoco/unc", source, tmp_path / "data")


def scaled(stored: dict[str, Any], whole: int, *, boxes: str) -> None:
    """Divides all polygons by the size of their images; `boxes` stay, follow or are missing."""
    for entry in stored["annotations"]:
        polygons = entry["segmentation"]
        if isinstance(polygons, dict):
            entry["segmentation"] = polygons = [[40, 0, 59.5, 0, 59.5, 47, 40, 47]]
        x, y = np.concatenate([np.reshape(p, (-1, 2)) for p in polygons]).T
        box = [x.min(), y.min(), np.ptp(x), np.ptp(y)]
        sides = np.array([WIDTH, HEIGHT]) / whole
        if boxes != "missing":
            divisors = np.tile(sides, 2) if boxes == "follow" else 1.0
            entry["bbox"] = (np.array(box) / divisors).tolist()
        entry["segmentation"] = [
            (np.reshape(p, (-1, 2)) / sides).ravel().tolist() for p in polygons
        ]


@pytest.mark.parametrize("boxes", ["stay", "follow", "missing"])
def test_shares_of_the_picture_are_told_and_not_drawn(tmp_path: Path, boxes: str):
    source = write_source(tmp_path / "source")
    stored = read_instances(source)
    scaled(stored, 1, boxes=boxes)
    write_instances(source, stored)
    said = r"instances\.json: its coordinates are shares of the picture \(0\.\.1\), not pixels; multipl"
    with pytest.raises(SourceError, match=said):
        build("refcoco/unc", source, tmp_path / "data")


def test_one_region_in_shares_among_others_is_a_problem(tmp_path: Path):
    source = write_source(tmp_path / "source")
    stored = read_instances(source)
    stored["annotations"][0]["segmentation"] = [[0.1, 0.2, 0.9, 0.2, 0.9, 0.7]]
    write_instances(source, stored)
    with pytest.raises(
        BuildError, match=r"annotation 10: its coordinates are shares .* x by 64 and y"
    ):
        build("refcoco/unc", source, tmp_path / "data")


def test_per_cent_is_told_by_the_boxes_in_pixels(tmp_path: Path):
    source = write_source(tmp_path / "source")
    stored = read_instances(source)
    scaled(stored, 100, boxes="stay")
    write_instances(source, stored)
    with pytest.raises(BuildError, match=r"are per cent .* multiply x by 0\.64 and y by 0\.48"):
        build("refcoco/unc", source, tmp_path / "data")


def test_a_real_region_of_one_pixel_in_the_corner_is_kept(tmp_path: Path):
    source = write_source(tmp_path / "source")
    stored = read_instances(source)
    for number, polygon in enumerate([[0, 0, 1, 0, 1, 1, 0, 1], [0, 0, 1.5, 0, 1.5, 1.5, 0, 1.5]]):
        stored["annotations"][number] |= {"segmentation": [polygon], "bbox": [0, 0, 1, 1]}
    write_instances(source, stored)
    (record,) = read_records(build("refcoco/unc", source, tmp_path / "data"), "train")
    assert record.mask([0]).sum() == record.mask([0])[0, 0] == 1


@pytest.mark.parametrize(
    ("segmentation", "said"),
    [
        ([4, 4, 24, 4, 24, 24, 4, 24], "a flat list of numbers; write a list of polygons"),
        ([[4, 4], [24, 4], [24, 24]], "a list of points .x, y.; write a list of polygons"),
        ({"size": [HEIGHT, WIDTH], "counts": "b'`2:f0'"}, "Python's way of printing bytes"),
        ({"size": [HEIGHT, WIDTH], "counts": [72.0, 3000]}, "a decimal point; write"),
        ({"size": [WIDTH, HEIGHT], "counts": [3072]}, "it is .width, height.; write"),
        (json.dumps([[4, 4, 24, 4, 24, 24]]), "the segmentation is a text; write"),
    ],
)
def test_forms_of_other_tools_are_told_with_the_form_that_is_wanted(
    tmp_path: Path, segmentation: Any, said: str
):
    source = write_source(tmp_path / "source")
    stored = read_instances(source)
    stored["annotations"][0]["segmentation"] = segmentation
    write_instances(source, stored)
    with pytest.raises(BuildError, match=f"1.jpg: annotation 10: .*{said}") as caught:
        build("refcoco/unc", source, tmp_path / "data")
    assert "use its authors' annotations" not in str(caught.value)
