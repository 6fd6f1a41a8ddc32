"""Exports of FiftyOne."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from input_pipeline.building.conversion import BuildError, SourceError
from input_pipeline.formats.exchange.fiftyone import read
from input_pipeline.formats.exchange.lines import NO_MASK, UNSURE
from input_pipeline.formats.places import Places
from refseg_jax.evaluation.predictions import encode
from tests.input_pipeline.formats.exchange.exports import (
    LEFT,
    RIGHT,
    detection,
    fiftyone_mask,
    lines_of,
    picture,
    said,
    sample,
    write,
)

CAT, DOG = detection(2, 3, 4, "cat"), detection(5, 12, 4, "dog", caption="a small dog")


def _export(folder: Path, *samples: Any) -> Places:
    picture(folder / "data" / "a.png")
    write(folder / "samples.json", {"samples": list(samples)})
    return Places(folder)


@pytest.mark.parametrize("form", ["text", "binary", "old"])
@pytest.mark.parametrize("dtype", [bool, np.uint8, np.int64])
def test_masks_fill_their_boxes(tmp_path: Path, form: str, dtype: Any) -> None:
    cat = {**CAT, "mask": fiftyone_mask(np.ones((4, 4), dtype), form)}
    collected = read(_export(tmp_path, sample(cat, DOG)))["train"]
    assert said(lines_of(collected)) == {
        ("data/a.png", "a small dog"): encode(RIGHT),
        ("data/a.png", "cat"): encode(LEFT),
        ("data/a.png", "dog"): encode(RIGHT),
    }


@pytest.mark.parametrize("metadata", [None, {"width": 20, "height": 12}])
def test_masks_of_another_size_are_resized_and_cut_at_the_border(
    tmp_path: Path, metadata: Any
) -> None:
    rng = np.random.default_rng(0)
    stored = rng.random((4, 2)) < 0.5
    stored[3, 1] = True
    box = detection(8, 16, 8, "a")  # Twice as high and four times as wide; half is outside.
    found = {**box, "mask": fiftyone_mask(stored)}
    collected = read(_export(tmp_path, sample(found, CAT, metadata=metadata)))["train"]
    whole = np.zeros((12 + 4, 20 + 4), bool)
    whole[8:16, 16:24] = np.kron(stored, np.ones((2, 4), bool))
    lines = said(lines_of(collected))
    expected = whole[:12, :20]
    if expected.any():
        assert lines["data/a.png", "a"] == encode(expected)
    assert lines["data/a.png", "cat"] == encode(LEFT)


def test_sub_folders_are_splits_and_masks_may_be_pictures(tmp_path: Path) -> None:
    for split in ("train", "val"):
        folder = tmp_path / split
        mask = folder / "fields" / "ground_truth.detections.mask_path" / "m.png"
        mask.parent.mkdir(parents=True)
        Image.fromarray(np.arange(1, 17, dtype=np.uint8).reshape(4, 4)).save(mask)
        of_file = {**CAT, "mask": None, "mask_path": str(mask.relative_to(folder))}
        _export(folder, sample(of_file))
    found = read(Places(tmp_path))
    assert list(found) == ["train", "val"]
    assert said(lines_of(found["val"], "val")) == {("val/data/a.png", "cat"): encode(LEFT)}


def test_boxes_alone_and_unsure_predictions_are_counted(tmp_path: Path) -> None:
    alone = {key: value for key, value in DOG.items() if key != "mask"}
    unsure = {**DOG, "confidence": 0.4}
    boxes = {"_cls": "Detections", "detections": [alone]}
    collected = read(_export(tmp_path, sample(CAT, alone, unsure, boxes=boxes)))["train"]
    assert said(lines_of(collected)) == {("data/a.png", "cat"): encode(LEFT)}
    assert collected.notes == {NO_MASK: 1, UNSURE: 1}


@pytest.mark.parametrize(
    ("samples", "message"),
    [
        ([], r"no Detections with a mask in 0 samples"),
        ([sample({**CAT, "mask": None})], r"no Detections with a mask in 1 samples"),
        (["text"], r"sample 1 is not FiftyOne's"),
        ([{"ground_truth": {}}], r"sample 1 is not FiftyOne's \(no 'filepath'\)"),
        (
            [sample(CAT, other=sample(DOG)["ground_truth"])],
            r"ground_truth and other have masks; ex",
        ),
        ([sample({**CAT, "mask": "?"})], r"sample 1: a mask is damaged"),
        ([sample({**CAT, "mask": "AAAA"})], r"sample 1: a mask is damaged"),
        ([sample({**CAT, "mask": {"$binary": 3}})], r"sample 1 is not FiftyOne's \(mask 3\)"),
        ([sample({**CAT, "mask": fiftyone_mask(np.ones(4))})], r"no array \[height, width\]"),
        (
            [sample({**CAT, "bounding_box": [3, 2, 4, 4]})],
            r"is no \[x, y, width, height\] in shares",
        ),
        ([sample({**CAT, "bounding_box": "no"})], r"is not FiftyOne's \(bounding_box 'no'\)"),
        ([sample({**CAT, "label": 5})], r"is not FiftyOne's \(5 is no text\)"),
        ([sample(CAT, name="data/b.png")], r"b\.png.*No such file"),
    ],
)
def test_what_is_wrong_is_one_line_with_its_place_and_the_cure(
    tmp_path: Path, samples: list[Any], message: str
) -> None:
    with pytest.raises((SourceError, BuildError), match=message) as raised:
        read(_export(tmp_path, *samples))
    assert "\n" not in str(raised.value)


def test_a_mask_that_is_code_or_too_large_is_refused(tmp_path: Path) -> None:
    large = fiftyone_mask(np.zeros((7100, 7100), bool))
    with pytest.raises(BuildError, match="a mask of more than 50,000,000 bytes"):
        read(_export(tmp_path, sample({**CAT, "mask": large})))


def test_other_layouts_are_told(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"no samples\.json there; export as fiftyone\.types"):
        read(Places(tmp_path))
    (tmp_path / "samples").mkdir()
    with pytest.raises(SourceError, match="export without use_dirs"):
        read(Places(tmp_path))
    write(tmp_path / "my val" / "samples.json", {"samples": []})
    with pytest.raises(BuildError, match="cannot be called 'my val'"):
        read(Places(tmp_path))
