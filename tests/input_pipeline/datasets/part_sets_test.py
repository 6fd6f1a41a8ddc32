"""PACO-LVIS, PartImageNet and PASCAL-Part."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.io

from input_pipeline.building.builder import HELD_OUT, BuildError
from input_pipeline.building.conversion import SourceError
from input_pipeline.building.published import REPORT, builder_of
from input_pipeline.datasets import paco, partimagenet
from input_pipeline.datasets.pascal import part as pascal_part
from input_pipeline.datasets.pascal.part import merged
from input_pipeline.formats import coco_json
from input_pipeline.formats.regions import TINY
from input_pipeline.schema import encode_mask
from refseg_jax.images.placement import AWAY
from tests.input_pipeline.datasets.refcoco_files import HEIGHT, WIDTH, jpeg, read_records
from tests.input_pipeline.formats.matfile_test import structs

CONVERSIONS = {
    conversion.name: conversion
    for module in (paco, partimagenet, pascal_part)
    for conversion in module.CONVERSIONS
}


def build(name: str, source: Path, data_dir: Path, **options: Any) -> Path:
    return builder_of(CONVERSIONS[name], source_dir=source, data_dir=data_dir, **options).build()


def box(x: int, y: int, side: int) -> np.ndarray:
    mask = np.zeros((HEIGHT, WIDTH), np.uint8)
    mask[y : y + side, x : x + side] = 1
    return mask


def rle(mask: np.ndarray) -> dict[str, Any]:
    return {"size": [HEIGHT, WIDTH], "counts": encode_mask(mask).decode()}


CAR, MUG, WHEEL, HANDLE, TUBE = 3, 7, 101, 102, 103
PACO_CATEGORIES = [
    {"id": CAR, "name": "car_(automobile)", "supercategory": "OBJECT"},
    {"id": MUG, "name": "mug", "supercategory": "OBJECT"},
    {"id": WHEEL, "name": "car_(automobile):wheel", "supercategory": "PART"},
    {"id": HANDLE, "name": "mug:handle", "supercategory": "PART"},
    {"id": TUBE, "name": "mug:colied_tube", "supercategory": "PART"},
]


def paco_annotation(number: int, image: int, category: int, mask: Any, whole: int = 0) -> dict:
    return {
        "id": number,
        "bbox": [0, 0, 1, 1],
        "area": 1,
        "category_id": category,
        "image_id": image,
        "segmentation": rle(mask),
        "attribute_ids": [],
        "obj_ann_id": whole or number,
    }


def write_paco(folder: Path) -> Path:
    """Two cars with wheels and a mug, whose kind was not annotated everywhere; parts come first."""
    (folder / "annotations").mkdir(parents=True)
    annotations = [
        paco_annotation(11, 9, WHEEL, box(2, 12, 3), whole=10),
        paco_annotation(10, 9, CAR, box(0, 0, 16)),
        paco_annotation(20, 9, CAR, box(30, 0, 16)),
        paco_annotation(21, 9, WHEEL, box(31, 12, 3) | box(40, 12, 3), whole=20),
        paco_annotation(30, 9, MUG, box(50, 30, 9)),
        paco_annotation(31, 9, HANDLE, box(58, 32, 2), whole=30),
        paco_annotation(32, 9, TUBE, box(58, 32, 1), whole=30),
        paco_annotation(40, 8, MUG, box(1, 1, 9)),
        paco_annotation(41, 8, HANDLE, box(9, 1, 2), whole=99),
    ]
    splits = {"train": [(9, "train2017", [MUG])], "val": [(8, "val2017", [])], "test": []}
    for split, images in splits.items():
        ids = {number for number, _, _ in images}
        stored = {
            "annotations": [a for a in annotations if a["image_id"] in ids],
            "images": [
                {
                    "id": number,
                    "file_name": f"{origin}/{number:012d}.jpg",
                    "height": HEIGHT,
                    "width": WIDTH,
                    "neg_category_ids": [],
                    "not_exhaustive_category_ids": lacking,
                }
                for number, origin, lacking in images
            ],
            "categories": PACO_CATEGORIES,
            "part_categories": [{"id": 0, "name": "wheel", "supercategory": "PART"}],
            "attr_type_to_attr_idxs": {"color": [0, 1]},
        }
        if images:
            path = folder / "annotations" / f"paco_lvis_v1_{split}.json"
            path.write_text(json.dumps(stored))
    for name in ("train2017/000000000009.jpg", "val2017/000000000008.jpg"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(jpeg(seed=len(name)))
    return folder


def test_paco_asks_for_kinds_and_for_parts_of_kinds(tmp_path):
    folder = build("paco_lvis", write_paco(tmp_path / "source"), tmp_path / "data")
    (record,) = read_records(folder, "train")
    assert (record.image_id, record.file_name) == ("9", "000000000009.jpg")
    assert [(t.category, t.parent, t.granularity) for t in record.targets] == [
        ("car", -1, "object"),
        ("car", -1, "object"),
        ("mug", -1, "object"),
        ("wheel", 0, "part"),
        ("wheel", 1, "part"),
        ("handle", 2, "part"),
        ("coiled tube", 2, "part"),
    ]
    assert [(e.id, e.text, e.targets, e.granularity) for e in record.expressions] == [
        ("000000000009/car", "all car", (0, 1), "category"),
        ("000000000009/car:wheel", "wheel of car", (3, 4), "part"),
    ]
    assert len({e.referent for e in record.expressions}) == 2
    wheels = box(2, 12, 3) | box(31, 12, 3) | box(40, 12, 3)
    np.testing.assert_array_equal(record.mask([3, 4]), wheels)
    assert json.loads(record.metadata) == {"ann_ids": [10, 20, 30, 11, 21, 31, 32]}
    (val,) = read_records(folder, "val")
    assert [t.parent for t in val.targets] == [-1, -1], "the object of this handle is not there"
    assert json.loads((folder / HELD_OUT).read_text()) == {"val": ["8"]}
    report = (folder / REPORT).read_text()
    assert f"{coco_json.INCOMPLETE}: 3\n" in report
    assert f"{AWAY}: 9\n" in report, "no box of these files is its region's"
    assert "train: 7 targets; published: 612,188" in report


def test_pacos_names_are_spoken_without_their_brackets():
    assert paco.spoken("glass_(drink_container):inner_body") == ("glass", "inner body")
    assert paco.spoken("trash_can") == ("trash can", "")


def test_paco_tells_what_is_missing(tmp_path):
    source = write_paco(tmp_path / "source")
    (source / "train2017/000000000009.jpg").unlink()
    with pytest.raises(
        BuildError, match=r"000000000009\.jpg: not there; copy it from COCO train20"
    ):
        build("paco_lvis", source, tmp_path / "data")
    shutil.rmtree(source / "annotations")
    with pytest.raises(SourceError, match=r"no annotations/paco_lvis_v1_train\.json"):
        build("paco_lvis", source, tmp_path / "data")
    with pytest.raises(SourceError, match="no folder of images; put"):
        build("paco_lvis", tmp_path / "nowhere", tmp_path / "data")


def cut(text: str) -> str:
    return text[: len(text) // 2]


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (cut, "damaged JSON"),
        (lambda t: t.replace('"file_name"', '"name"'), "an entry of 'images' is not COCO's"),
        (lambda t: t.replace("train2017/000000000009.jpg", "../../a.jpg"), "'a.jpg' is none of"),
        (lambda t: t.replace("000000000009.jpg", ".."), "file_name 'train2017/..'"),
        (lambda t: t.replace('"category_id": 3,', '"category_id": 4,'), "image or category 4"),
        (lambda t: t.replace('"image_id": 9', '"image_id": 5'), "image or category 5"),
        (lambda t: t.replace('"segmentation"', '"region"'), "KeyError: 'segmentation'"),
        (lambda t: "{}", "it does not list images"),
        (lambda t: "[1]", "it does not list images"),
    ],
)
def test_a_file_that_is_not_cocos_is_one_line(tmp_path, change, reason):
    source = write_paco(tmp_path / "source")
    path = source / "annotations/paco_lvis_v1_train.json"
    path.write_text(change(path.read_text()))
    with pytest.raises(SourceError) as caught:
        build("paco_lvis", source, tmp_path / "data")
    assert str(caught.value).startswith(f"{path}: ")
    assert reason in str(caught.value)
    assert "\n" not in str(caught.value)


def test_an_id_that_is_no_id_makes_no_parent(tmp_path):
    source = write_partimagenet(tmp_path / "source")
    path = source / "train.json"
    path.write_text(path.read_text().replace('{"id": 0, "image_id": 0', '{"id": -1, "image_id": 0'))
    folder = build("partimagenet/ood", source, tmp_path / "data")
    assert [t.parent for t in read_records(folder, "train")[0].targets] == [-1, -1]


def test_a_damaged_rle_is_a_problem_of_its_annotation(tmp_path):
    source = write_paco(tmp_path / "source")
    path = source / "annotations/paco_lvis_v1_train.json"
    stored = json.loads(path.read_text())
    stored["annotations"][0]["segmentation"]["size"] = [3, 3]
    path.write_text(json.dumps(stored))
    with pytest.raises(BuildError, match=r"09\.jpg: annotation 11: the RLE's size is \[3, 3\]"):
        build("paco_lvis", source, tmp_path / "data")
    folder = build("paco_lvis", source, tmp_path / "data", skip_missing=True)
    assert len(read_records(folder, "train")[0].targets) == 6


def write_partimagenet(folder: Path, annotations: str = "{0}.json", images: str = "") -> Path:
    """A car with tires, as flat names in the file and in folders on disk."""
    polygons = [[2, 2, 12, 2, 12, 12, 2, 12], [20, 20, 21], [5, 5], [4, 4, 6, 6]]
    polygons[1] = [20, 20, 30, 20, 30, 30, 20, 30]
    for split, name in (("train", "n02814533_12"), ("val", "n02930766_7")):
        stored = {
            "images": [
                {"id": 0, "file_name": f"{name}.JPEG", "height": HEIGHT, "width": WIDTH},
                {"id": 1, "file_name": "n02814533_13.JPEG", "height": HEIGHT, "width": WIDTH},
            ],
            "categories": [
                {"id": 0, "name": "Car Tier", "supercategory": "Car"},
                {"id": 1, "name": "Car Side Mirror", "supercategory": "Car"},
            ],
            "annotations": [
                {"id": 0, "image_id": 0, "category_id": 0, "segmentation": polygons},
                {"id": 1, "image_id": 0, "category_id": 1, "segmentation": [[1, 1, 2, 2]]},
                {"id": 2, "image_id": 0, "category_id": 1, "segmentation": [[1, 1, 9, 1, 9, 9]]},
            ],
        }
        path = folder / annotations.format(split)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(stored))
        image = folder / images / split / name[:9] / f"{name}.JPEG"
        image.parent.mkdir(parents=True)
        image.write_bytes(jpeg())
    return folder


@pytest.mark.parametrize("annotations", partimagenet.ANNOTATIONS)
@pytest.mark.parametrize("images", ["", "images"])
def test_partimagenet_asks_for_parts(tmp_path, annotations, images):
    source = write_partimagenet(tmp_path / "source", annotations, images)
    folder = build("partimagenet/ood", source, tmp_path / "data")
    (record,) = read_records(folder, "train")
    assert (record.image_id, record.source) == ("imagenet/n02814533_12", "partimagenet/ood")
    assert [(t.category, t.parent, t.granularity) for t in record.targets] == [
        ("tire", -1, "part"),
        ("side mirror", -1, "part"),
    ]
    assert [(e.id, e.text, e.targets) for e in record.expressions] == [
        ("n02814533_12/car:tire", "tire of car", (0,)),
        ("n02814533_12/car:side mirror", "side mirror of car", (1,)),
    ]
    np.testing.assert_array_equal(record.mask([0]), box(2, 2, 10) | box(20, 20, 10))
    report = (folder / REPORT).read_text()
    assert f"{TINY}: 6\n" in report, "two of the tires and one of the mirrors, twice"
    assert f"{coco_json.EMPTY}: 2\n" in report
    assert f"{coco_json.NO_ANNOTATION}: 2\n" in report
    held_out = json.loads((folder / HELD_OUT).read_text())
    assert held_out == {"val": ["imagenet/n02814533_13", "imagenet/n02930766_7"]}


def test_partimagenet_tells_what_is_missing(tmp_path):
    source = write_partimagenet(tmp_path / "source")
    shutil.rmtree(source / "val")
    missing = r"val/n02930766/n02930766_7\.JPEG: not there; copy it from ImageNet"
    with pytest.raises(BuildError, match=missing):
        build("partimagenet/seg", source, tmp_path / "data")
    text = (source / "train.json").read_text()
    (source / "train.json").write_text(text.replace("n02814533_12.JPEG", "../12.JPEG"))
    with pytest.raises(SourceError, match=r"train\.json: image '12\.JPEG' is none of ImageNet"):
        build("partimagenet/seg", source, tmp_path / "data")
    (source / "train.json").write_text(text.replace("Car Tier", "Car"))
    with pytest.raises(SourceError, match="category 'Car' is not a kind and its part"):
        build("partimagenet/seg", source, tmp_path / "data")
    with pytest.raises(SourceError, match=r"no train\.json"):
        build("partimagenet/seg", tmp_path, tmp_path / "data")


def write_pascal_part(folder: Path) -> Path:
    voc = folder / "VOCdevkit/VOC2010"
    for path in (folder / "Annotations_Part", voc / "JPEGImages", voc / "ImageSets/Main"):
        path.mkdir(parents=True)
    part = ["part_name", "mask"]
    thing = ["class", "class_ind", "mask", "parts"]
    dog = structs(part, ("lfuleg", box(1, 9, 2)), ("rear", box(3, 1, 2)), ("lebrow", box(4, 4, 1)))
    bare = (np.zeros((0, 0)),)
    objects = structs(
        thing,
        ("dog", 12.0, box(0, 0, 16), dog),
        ("pottedplant", 16.0, box(20, 20, 9), structs(part, ("pot", box(20, 26, 3)))),
        ("dog", 12.0, box(0, 0, 0), structs(part, ("rblleg", box(40, 9, 3)))),
        ("boat", 4.0, box(50, 0, 5), *bare),
    )
    for name, things in (("2008_000002", objects), ("2010_006086", structs(thing))):
        anno = structs(["imname", "objects"], (name, things))
        path = folder / "Annotations_Part" / f"{name}.mat"
        scipy.io.savemat(path, {"anno": anno}, do_compression=True)
        (voc / "JPEGImages" / f"{name}.jpg").write_bytes(jpeg())
    (voc / "ImageSets/Main/train.txt").write_text("2008_000002\n")
    (voc / "ImageSets/Main/val.txt").write_text("2010_006086  1\n2008_000002 -1\n")
    return folder


def test_pascal_part_merges_parts_and_knows_their_objects(tmp_path):
    source = write_pascal_part(tmp_path / "source")
    folder = build("pascal_part", source, tmp_path / "data", splits=("train",))
    (record,) = read_records(folder, "train")
    assert record.image_id == "voc/2008_000002"
    assert [(t.category, t.parent, t.granularity) for t in record.targets] == [
        ("dog", -1, "object"),
        ("leg", 0, "part"),
        ("ear", 0, "part"),
        ("potted plant", -1, "object"),
        ("pot", 3, "part"),
        ("leg", -1, "part"),
        ("boat", -1, "object"),
    ]
    assert [(e.id, e.text, e.targets, e.granularity) for e in record.expressions] == [
        ("2008_000002/dog", "all dog", (0,), "category"),
        ("2008_000002/dog:leg", "leg of dog", (1, 5), "part"),
        ("2008_000002/dog:ear", "ear of dog", (2,), "part"),
        ("2008_000002/potted plant", "all potted plant", (3,), "category"),
        ("2008_000002/potted plant:pot", "pot of potted plant", (4,), "part"),
        ("2008_000002/boat", "all boat", (6,), "category"),
    ]
    np.testing.assert_array_equal(record.mask([1, 5]), box(1, 9, 2) | box(40, 9, 3))
    report = (folder / REPORT).read_text()
    assert f"{pascal_part.NO_NAME}: 1\n" in report
    assert f"{pascal_part.EMPTY}: 1\n" in report
    held_out = json.loads((folder / HELD_OUT).read_text())
    assert held_out == {"val": ["voc/2008_000002", "voc/2010_006086"]}


@pytest.mark.parametrize(
    ("kind", "part", "name"),
    [
        ("cat", "lfpa", "paw"),
        ("person", "rear", "ear"),
        ("person", "llleg", "leg"),
        ("person", "hair", "hair"),
        ("bicycle", "chainwheel", "wheel"),
        ("car", "fliplate", "license plate"),
        ("bus", "leftmirror", "mirror"),
        ("aeroplane", "engine_1", ""),
        ("boat", "sail", ""),
    ],
)
def test_common_names_of_parts(kind, part, name):
    assert merged(kind, part) == name


def test_pascal_part_has_vlparts_93_names():
    names = {(kind, name) for kind, parts in pascal_part.PARTS.items() for name in parts}
    assert len(names) == 93


def test_pascal_part_tells_what_is_missing_or_damaged(tmp_path):
    source = write_pascal_part(tmp_path / "source")
    mat = source / "Annotations_Part/2008_000002.mat"
    sound = mat.read_bytes()
    mat.write_bytes(sound[:300])
    with pytest.raises(BuildError, match=r"2008_000002\.mat: no MAT-file of plain data"):
        build("pascal_part", source, tmp_path / "data")
    scipy.io.savemat(mat, {"anno": structs(["imname"], ("a",))})
    with pytest.raises(BuildError, match=r"02\.mat: not PASCAL-Part's \(KeyError: 'objects'\)"):
        build("pascal_part", source, tmp_path / "data")
    mat.write_bytes(sound)
    image = source / "VOCdevkit/VOC2010/JPEGImages/2008_000002.jpg"
    image.write_bytes(jpeg(HEIGHT, WIDTH + 1))
    with pytest.raises(BuildError, match=r"a mask of \(48, 64\) for an image of \(48, 65\)"):
        build("pascal_part", source, tmp_path / "data")
    image.unlink()
    with pytest.raises(BuildError, match=r"2008_000002\.jpg: not there"):
        build("pascal_part", source, tmp_path / "data")
    lists = source / "VOCdevkit/VOC2010/ImageSets/Main"
    (lists / "train.txt").write_text("../../a\n")
    with pytest.raises(SourceError, match=r"'\.\./\.\./a' is no image of VOC"):
        build("pascal_part", source, tmp_path / "data")
    (lists / "train.txt").unlink()
    with pytest.raises(SourceError, match=r"train\.txt: not there; unpack VOC"):
        build("pascal_part", source, tmp_path / "data")
    shutil.rmtree(source / "VOCdevkit")
    with pytest.raises(SourceError, match="no JPEGImages there; unpack VOC"):
        build("pascal_part", source, tmp_path / "data")
    shutil.rmtree(source / "Annotations_Part")
    with pytest.raises(SourceError, match="Annotations_Part: not there"):
        build("pascal_part", source, tmp_path / "data")
