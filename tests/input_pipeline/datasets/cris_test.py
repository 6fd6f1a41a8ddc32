import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from input_pipeline.building.builder import HELD_OUT, BuildError
from input_pipeline.building.conversion import SourceError
from input_pipeline.building.published import REPORT
from input_pipeline.datasets.refcoco import cris, refcocom
from tests.input_pipeline.datasets.refcoco_files import jpeg, read_records
from tests.input_pipeline.datasets.refer_files import (
    HEIGHT,
    TRAIN2014,
    WIDTH,
    build,
    coco_name,
    config_of,
    square_mask,
    write_jpegs,
)

GOOGLE = config_of(cris.CONVERSIONS, "refcocog/google_cris")
PART = config_of(refcocom.CONVERSIONS, "refcocom/part")
OBJECT_PART = config_of(refcocom.CONVERSIONS, "refcocom/object_part")


def entry(image_id: int, segment_id: Any, *sentences: str, first: int = 0) -> dict[str, Any]:
    return {
        "bbox": [1, 2, 3, 4],
        "cat": 0,
        "segment_id": segment_id,
        "img_name": coco_name(image_id),
        "sentences": [
            {"idx": k, "sent_id": first + k, "sent": text} for k, text in enumerate(sentences)
        ],
        "sentences_num": len(sentences),
    }


def write_mask(path: Path, mask: np.ndarray, channels: int = 1, value: int = 255) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    drawn = mask * value if channels == 1 else np.repeat(mask[..., None] * value, 3, axis=2)
    assert cv2.imwrite(str(path), drawn)


def write_cris(folder: Path) -> Path:
    anns = folder / "anns/refcocog_g"
    anns.mkdir(parents=True)
    train = [entry(1, 70, "a", "b", first=100), entry(2, 71, "c", " ", first=102)]
    (anns / "train.json").write_text(json.dumps(train))
    (anns / "val.json").write_text(json.dumps([entry(1, 72, "d", first=104)]))
    masks = folder / "masks/refcocog_g"
    write_mask(masks / "70.png", square_mask((2, 2)))
    # What CRIS writes where two polygons overlap.
    write_mask(masks / "71.png", square_mask((5, 5), (9, 9)), value=254)
    write_mask(masks / "72.png", square_mask((30, 10)))
    write_jpegs(folder / TRAIN2014, [coco_name(1), coco_name(2)])
    return folder


def write_refcocom(folder: Path) -> Path:
    annotations = folder / "annotations"
    annotations.mkdir(parents=True)
    parts = [entry(154, "154_1", "left ear of the zebra", "its ear"), entry(154, "154_2", "tail")]
    # An entry for each sentence is as good as one for each region.
    objects = [entry(154, "9", "the zebra"), *parts[:1], entry(154, "9", "that animal")]
    (annotations / "val_part_only.json").write_text(json.dumps(parts))
    (annotations / "val_object_part.json").write_text(json.dumps(objects))
    (annotations / "testA_part_only.json").write_text(json.dumps([entry(7, "7_1", "a wheel")]))
    for name, corner in {"154_1": (2, 2), "154_2": (20, 20), "9": (2, 8), "7_1": (4, 4)}.items():
        write_mask(folder / "masks" / f"{name}.png", square_mask(corner), channels=3)
    write_jpegs(folder / "images", [coco_name(154), coco_name(7)])
    return folder


def test_cris_regions_keep_the_ids_of_refer(tmp_path: Path):
    folder = build(GOOGLE, write_cris(tmp_path / "source"), tmp_path / "data")
    first, second = read_records(folder, "train")
    assert (first.image_id, first.source) == ("1", "refcocog/google_cris")
    assert [(e.id, e.text, e.targets, e.granularity) for e in first.expressions] == [
        ("100", "a", (0,), "object"),
        ("101", "b", (0,), "object"),
    ]
    assert [e.id for e in second.expressions] == ["102"]
    np.testing.assert_array_equal(second.mask([0]), square_mask((5, 5), (9, 9)))
    assert json.loads((folder / HELD_OUT).read_text()) == {"val": ["1"]}
    report = (folder / REPORT).read_text()
    assert "expressions without a word, left out: 1" in report
    assert "val: 1 refs; published: 5,000" in report


def test_parts_alone(tmp_path: Path):
    folder = build(PART, write_refcocom(tmp_path / "source"), tmp_path / "data")
    (val,), (test,) = read_records(folder, "val"), read_records(folder, "testA")
    assert (val.image_id, test.image_id) == ("154", "7")
    assert [(e.id, e.text, e.targets, e.granularity) for e in val.expressions] == [
        ("val-154_1-0", "left ear of the zebra", (0,), "part"),
        ("val-154_1-1", "its ear", (0,), "part"),
        ("val-154_2-0", "tail", (1,), "part"),
    ]
    assert {t.granularity for t in val.targets} == {"part"}
    np.testing.assert_array_equal(val.mask([1]), square_mask((20, 20)))
    assert json.loads((folder / HELD_OUT).read_text()) == {"val": ["154"], "testA": ["7"]}
    report = (folder / REPORT).read_text()
    assert "expressions of parts in all splits (the paper has 70k): 4" in report
    assert "masks of parts in all splits (the paper has 26k): 3" in report
    assert "this is not the published split" not in report


def test_objects_and_parts_are_told_apart_by_the_file_of_parts(tmp_path: Path):
    folder = build(OBJECT_PART, write_refcocom(tmp_path / "source"), tmp_path / "data")
    (val,) = read_records(folder, "val")
    assert [(e.id, e.targets, e.granularity) for e in val.expressions] == [
        ("val-9-0", (0,), "object"),
        ("val-154_1-0", (1,), "part"),
        ("val-154_1-1", (1,), "part"),
        ("val-9-1", (0,), "object"),
    ]
    assert [t.granularity for t in val.targets] == ["object", "part"]
    np.testing.assert_array_equal(val.mask([0]), square_mask((2, 8)))


def no_parts_file(source: Path) -> str:
    (source / "annotations/val_part_only.json").unlink()
    return r"val_part_only\.json: not there; it says which regions of val are parts"


def other_parts_file(source: Path) -> str:
    text = json.dumps([entry(154, "other", "x")])
    (source / "annotations/val_part_only.json").write_text(text)
    return r"val_object_part\.json: has no region of val_part_only\.json"


def truncated(source: Path) -> str:
    file = source / "annotations/val_object_part.json"
    file.write_text(file.read_text()[:-30])
    return r"val_object_part\.json: damaged JSON"


def other_form(source: Path) -> str:
    (source / "annotations/val_object_part.json").write_text('[{"img": 1}]')
    return r"val_object_part\.json: entry 0 is not of CRIS's form \(KeyError: 'segment_id'\)"


def empty(source: Path) -> str:
    (source / "annotations/val_object_part.json").write_text("[]")
    return r"val_object_part\.json: holds no region"


def no_file(source: Path) -> str:
    (source / "annotations/val_object_part.json").unlink()
    return r"annotations: no val_object_part\.json there; --source_dir must be"


def no_masks(source: Path) -> str:
    (source / "masks").rename(source / "mask")
    return r"masks: no folder of masks; unpack it there"


def no_images(source: Path) -> str:
    (source / "images").rename(source / "pictures")
    return r"source: no folder of images; put \(or link\) COCO's train2014"


@pytest.mark.parametrize(
    "damage",
    [
        no_parts_file,
        other_parts_file,
        truncated,
        other_form,
        empty,
        no_file,
        no_masks,
        no_images,
    ],
)
def test_files_that_cannot_be_used_are_one_line(damage: Callable[[Path], str], tmp_path: Path):
    source = write_refcocom(tmp_path / "source")
    message = damage(source)
    with pytest.raises(SourceError, match=message) as caught:
        build(OBJECT_PART, source, tmp_path / "data", skip_missing=True)
    assert "\n" not in str(caught.value)


def other_size(source: Path) -> str:
    write_mask(source / "masks/9.png", np.ones((HEIGHT, WIDTH + 1), np.uint8))
    return "masks/9.png: is 65 x 48, its image 64 x 48; use"


def nothing_drawn(source: Path) -> str:
    write_mask(source / "masks/9.png", square_mask())
    return "masks/9.png: has no pixel"


def damaged_mask(source: Path) -> str:
    (source / "masks/9.png").write_bytes(b"\x89PNG\r\n\x1a\n....")
    return "masks/9.png: damaged"


def missing_mask(source: Path) -> str:
    (source / "masks/9.png").unlink()
    return f"masks: no '9.png' there (of {coco_name(154)})"


def hostile_mask(source: Path) -> str:
    write_mask(source / "secret.png", square_mask((1, 1)))
    file = source / "annotations/val_object_part.json"
    file.write_text(file.read_text().replace('"9"', '"../secret"'))
    return "masks: no '../secret.png' there"


def hostile_image(source: Path) -> str:
    (source / "secret.jpg").write_bytes(jpeg(HEIGHT, WIDTH))
    file = source / "annotations/val_object_part.json"
    text = json.loads(file.read_text())
    text[0]["img_name"] = text[2]["img_name"] = "../secret.jpg"
    file.write_text(json.dumps(text))
    return "images: '../secret.jpg' is no name of COCO's"


@pytest.mark.parametrize(
    "damage",
    [other_size, nothing_drawn, damaged_mask, missing_mask, hostile_mask, hostile_image],
)
def test_a_region_that_cannot_be_read_is_named_and_the_others_are_built(
    damage: Callable[[Path], str], tmp_path: Path
):
    source = write_refcocom(tmp_path / "source")
    line = damage(source)
    with pytest.raises(BuildError) as caught:
        build(OBJECT_PART, source, tmp_path / "data")
    assert line in str(caught.value)
    folder = build(OBJECT_PART, source, tmp_path / "data", skip_missing=True)
    (val,) = read_records(folder, "val")
    assert [e.id for e in val.expressions] == ["val-154_1-0", "val-154_1-1"]
    assert line in (folder / REPORT).read_text()
