import json
from pathlib import Path

import numpy as np
import pytest

from input_pipeline.building.builder import HELD_OUT, BuildError
from input_pipeline.building.conversion import SourceError
from input_pipeline.datasets.lip import CONVERSIONS, PARTS
from tests.input_pipeline.datasets.refcoco_files import read_records
from tests.input_pipeline.formats.map_files import blocks, build, report, write_image, write_map

(CONVERSION,) = CONVERSIONS
IMAGES, MAPS = "TrainVal_images", "TrainVal_parsing_annotations"


def write_source(folder: Path, images: str = IMAGES, maps: str = MAPS) -> np.ndarray:
    """Two cut-outs of one COCO image in train, one of another in val; returns the map of all."""
    for split, names in (("train", ["77_471474", "77_999"]), ("val", ["36_454991"])):
        for name in names:
            write_image(folder / images / f"{split}_images" / f"{name}.jpg", 10, 12)
            path = folder / maps / f"{split}_segmentations" / f"{name}.png"
            values = write_map(path, blocks(10, 12, [0, 1, 5, 19]))
    (folder / images / "train_id.txt").write_text("77_471474\n77_999\n")
    return values


def test_parts_of_one_person(tmp_path: Path):
    values = write_source(tmp_path / "source")
    folder = build(CONVERSION, tmp_path / "source", tmp_path / "data")
    train, (val,) = read_records(folder, "train"), read_records(folder, "val")
    assert [(r.image_id, r.file_name) for r in train] == [
        ("77", "77_471474.jpg"),
        ("77", "77_999.jpg"),
    ]
    assert (val.image_id, val.source) == ("36", "lip")
    assert [(t.category, t.granularity, t.parent) for t in val.targets] == [
        ("person", "object", -1),
        ("hat", "part", 0),
        ("upper clothes", "part", 0),
        ("right shoe", "part", 0),
    ]
    assert [(e.id, e.text, e.targets, e.granularity, e.referent) for e in val.expressions] == [
        ("36_454991-1", "hat of person", (1,), "part", 0),
        ("36_454991-5", "upper clothes of person", (2,), "part", 1),
        ("36_454991-19", "right shoe of person", (3,), "part", 2),
    ]
    np.testing.assert_array_equal(val.mask([0]), values > 0)
    for target, value in enumerate((1, 5, 19), 1):
        np.testing.assert_array_equal(val.mask([target]), values == value)
    assert json.loads((folder / HELD_OUT).read_text()) == {"val": ["36"]}
    assert "train: 2 images; published: 30,462" in report(folder)


@pytest.mark.parametrize(
    "images, maps",
    [(f"{IMAGES}/{IMAGES}", f"{MAPS}/{MAPS}"), (".", MAPS), (".", ".")],
)
def test_other_places_of_the_same_folders(tmp_path: Path, images: str, maps: str):
    write_source(tmp_path, images, maps)
    plan = CONVERSION.read_plan(tmp_path)
    assert {split: len(items) for split, items in plan.splits.items()} == {"train": 2, "val": 1}
    assert not plan.problems


def test_a_name_that_is_not_cocos_keeps_a_pool_of_its_own(tmp_path: Path):
    write_source(tmp_path)
    (tmp_path / IMAGES / "val_images" / "36_454991.jpg").rename(
        tmp_path / IMAGES / "val_images" / "street.jpg"
    )
    (tmp_path / MAPS / "val_segmentations" / "36_454991.png").rename(
        tmp_path / MAPS / "val_segmentations" / "street.png"
    )
    assert CONVERSION.read_plan(tmp_path).held_out == {"val": ("lip/street",)}


def test_the_parts_are_19():
    assert len(set(PARTS)) == 19
    assert (PARTS[0], PARTS[12], PARTS[13], PARTS[18]) == ("hat", "face", "left arm", "right shoe")


def test_background_alone_is_left_out_and_other_values_are_refused(tmp_path: Path):
    write_source(tmp_path / "source")
    path = tmp_path / "source" / MAPS / "train_segmentations" / "77_999.png"
    write_map(path, np.zeros((10, 12)))
    folder = build(CONVERSION, tmp_path / "source", tmp_path / "data")
    assert [r.file_name for r in read_records(folder, "train")] == ["77_471474.jpg"]
    assert "images without a labelled pixel, left out: 1" in report(folder)
    write_map(path, np.full((10, 12), 20))
    with pytest.raises(BuildError, match=r"77_999\.png: 20 is no part; unpack TrainVal_images"):
        build(CONVERSION, tmp_path / "source", tmp_path / "other")


def test_a_split_without_images_or_no_split(tmp_path: Path):
    with pytest.raises(SourceError, match=r"--source_dir must hold TrainVal_images/"):
        CONVERSION.read_plan(tmp_path)
    write_source(tmp_path)
    (tmp_path / IMAGES / "train_images").rename(tmp_path / "elsewhere")
    with pytest.raises(SourceError, match=r"--source_dir must hold TrainVal_images/"):
        CONVERSION.read_plan(tmp_path)
