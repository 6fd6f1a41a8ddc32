import json
from pathlib import Path

import numpy as np
import pytest

from input_pipeline.building.builder import HELD_OUT, BuildError
from input_pipeline.building.conversion import SourceError
from input_pipeline.datasets.pascal.context import CLASSES, CONVERSIONS
from tests.input_pipeline.datasets.refcoco_files import read_records
from tests.input_pipeline.formats.map_files import blocks, build, report, write_image, write_map

(CONVERSION,) = CONVERSIONS
NAMES = {"train": ["2008_000002", "2008_000003"], "val": ["2008_000010"]}


def write_source(folder: Path, lists: str = "ImageSets/SegmentationContext") -> np.ndarray:
    """Two images in train, one in val, and one that is in neither; returns the map of all."""
    for seed, name in enumerate([*NAMES["train"], *NAMES["val"], "2010_009999"]):
        write_image(folder / "JPEGImages" / f"{name}.jpg", 8, 12, seed)
    for name in NAMES["train"] + NAMES["val"]:
        path = folder / "SegmentationClassContext" / f"{name}.png"
        values = write_map(path, blocks(8, 12, [0, 1, 40, 59]), palette=True)
    (folder / lists).mkdir(parents=True)
    for split, names in NAMES.items():
        (folder / lists / f"{split}.txt").write_text("\n".join(names) + "\n")
    return values


@pytest.mark.parametrize("lists", ["ImageSets/SegmentationContext", "ImageSets/Main"])
@pytest.mark.parametrize("up", ["", "VOC2010", "VOCdevkit/VOC2010"])
def test_a_target_and_an_expression_for_each_class(tmp_path: Path, up: str, lists: str):
    values = write_source(tmp_path / "source" / up, lists)
    folder = build(CONVERSION, tmp_path / "source", tmp_path / "data")
    train, (val,) = read_records(folder, "train"), read_records(folder, "val")
    assert [r.image_id for r in train] == ["voc/2008_000002", "voc/2008_000003"]
    assert (val.image_id, val.source) == ("voc/2008_000010", "pascal_context_59")
    assert [(e.id, e.text, e.targets, e.granularity) for e in val.expressions] == [
        ("2008_000010-1", "all aeroplane", (0,), "category"),
        ("2008_000010-40", "all potted plant", (1,), "category"),
        ("2008_000010-59", "all wood", (2,), "category"),
    ]
    for target, value in enumerate((1, 40, 59)):
        np.testing.assert_array_equal(val.mask([target]), values == value)
    assert json.loads((folder / HELD_OUT).read_text()) == {"val": ["voc/2008_000010"]}
    assert "val: 1 images; published: 5,105" in report(folder)


def test_the_classes_are_59_in_the_order_of_the_alphabet():
    assert len(CLASSES.names) == 59
    assert list(CLASSES.names) == sorted(CLASSES.names)


def test_a_value_that_is_no_class(tmp_path: Path):
    write_source(tmp_path / "source")
    path = tmp_path / "source" / "SegmentationClassContext" / "2008_000002.png"
    write_map(path, np.full((8, 12), 60))
    with pytest.raises(BuildError, match=r"2008_000002\.png: 60 is no class; use VOC2010's images"):
        build(CONVERSION, tmp_path / "source", tmp_path / "data")


def test_what_a_list_names_and_is_not_there(tmp_path: Path):
    write_source(tmp_path)
    (tmp_path / "JPEGImages" / "2008_000002.jpg").unlink()
    (tmp_path / "SegmentationClassContext" / "2008_000003.png").unlink()
    plan = CONVERSION.read_plan(tmp_path)
    assert [line.partition(";")[0] for line in plan.problems] == [
        f"{tmp_path / 'JPEGImages' / '2008_000002.jpg'}: not there",
        f"{tmp_path / 'SegmentationClassContext' / '2008_000003.png'}: not there",
    ]
    assert {split: len(items) for split, items in plan.splits.items()} == {"train": 0, "val": 1}


def test_what_is_listed_for_evaluation_is_held_out_without_its_image_too(tmp_path: Path):
    write_source(tmp_path)
    (tmp_path / "JPEGImages" / "2008_000010.jpg").unlink()
    assert CONVERSION.read_plan(tmp_path).held_out == {"val": ("voc/2008_000010",)}


def test_bad_lists(tmp_path: Path):
    write_source(tmp_path)
    path = tmp_path / "ImageSets" / "SegmentationContext" / "train.txt"
    path.write_text("../../secret\n")
    with pytest.raises(SourceError, match=r"train\.txt: '../../secret' is no name of an image"):
        CONVERSION.read_plan(tmp_path)
    path.write_bytes(b"\x89PNG\r\n")
    with pytest.raises(SourceError, match=r"train\.txt: is no list of images"):
        CONVERSION.read_plan(tmp_path)
    for split in NAMES:
        path.with_name(f"{split}.txt").unlink()
    with pytest.raises(SourceError, match="no list of images; --source_dir must hold"):
        CONVERSION.read_plan(tmp_path)
    with pytest.raises(SourceError, match="--source_dir must hold VOC2010's JPEGImages"):
        CONVERSION.read_plan(tmp_path / "ImageSets")
