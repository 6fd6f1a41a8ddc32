"""Names that macOS decomposes (NFD) meet the names of other systems (NFC), wherever files are paired."""

import json
import pickle
import unicodedata
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from input_pipeline.building.conversion import Plan, SourceError
from input_pipeline.datasets import coca, d3, lip, saliency
from input_pipeline.datasets.ade20k import full as ade20k_full
from input_pipeline.formats import coco_json
from input_pipeline.formats.label_maps import list_files, pair_files
from refseg_jax.images.files import spelled
from tests.input_pipeline.datasets.d3_test import tables
from tests.input_pipeline.datasets.refcoco_files import HEIGHT, WIDTH
from tests.input_pipeline.formats.map_files import write_image, write_map

#: The first name is composed, the second decomposed.
NAMES = tuple(unicodedata.normalize(form, "größe é") for form in ("NFC", "NFD"))
EITHER = pytest.mark.parametrize(("first", "second"), [NAMES, NAMES[::-1]], ids=["NFC", "NFD"])

_MAP = np.zeros((HEIGHT, WIDTH), np.uint8)


def _saliency(source: Path, image: str, other: str) -> Plan:
    write_image(source / "images" / f"{image}.jpg", HEIGHT, WIDTH)
    write_map(source / "ground_truth_mask" / f"{other}.png", _MAP)
    return next(c for c in saliency.CONVERSIONS if c.name == "ecssd").read_plan(source)


def _lip(source: Path, image: str, other: str) -> Plan:
    write_image(source / "train_images" / f"{image}.jpg", HEIGHT, WIDTH)
    write_map(source / "train_segmentations" / f"{other}.png", _MAP)
    return lip.read_plan(source)


def _coca(source: Path, image: str, other: str) -> Plan:
    """The groups' folders, too."""
    write_image(source / "image" / image / f"{image}.jpg", HEIGHT, WIDTH)
    write_map(source / "binary" / other / f"{other}.png", _MAP)
    return coca.read_plan(source)


def _ade20k(source: Path, image: str, other: str) -> Plan:
    root = source / "images" / "ADE" / "training"
    write_image(root / f"{image}.jpg", HEIGHT, WIDTH)
    write_map(root / f"{other}_seg.png", np.zeros((HEIGHT, WIDTH, 3)))
    write_map(root / f"{other}_parts_1.png", np.zeros((HEIGHT, WIDTH, 3)))
    (root / f"{other}.json").write_text("{}")
    # A folder of the image's name holds its instances, and no images.
    write_image(root / other / "instance.jpg", HEIGHT, WIDTH)
    plan = ade20k_full.read_plan(source)
    assert all(len(item.maps) == 2 for item in plan.splits["train"])
    return plan


def _coco(source: Path, image: str, other: str) -> Plan:
    region = [[2, 2, 9, 2, 9, 9]]
    stored = {
        "images": [{"id": 7, "file_name": f"{other}.jpg", "height": HEIGHT, "width": WIDTH}],
        "annotations": [{"id": 1, "image_id": 7, "category_id": 3, "segmentation": region}],
        "categories": [{"id": 3, "name": "car"}],
    }
    write_image(source / f"{image}.jpg", HEIGHT, WIDTH)
    file = source / "train.json"
    file.write_text(json.dumps(stored))
    return coco_json.read_plan(
        {"train": file},
        lambda name: (name, ""),
        locate=lambda split, name: source / name,
        image_id=lambda name: name,
        cure="copy it",
    )


def _d3(source: Path, image: str, other: str) -> Plan:
    stored: dict[str, dict[int, dict[str, Any]]] = tables()
    for number, one in stored["images"].items():
        one["file_name"] = f"{other}/{other} {number}.jpg"
        write_image(source / "d3_images" / image / f"{image} {number}.jpg", HEIGHT, WIDTH)
    (source / "d3_pkl").mkdir()
    for name, table in stored.items():
        (source / "d3_pkl" / f"{name}.pkl").write_bytes(pickle.dumps(table))
    return next(c for c in d3.CONVERSIONS if c.name == "d3/pres").read_plan(source)


PAIRS: dict[str, Callable[[Path, str, str], Plan]] = {
    "saliency": _saliency,
    "lip": _lip,
    "coca": _coca,
    "ade20k": _ade20k,
    "coco": _coco,
    "d3": _d3,
}


@EITHER
@pytest.mark.parametrize("layout", PAIRS)
def test_files_are_paired_in_either_spelling(
    tmp_path: Path, layout: str, first: str, second: str
) -> None:
    plan = PAIRS[layout](tmp_path, first, second)
    assert plan.problems == ()
    assert any(plan.splits.values())


@EITHER
def test_ids_do_not_depend_on_the_spelling(tmp_path: Path, first: str, second: str) -> None:
    (item,) = _saliency(tmp_path, first, second).splits["test"]
    assert NAMES[0] in item.image_id and item.key == NAMES[0]


def test_two_files_of_one_name_are_told(tmp_path: Path) -> None:
    for name in NAMES:
        write_image(tmp_path / f"{name}.jpg", HEIGHT, WIDTH)
    problems: list[str] = []
    assert list(list_files(tmp_path, (".jpg",), problems, cure="rename it")) == [NAMES[0]]
    (line,) = problems
    assert "has the same name; rename it" in line
    write_map(tmp_path / f"{NAMES[1]}.png", _MAP)
    assert len(pair_files(tmp_path, tmp_path, cure="x").found) == 1
    for name in NAMES:
        (tmp_path / "image" / name).mkdir(parents=True)
    (tmp_path / "binary").mkdir()
    with pytest.raises(SourceError, match="has the same name"):
        coca.read_plan(tmp_path)


@EITHER
def test_a_path_in_the_spelling_in_which_it_is_there(
    tmp_path: Path, first: str, second: str
) -> None:
    (tmp_path / first).write_text("x")
    assert spelled(tmp_path, second) == tmp_path / first
    assert spelled(tmp_path, "none") == tmp_path / "none"
