import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from input_pipeline.building.builder import HELD_OUT, BuildError
from input_pipeline.building.conversion import SourceError
from input_pipeline.building.published import REPORT, builder_of
from input_pipeline.datasets import phrasecut
from input_pipeline.formats.regions import TINY
from tests.input_pipeline.datasets.refcoco_files import HEIGHT, WIDTH, jpeg, read_records

(CONVERSION,) = phrasecut.CONVERSIONS


def square(x: int, y: int, side: int) -> list[list[float]]:
    return [[x, y], [x + side, y], [x + side, y + side], [x, y + side]]


def task(image_id: int, ann_ids: list[int], phrase: str, polygons: Any, **more: Any) -> dict:
    """An entry of a refer file, with all its fields."""
    structure = {
        "name": "car",
        "attributes": ["red"],
        "relation_ids": [7],
        "relation_descriptions": [["on", "road"]],
        "type": "attribute",
    }
    return {
        "task_id": "__".join(map(str, [image_id, *ann_ids])),
        "image_id": image_id,
        "ann_ids": ann_ids,
        "instance_boxes": [[0, 0, 1, 1] for _ in polygons],
        "Polygons": polygons,
        "phrase": phrase,
        "phrase_structure": structure,
        **more,
    }


OVERLAPPING = [square(4, 4, 20), square(14, 14, 20)]

REFER = {
    "train": [
        task(1, [10, 11], "red cars", [OVERLAPPING, [square(40, 4, 8)]]),
        task(1, [11], " left car ", [[square(40, 4, 8), [[1, 1], [2, 2]]]]),
        task(2, [20], "a tree on café", [[square(0, 0, 9)]]),
    ],
    "val": [task(3, [30], "sky", [[square(0, 0, 5)]], phrase_structure=None)],
    "miniv": [task(4, [40], "sky", [[square(0, 0, 5)]])],
}
SPLIT_OF = {1: "train", 2: "train", 3: "val", 4: "miniv", 5: "test"}


def write_source(folder: Path, refer: dict[str, list[Any]] | None = None) -> Path:
    images = folder / "images"
    images.mkdir(parents=True)
    listed = [
        {
            "image_id": i,
            "coco_id": 391895 if i == 2 else None,
            "flickr_id": None,
            "url": f"https://cs.stanford.edu/people/rak248/VG_100K/{i}.jpg",
            "width": WIDTH,
            "height": HEIGHT,
            "split": split,
        }
        for i, split in SPLIT_OF.items()
    ]
    (folder / "image_data_split3000.json").write_text(json.dumps(listed))
    for split, tasks in (REFER if refer is None else refer).items():
        (folder / f"refer_{split}.json").write_text(json.dumps(tasks))
    for i in (1, 2, 3, 4):
        (images / f"{i}.jpg").write_bytes(jpeg(seed=i))
    return folder


def build(source: Path, data_dir: Path, **options: Any) -> Path:
    return builder_of(CONVERSION, source_dir=source, data_dir=data_dir, **options).build()


def box(x: int, y: int, side: int) -> np.ndarray:
    mask = np.zeros((HEIGHT, WIDTH), np.uint8)
    mask[y : y + side, x : x + side] = 1
    return mask


def test_a_phrase_means_the_union_of_its_instances(tmp_path):
    folder = build(write_source(tmp_path / "source"), tmp_path / "data")
    first, second = read_records(folder, "train")
    assert (first.image_id, second.image_id) == ("vg/1", "391895")
    assert (first.file_name, first.source) == ("1.jpg", "phrasecut")
    assert first.image == (tmp_path / "source/images/1.jpg").read_bytes()
    assert [(e.id, e.text, e.targets, e.granularity, e.referent) for e in first.expressions] == [
        ("1__10__11", "red cars", (0, 1), "multi", 0),
        ("1__11", "left car", (1,), "object", 1),
    ]
    assert [t.category for t in first.targets] == ["car", "car"]
    overlapping = box(4, 4, 20) | box(14, 14, 20)
    np.testing.assert_array_equal(first.mask([0]), overlapping)
    np.testing.assert_array_equal(first.mask([0, 1]), overlapping | box(40, 4, 8))
    assert json.loads(first.metadata) == {"vg_id": 1, "types": ["attribute", "attribute"]}
    assert [e.text for e in second.expressions] == ["a tree on café"]
    (val,) = read_records(folder, "val")
    assert (val.targets[0].category, json.loads(val.metadata)["types"]) == ("", [""])
    report = (folder / REPORT).read_text()
    assert "train: 3 expressions; published: 310,816" in report
    assert f"{TINY}: 1" in report


def test_the_images_of_all_evaluation_splits_are_held_out(tmp_path):
    source = write_source(tmp_path / "source")
    folder = build(source, tmp_path / "data", splits=("train",))
    held_out = json.loads((folder / HELD_OUT).read_text())
    assert held_out == {"val": ["vg/3"], "miniv": ["vg/4"], "test": ["vg/5"]}


def test_regions_that_are_none_are_counted_and_left_out(tmp_path):
    tasks = [
        task(1, [1], "a line", [[[[1, 1], [5, 5]]]]),
        task(1, [2], "nothing", []),
        task(1, [3], "a sliver and a square", [[square(0, 0, 4)], [[[9, 9], [9, 9], [9, 9]]]]),
        task(1, [4], "  ", [[square(0, 0, 4)]]),
    ]
    folder = build(write_source(tmp_path / "source", {"train": tasks}), tmp_path / "data")
    (record,) = read_records(folder, "train")
    assert [e.text for e in record.expressions] == ["a sliver and a square"]
    np.testing.assert_array_equal(record.mask([0]), box(0, 0, 4))
    report = (folder / REPORT).read_text()
    for note, number in (
        (phrasecut.NO_REGION, 2),
        (phrasecut.NO_INSTANCE, 2),
        (phrasecut.NO_WORD, 1),
    ):
        assert f"{note}: {number}\n" in report


def test_images_may_lie_in_the_folders_of_visual_genome(tmp_path):
    source = write_source(tmp_path / "source")
    shutil.move(source / "images", source / "VG_100K")
    (source / "VG_100K_2").mkdir()
    shutil.move(source / "VG_100K/2.jpg", source / "VG_100K_2/2.jpg")
    folder = build(source, tmp_path / "data")
    assert len(read_records(folder, "train")) == 2


def unknown_image(source: Path) -> str:
    tasks = [*REFER["val"], task(9, [1], "sky", [[square(0, 0, 5)]])]
    (source / "refer_val.json").write_text(json.dumps(tasks))
    return f"{source}/refer_val.json: image 9 is not in image_data_split3000.json"


def no_image(source: Path) -> str:
    (source / "images/2.jpg").unlink()
    return f"{source}/images/2.jpg: not there; copy it from Visual Genome 1.2"


def damaged_image(source: Path) -> str:
    (source / "images/2.jpg").write_bytes(jpeg()[:-500])
    return f"{source}/images/2.jpg: the image is damaged"


def other_image(source: Path) -> str:
    (source / "images/2.jpg").write_bytes(jpeg(HEIGHT, WIDTH + 1))
    return f"{source}/images/2.jpg: is 65 x 48, its annotations are for 64 x 48"


def far_away(source: Path) -> str:
    tasks = [*REFER["train"], task(2, [9], "x", [[[[1, 1], [1e12, 1], [3, 3]]]])]
    (source / "refer_train.json").write_text(json.dumps(tasks))
    return f"{source}/images/2.jpg: phrase 2__9: a polygon has the coordinate 1e+12"


def no_points(source: Path) -> str:
    tasks = [*REFER["train"], task(2, [9], "x", [[[1, 2, 3, 4, 5, 6]]])]
    (source / "refer_train.json").write_text(json.dumps(tasks))
    return f"{source}/images/2.jpg: phrase 2__9: a polygon is no list of points"


def no_polygon(source: Path) -> str:
    tasks = [*REFER["train"], task(2, [9], "x", [[7]])]
    (source / "refer_train.json").write_text(json.dumps(tasks))
    return f"{source}/images/2.jpg: phrase 2__9: a polygon is no list of points"


@pytest.mark.parametrize(
    "damage", [unknown_image, no_image, damaged_image, other_image, far_away, no_points, no_polygon]
)
def test_a_problem_fails_the_build_or_is_skipped(tmp_path, damage):
    source = write_source(tmp_path / "source")
    line = damage(source)
    with pytest.raises(BuildError) as caught:
        build(source, tmp_path / "data")
    assert str(caught.value).splitlines()[1].startswith(line)
    folder = build(source, tmp_path / "data", skip_missing=True)
    assert line in (folder / REPORT).read_text()
    assert read_records(folder, "train")[0].image_id == "vg/1"


@pytest.mark.parametrize(
    ("name", "text", "reason"),
    [
        ("image_data_split3000.json", "[{}]", "entry 0 is not PhraseCut's (KeyError: 'coco_id')"),
        ("image_data_split3000.json", '[{"coco_id": ', "damaged JSON"),
        ("refer_train.json", '[{"task_id": "a"}]', "entry 0 is not PhraseCut's"),
        ("refer_train.json", json.dumps([task(1, [1], "x", [7])]), "Polygons is no list of lists"),
        ("refer_train.json", json.dumps(REFER["train"])[:-9], "damaged JSON"),
    ],
)
def test_a_file_that_is_none_is_one_line(tmp_path, name, text, reason):
    source = write_source(tmp_path / "source")
    (source / name).write_text(text)
    with pytest.raises(SourceError) as caught:
        build(source, tmp_path / "data")
    assert str(caught.value).startswith(f"{source / name}: ")
    assert reason in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not list((tmp_path / "data").rglob("1.0.0"))


def test_what_is_missing_is_named_with_its_cure(tmp_path):
    source = write_source(tmp_path / "source", {})
    with pytest.raises(SourceError, match=r"no refer_train\.json .*the folder VGPhraseCut_v0"):
        build(source, tmp_path / "data")
    shutil.rmtree(source / "images")
    with pytest.raises(SourceError, match="no folder of images; put"):
        build(source, tmp_path / "data")
    (source / "image_data_split3000.json").unlink()
    with pytest.raises(SourceError, match=r"image_data_split3000\.json: not there"):
        build(source, tmp_path / "data")
