import json
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pycocotools import mask as coco_mask

from input_pipeline.building.builder import HELD_OUT, BuildError
from input_pipeline.building.conversion import SourceError
from input_pipeline.building.published import REPORT
from input_pipeline.datasets.d3 import CONVERSIONS
from input_pipeline.rows import make_rows
from input_pipeline.sources import ExpressionTable, RecordSource
from refseg_jax.unpickling import PickleError
from tests.input_pipeline.datasets.refcoco_files import jpeg, read_records
from tests.input_pipeline.datasets.refer_files import (
    HEIGHT,
    WIDTH,
    build,
    config_of,
    square_mask,
    write_jpegs,
)

FULL, PRES, ABS = (config_of(CONVERSIONS, f"d3/{kind}") for kind in ("full", "pres", "abs"))
PRES_JSON = config_of(CONVERSIONS, "d3/pres_json")

#: Images by group; sentences by group, whether they are of something absent.
IMAGES = {0: (1, "a/0.jpg"), 1: (1, "a/1.jpg"), 2: (1, "a/2.jpg"), 3: (2, "3.jpg")}
SENTENCES = {
    1: (1, "a dog on a leash", False),
    2: (1, "a dog without a leash", True),
    3: (2, "a clown", False),
}
#: annotation: image, sentences, where.
ANNOTATIONS = {
    1: (0, [1], [(2, 2)]),
    2: (0, [1, 2], [(30, 30), (34, 34)]),
    3: (1, [2], [(5, 5)]),
    # Of another group: not asked for in this image.
    4: (0, [3], [(50, 5)]),
    5: (3, [3], [(8, 8)]),
}


def rle(*corners: tuple[int, int]) -> Any:
    return [coco_mask.encode(np.asfortranarray(square_mask(corner))) for corner in corners]


def tables() -> dict[str, dict[int, dict[str, Any]]]:
    """What the four pickles hold, areas and boxes as pycocotools gives them."""
    annotations = {
        i: {
            "id": i,
            "sent_id": sentences,
            "segmentation": rle(*corners),
            "area": coco_mask.area(rle(*corners)),
            "bbox": list(coco_mask.toBbox(rle(*corners))),
            "iscrowd": 0,
            "image_id": image,
            "group_id": IMAGES[image][0],
        }
        for i, (image, sentences, corners) in ANNOTATIONS.items()
    }
    return {
        "annotations": annotations,
        "images": {
            i: {
                "id": i,
                "file_name": name,
                "height": HEIGHT,
                "width": np.int64(WIDTH),
                "flickr_url": "",
                "anno_id": [a for a, stored in annotations.items() if stored["image_id"] == i],
                "group_id": group,
                "license": "",
            }
            for i, (group, name) in IMAGES.items()
        },
        "sentences": {
            i: {
                "id": i,
                "anno_id": [a for a, stored in annotations.items() if i in stored["sent_id"]],
                "group_id": [group],
                "is_negative": absent,
                "raw_sent": text,
                "raw_sent_zh": "狗",
            }
            for i, (group, text, absent) in SENTENCES.items()
        },
        "groups": {
            g: {
                "id": g,
                "pos_sent_id": [i for i, s in SENTENCES.items() if s[0] == g],
                "inner_sent_id": [i for i, s in SENTENCES.items() if s[0] == g],
                "outer_sent_id": [],
                "img_id": [i for i, image in IMAGES.items() if image[0] == g],
                "scene": ["outdoor"],
                "group_name": name,
                "group_name_zh": "狗",
            }
            for g, name in {1: "dog", 2: "circus"}.items()
        },
    }


def write_pickles(folder: Path, stored: dict[str, dict[int, dict[str, Any]]]) -> None:
    (folder / "d3_pkl").mkdir(parents=True, exist_ok=True)
    for name, table in stored.items():
        (folder / f"d3_pkl/{name}.pkl").write_bytes(pickle.dumps(table))


def write_d3(folder: Path) -> Path:
    write_pickles(folder, tables())
    write_jpegs(folder / "d3_images", [name for _, name in IMAGES.values()])
    return folder


def write_json(folder: Path) -> Path:
    """COCO's form of `pres`: an annotation for each of its sentences."""
    annotations = []
    for image, sentences, corners in ANNOTATIONS.values():
        counts = [{**part, "counts": part["counts"].decode()} for part in rle(*corners)]
        annotations += [
            {
                "id": len(annotations) + k,
                "image_id": image,
                "category_id": s,
                "segmentation": counts,
            }
            for k, s in enumerate(i for i in sentences if not SENTENCES[i][2])
        ]
    size = {"height": HEIGHT, "width": WIDTH}
    stored = {
        "images": [{"id": i, "file_name": name, **size} for i, (_, name) in IMAGES.items()],
        "annotations": annotations,
        "categories": [{"id": i, "name": s[1]} for i, s in SENTENCES.items() if not s[2]],
    }
    (folder / "d3_json").mkdir(parents=True)
    (folder / "d3_json/d3_pres_annotations.json").write_text(json.dumps(stored))
    write_jpegs(folder / "d3_images", [name for _, name in IMAGES.values()])
    return folder


def test_every_image_is_asked_for_every_description_of_its_group(tmp_path: Path):
    folder = build(FULL, write_d3(tmp_path / "source"), tmp_path / "data")
    records = read_records(folder, "test")
    assert [r.image_id for r in records] == ["d3/0", "d3/1", "d3/2", "d3/3"]
    asked = {e.id: (e.text, len(e.targets), e.group) for r in records for e in r.expressions}
    assert asked == {
        "0-1": ("a dog on a leash", 2, "1-dog"),
        "0-2": ("a dog without a leash", 1, "1-dog"),
        "1-1": ("a dog on a leash", 0, "1-dog"),
        "1-2": ("a dog without a leash", 1, "1-dog"),
        "2-1": ("a dog on a leash", 0, "1-dog"),
        "2-2": ("a dog without a leash", 0, "1-dog"),
        "3-3": ("a clown", 1, "2-circus"),
    }
    assert {e.granularity for r in records for e in r.expressions} == {"group"}
    first = records[0]
    dogs = square_mask((2, 2), (30, 30), (34, 34))
    np.testing.assert_array_equal(first.mask(first.expressions[0].targets), dogs)
    assert not records[2].mask(records[2].expressions[0].targets).any()
    held_out = json.loads((folder / HELD_OUT).read_text())
    assert held_out == {"test": ["d3/0", "d3/1", "d3/2", "d3/3"]}


@pytest.mark.parametrize(
    ("conversion", "ids", "note"),
    [
        (PRES, ["0-1", "1-1", "2-1", "3-3"], "descriptions (D3 has 316): 2"),
        (ABS, ["0-2", "1-2", "2-2"], "descriptions (D3 has 106): 1"),
    ],
)
def test_descriptions_of_the_present_and_of_the_absent(
    conversion: Any, ids: list[str], note: str, tmp_path: Path
):
    folder = build(conversion, write_d3(tmp_path / "source"), tmp_path / "data")
    records = read_records(folder, "test")
    assert [e.id for r in records for e in r.expressions] == ids
    assert note in (folder / REPORT).read_text()


def test_a_row_holds_images_of_one_group_with_one_description(tmp_path: Path):
    build(FULL, write_d3(tmp_path / "source"), tmp_path / "data")
    source = RecordSource(str(tmp_path / "data"), "d3/full", "test")
    rows = make_rows(ExpressionTable.of(source), "group", ("group",), pairs=1, images=2)
    read = []
    for row in range(len(rows)):
        records, positions = rows.entries(row)
        found = [(source[int(r)], int(k)) for r, k in zip(records, positions, strict=True)]
        texts = {record.expressions[k].text for record, k in found}
        assert len(texts) == 1
        read.append(([record.image_id for record, _ in found], texts.pop()))
    assert read == [
        (["d3/0", "d3/1"], "a dog on a leash"),
        (["d3/1", "d3/2"], "a dog on a leash"),
        (["d3/0", "d3/1"], "a dog without a leash"),
        (["d3/1", "d3/2"], "a dog without a leash"),
        (["d3/3"], "a clown"),
    ]
    assert rows.reused.tolist() == [0, 1, 0, 1, 0]


def test_the_report_compares_with_the_paper(tmp_path: Path):
    folder = build(PRES, write_d3(tmp_path / "source"), tmp_path / "data")
    report = (folder / REPORT).read_text()
    assert "test: 2 groups; published: 106\ntest: 4 expressions; published: 31,524\n" in report


def test_the_json_form_has_what_is_satisfied(tmp_path: Path):
    folder = build(PRES_JSON, write_json(tmp_path / "source"), tmp_path / "data")
    records = read_records(folder, "test")
    assert [(r.image_id, e.id, e.text, e.granularity) for r in records for e in r.expressions] == [
        ("d3/0", "0-1", "a dog on a leash", "multi"),
        ("d3/0", "0-3", "a clown", "object"),
        ("d3/3", "3-3", "a clown", "object"),
    ]
    dogs = square_mask((2, 2), (30, 30), (34, 34))
    np.testing.assert_array_equal(records[0].mask(records[0].expressions[0].targets), dogs)
    report = (folder / REPORT).read_text()
    assert "images without any of the descriptions, left out: 2" in report
    assert len(json.loads((folder / HELD_OUT).read_text())["test"]) == 4


def other_rle(source: Path) -> str:
    stored = tables()
    stored["annotations"][3]["segmentation"][0]["size"] = [5, 5]
    write_pickles(source, stored)
    return "a/1.jpg: annotation 3: the RLE's size is [5, 5]"


def missing_image(source: Path) -> str:
    (source / "d3_images/a/1.jpg").unlink()
    return "d3_images: no 'a/1.jpg' there; unpack d3_images.zip again"


def damaged_image(source: Path) -> str:
    path = source / "d3_images/a/1.jpg"
    path.write_bytes(path.read_bytes()[:-500])
    return "a/1.jpg: the image is damaged"


def hostile_name(source: Path) -> str:
    (source / "1.jpg").write_bytes(jpeg(HEIGHT, WIDTH))
    stored = tables()
    stored["images"][1]["file_name"] = "../1.jpg"
    write_pickles(source, stored)
    return "d3_images: no '../1.jpg' there"


@pytest.mark.parametrize("damage", [other_rle, missing_image, damaged_image, hostile_name])
def test_what_cannot_be_read_is_named_and_the_rest_is_built(
    damage: Callable[[Path], str], tmp_path: Path
):
    source = write_d3(tmp_path / "source")
    line = damage(source)
    with pytest.raises(BuildError) as caught:
        build(FULL, source, tmp_path / "data")
    assert line in str(caught.value)
    folder = build(FULL, source, tmp_path / "data", skip_missing=True)
    ids = [e.id for r in read_records(folder, "test") for e in r.expressions]
    assert "1-2" not in ids
    assert {"0-1", "0-2", "2-1", "3-3"} <= set(ids)
    assert line in (folder / REPORT).read_text()


def no_file(source: Path) -> str:
    (source / "d3_pkl/groups.pkl").unlink()
    return r"groups\.pkl: not there; --source_dir must be the folder that holds d3_pkl"


def no_dict(source: Path) -> str:
    (source / "d3_pkl/groups.pkl").write_bytes(pickle.dumps([1]))
    return r"groups\.pkl: holds no dict by id"


def other_fields(source: Path) -> str:
    stored = tables()
    del stored["images"][2]["group_id"]
    write_pickles(source, stored)
    return r"d3_pkl: image 2 is not as D3 has it \(KeyError: 'group_id'\); use the four files"


def annotation_of_another_image(source: Path) -> str:
    stored = tables()
    stored["annotations"][3]["image_id"] = 2
    write_pickles(source, stored)
    return r"image 1 is not as D3 has it \(ValueError: annotation 3 is of image 2\)"


class Hostile:
    def __reduce__(self):
        return os.system, ("true",)


def hostile(source: Path) -> str:
    (source / "d3_pkl/images.pkl").write_bytes(pickle.dumps({1: Hostile()}))
    return r"images\.pkl: refused, it asks for 'posix\.system'"


@pytest.mark.parametrize(
    "damage", [no_file, no_dict, other_fields, annotation_of_another_image, hostile]
)
def test_pickles_that_cannot_be_used_are_one_line(damage: Callable[[Path], str], tmp_path: Path):
    source = write_d3(tmp_path / "source")
    message = damage(source)
    with pytest.raises((SourceError, PickleError), match=message) as caught:
        build(FULL, source, tmp_path / "data", skip_missing=True)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda text: text[:-9], r"annotations\.json: damaged JSON"),
        (lambda text: text.replace("segmentation", "mask"), r"annotations .* \(KeyError: 'segm"),
        (lambda text: text.replace('"image_id": 3', '"image_id": 9'), r"\(KeyError: 9\); use the"),
    ],
)
def test_a_json_file_that_cannot_be_used_is_one_line(
    change: Callable[[str], str], message: str, tmp_path: Path
):
    source = write_json(tmp_path / "source")
    file = source / "d3_json/d3_pres_annotations.json"
    file.write_text(change(file.read_text()))
    with pytest.raises(SourceError, match=message):
        build(PRES_JSON, source, tmp_path / "data")
