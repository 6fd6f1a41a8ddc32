import json
import os
from pathlib import Path

import numpy as np
import pytest

from input_pipeline.building.builder import HELD_OUT, BuildError
from input_pipeline.building.conversion import SourceError
from input_pipeline.datasets.coca import CONVERSIONS as COCA
from input_pipeline.datasets.saliency import CONVERSIONS
from input_pipeline.rows import make_rows
from input_pipeline.sources import ExpressionTable, RecordSource
from tests.input_pipeline.datasets.refcoco_files import read_records
from tests.input_pipeline.formats.map_files import blocks, build, report, write_image, write_map

SETS = {conversion.name: conversion for conversion in CONVERSIONS}
(GROUPS,) = COCA

#: The release's folders of images and maps, by set and split.
FOLDERS = {
    ("ecssd", "test"): ("images", "ground_truth_mask"),
    ("duts", "train"): ("DUTS-TR/DUTS-TR-Image", "DUTS-TR/DUTS-TR-Mask"),
    ("duts", "test"): ("DUTS-TE/DUTS-TE-Image", "DUTS-TE/DUTS-TE-Mask"),
    ("sod", "test"): ("images", "masks"),
    ("pascal_s", "test"): ("datasets/imgs/pascal", "datasets/masks/pascal"),
}


def write_pair(source: Path, folders: tuple[str, str], name: str, levels: list[int]) -> np.ndarray:
    """An image and its map; returns the map."""
    write_image(source / folders[0] / f"{name}.jpg", 6, 12)
    return write_map(source / folders[1] / f"{name}.png", blocks(6, 12, levels))


@pytest.mark.parametrize("name", SETS)
def test_what_is_128_or_more_is_the_most_salient_object(tmp_path: Path, name: str):
    splits = [split for of, split in FOLDERS if of == name]
    for split in splits:
        levels = write_pair(
            tmp_path / "source", FOLDERS[name, split], f"{split}1", [0, 127, 128, 255]
        )
    folder = build(SETS[name], tmp_path / "source", tmp_path / "data")
    for split in splits:
        (record,) = read_records(folder, split)
        assert (record.image_id, record.source) == (f"{name}/{split}1", name)
        assert [(t.category, t.granularity) for t in record.targets] == [
            ("salient object", "object")
        ]
        np.testing.assert_array_equal(record.mask([0]), levels >= 128)
        assert [(e.id, e.text, e.targets, e.granularity) for e in record.expressions] == [
            (f"{split}1", "the most salient object", (0,), "salient")
        ]
    held = json.loads((folder / HELD_OUT).read_text())
    assert held == {"test": [f"{name}/test1"]}
    lines = report(folder)
    assert f"maps with other values than 0 and 255, cut at 128: {len(splits)}" in lines
    assert any(line.startswith("test: 1 images; published: ") for line in lines)


@pytest.mark.parametrize(
    "folders", [("Image", "Mask"), ("Imgs", "GT"), ("image", "mask"), ("Imgs", "Imgs")]
)
def test_copies_with_other_names_of_folders(tmp_path: Path, folders: tuple[str, str]):
    write_pair(tmp_path, folders, "0001", [0, 255])
    plan = SETS["pascal_s"].read_plan(tmp_path)
    assert [item.image_id for item in plan.splits["test"]] == ["pascal_s/0001"]
    assert not plan.problems


def test_a_map_that_stays_below_the_threshold_has_no_target(tmp_path: Path):
    write_pair(tmp_path / "source", FOLDERS["pascal_s", "test"], "1", [0, 100])
    write_pair(tmp_path / "source", FOLDERS["pascal_s", "test"], "2", [0, 255])
    folder = build(SETS["pascal_s"], tmp_path / "source", tmp_path / "data")
    none, some = read_records(folder, "test")
    assert (none.targets, none.expressions[0].targets) == ((), ())
    assert (none.expressions[0].granularity, some.expressions[0].granularity) == ("none", "salient")
    assert "maps of which nothing reaches 128, kept without a target: 1" in report(folder)
    assert "maps with other values than 0 and 255, cut at 128: 1" in report(folder)


def test_maps_of_0_and_1_are_refused(tmp_path: Path):
    write_pair(tmp_path / "source", FOLDERS["ecssd", "test"], "0001", [0, 1])
    with pytest.raises(BuildError, match=r"0001\.png: holds 0 and 1 instead of 0\.\.255; copy it"):
        build(SETS["ecssd"], tmp_path / "source", tmp_path / "data")


def test_missing_and_wrong_files(tmp_path: Path):
    folders, source = FOLDERS["ecssd", "test"], tmp_path / "source"
    with pytest.raises(
        SourceError, match=r"--source_dir must hold images/\*\.jpg with ground_truth"
    ):
        SETS["ecssd"].read_plan(source)
    for name in ("0001", "0002", "0003"):
        write_pair(source, folders, name, [0, 255])
    (source / folders[1] / "0001.png").unlink()
    write_image(source / folders[0] / "0002.jpg", 6, 13)
    with pytest.raises(
        BuildError, match=r"0001\.png is not in .*; copy it from the release of ECSSD"
    ):
        build(SETS["ecssd"], source, tmp_path / "data")
    folder = build(SETS["ecssd"], source, tmp_path / "data", skip_missing=True)
    assert [r.image_id for r in read_records(folder, "test")] == ["ecssd/0003"]
    lines = report(folder)
    assert "left out: 2 problems" in lines
    assert any("0002.jpg: is 13 x 6, its annotations are for 12 x 6" in line for line in lines)


def test_every_folder_is_listed_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    for split in ("train", "test"):
        for name in range(3):
            write_pair(tmp_path, FOLDERS["duts", split], f"{split}{name}", [0, 255])
    listed: list[str] = []
    scandir = os.scandir

    def counted(path: str):
        listed.append(str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", counted)
    SETS["duts"].read_plan(tmp_path)
    assert len(listed) == len(set(listed)) == 4


def write_groups(source: Path) -> dict[str, np.ndarray]:
    """A group of ten images and one of three; returns the maps."""
    maps = {}
    for group, size in (("Accordion", 10), ("Rolling_pin", 3)):
        for number in range(size):
            folders = (f"image/{group}", f"binary/{group}")
            levels = [0] * (1 + number) + [255]
            maps[f"coca/{group}/{number}"] = write_pair(source, folders, str(number), levels)
    return maps


def test_groups_share_the_name_of_their_category(tmp_path: Path):
    maps = write_groups(tmp_path / "source")
    folder = build(GROUPS, tmp_path / "source", tmp_path / "data")
    records = read_records(folder, "test")
    assert [record.image_id for record in records] == list(maps)
    for record in records:
        np.testing.assert_array_equal(record.mask([0]), maps[record.image_id] == 255)
        (expression,) = record.expressions
        group = record.image_id.split("/")[1]
        assert expression.text == group.replace("_", " ")
        assert (expression.group, expression.granularity, expression.targets) == (
            group,
            "group",
            (0,),
        )
        assert expression.id == record.image_id.removeprefix("coca/")
    assert "test: 2 groups; published: 80" in report(folder)
    assert json.loads((folder / HELD_OUT).read_text()) == {"test": sorted(maps)}


def test_rows_of_groups(tmp_path: Path):
    write_groups(tmp_path / "source")
    build(GROUPS, tmp_path / "source", tmp_path / "data")
    source = RecordSource(str(tmp_path / "data"), "coca", "test")
    rows = make_rows(ExpressionTable.of(source), "group", ("group",), pairs=1, images=8)
    groups = []
    for row in range(len(rows)):
        records, positions = rows.entries(row)
        expressions = [
            source[int(r)].expressions[int(p)] for r, p in zip(records, positions, strict=True)
        ]
        assert len({(e.group, e.text) for e in expressions}) == 1
        groups.append((expressions[0].group, len(expressions)))
    assert sorted(groups) == [("Accordion", 8), ("Accordion", 8), ("Rolling_pin", 3)]
    # Of ten images, the second row repeats six.
    assert sorted(rows.reused.tolist()) == [0, 0, 6]


def test_groups_that_are_not_whole(tmp_path: Path):
    with pytest.raises(SourceError, match=r"--source_dir must hold image/<group>/\*\.jpg"):
        GROUPS.read_plan(tmp_path)
    write_groups(tmp_path)
    (tmp_path / "image" / "Zebra").mkdir()
    (tmp_path / "image" / "Accordion" / "7.jpg").unlink()
    plan = GROUPS.read_plan(tmp_path)
    assert len(plan.splits["test"]) == 12
    assert [line.partition(":")[0] for line in plan.problems] == [
        str(tmp_path / "binary" / "Accordion" / "7.png"),
        str(tmp_path / "binary" / "Zebra"),
    ]
