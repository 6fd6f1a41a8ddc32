import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pycocotools import mask as coco_mask

from input_pipeline.building.builder import HELD_OUT, BuildError
from input_pipeline.building.conversion import SourceError
from input_pipeline.building.published import REPORT
from input_pipeline.datasets.refcoco.grefcoco import CONVERSIONS
from input_pipeline.facts.published import facts_of
from tests.input_pipeline.datasets.refcoco_files import read_records
from tests.input_pipeline.datasets.refer_files import (
    HEIGHT,
    TRAIN2014,
    WIDTH,
    build,
    coco_name,
    config_of,
    square,
    square_mask,
    write_instances,
    write_jpegs,
)

UNC = config_of(CONVERSIONS, "grefcoco/unc")
PUBLISHED = facts_of("grefcoco/unc").published

ANNOTATIONS = [
    {"id": 10, "image_id": 320432, "segmentation": square(2, 2)},
    {"id": 11, "image_id": 320432, "segmentation": [*square(6, 6), [1, 1, 2, 2]]},
    {
        "id": 12,
        "image_id": 320432,
        "iscrowd": 1,
        "segmentation": {"size": [HEIGHT, WIDTH], "counts": [0, HEIGHT, HEIGHT * (WIDTH - 1)]},
    },
    {"id": 13, "image_id": 7, "segmentation": [[1, 1, 2, 2], [3, 3]]},
]


def ref(ref_id: int, image_id: int, ann_ids: Any, split: str, *said: tuple[int, str]):
    return {
        "ref_id": ref_id,
        "image_id": image_id,
        "split": split,
        "file_name": f"COCO_train2014_{image_id:012d}_1.jpg",
        "ann_id": ann_ids,
        "category_id": [3] if ann_ids != [-1] else [-1],
        "no_target": ann_ids == [-1],
        "sent_ids": [i for i, _ in said],
        "sentences": [
            {"sent_id": i, "sent": text, "raw": text.upper(), "tokens": []} for i, text in said
        ],
    }


REFS = [
    ref(1, 320432, [10, 11], "val", (1, "both squares"), (2, "all of them")),
    ref(2, 320432, [-1], "val", (3, "the circle"), (4, "a dog")),
    ref(3, 320432, [11], "testA", (5, "the lower one")),
    ref(4, 320432, [10, 12, 10], "testA", (6, "the upper one")),
    ref(5, 7, 10**9, "val", (7, "nothing of it")),
]


def write_source(folder: Path, refs: list[dict[str, Any]] | None = None) -> Path:
    (folder / "grefcoco").mkdir(parents=True)
    names = {i: coco_name(i) for i in (320432, 7)}
    write_instances(folder / "grefcoco/instances.json", names, ANNOTATIONS)
    write_jpegs(folder / TRAIN2014, list(names.values()))
    text = json.dumps(REFS[:4] if refs is None else refs)
    (folder / "grefcoco/grefs(unc).json").write_text(text)
    return folder


def test_expressions_of_several_regions_of_one_and_of_none(tmp_path: Path):
    folder = build(UNC, write_source(tmp_path / "source"), tmp_path / "data")
    (val,) = read_records(folder, "val")
    assert [(e.id, e.text, e.targets, e.granularity, e.referent) for e in val.expressions] == [
        ("1", "both squares", (0, 1), "multi", 0),
        ("2", "all of them", (0, 1), "multi", 0),
        ("3", "the circle", (), "none", 1),
        ("4", "a dog", (), "none", 1),
    ]
    np.testing.assert_array_equal(val.mask([0, 1]), square_mask((2, 2), (6, 6)))
    assert not val.mask(val.expressions[2].targets).any()
    assert json.loads(val.metadata) == {"ann_ids": [10, 11], "ref_ids": [1, 2]}


def test_an_image_that_is_in_val_and_in_test_is_held_out_by_both(tmp_path: Path):
    folder = build(UNC, write_source(tmp_path / "source"), tmp_path / "data")
    (val,), (test,) = read_records(folder, "val"), read_records(folder, "testA")
    assert val.image_id == test.image_id == "320432"
    assert json.loads((folder / HELD_OUT).read_text()) == {"val": ["320432"], "testA": ["320432"]}


def test_crowds_and_polygons_of_two_points_are_left_out_and_counted(tmp_path: Path):
    folder = build(UNC, write_source(tmp_path / "source"), tmp_path / "data")
    (test,) = read_records(folder, "testA")
    assert [(e.id, e.targets, e.granularity) for e in test.expressions] == [
        ("5", (0,), "object"),
        ("6", (1,), "object"),
    ]
    np.testing.assert_array_equal(test.mask([1]), square_mask((2, 2)))
    report = (folder / REPORT).read_text()
    assert "crowd annotations of refs, left out of masks: 1\n" in report
    assert "polygons of fewer than three points, left out of masks: 2\n" in report


def test_raw_text_has_a_config_of_its_own(tmp_path: Path):
    raw = config_of(CONVERSIONS, "grefcoco/unc_raw")
    folder = build(raw, write_source(tmp_path / "source"), tmp_path / "data")
    assert read_records(folder, "val")[0].expressions[0].text == "BOTH SQUARES"


@pytest.mark.parametrize(
    ("bad", "line"),
    [
        (ref(5, 7, [13], "val", (7, "it")), "annotation 13: no polygon has three points"),
        (ref(5, 320432, [12], "val", (7, "it")), "ref 5 has crowd annotations alone; use the"),
        (ref(5, 7, [10], "val", (7, "it")), "annotation 10 is of another image than ref 5"),
        (REFS[4], "no annotation 1000000000 (of ref 5)"),
        (ref(5, 8, [-1], "val", (7, "it")), "no image 8 (of ref 5)"),
    ],
)
def test_a_ref_that_contradicts_the_annotations_is_named(
    bad: dict[str, Any], line: str, tmp_path: Path
):
    source = write_source(tmp_path / "source", [*REFS[:4], bad])
    with pytest.raises(BuildError) as caught:
        build(UNC, source, tmp_path / "data")
    assert line in str(caught.value)
    folder = build(UNC, source, tmp_path / "data", skip_missing=True)
    assert line in (folder / REPORT).read_text()
    assert [e.id for e in read_records(folder, "val")[0].expressions] == ["1", "2", "3", "4"]


def test_a_truncated_list_of_refs_is_one_line(tmp_path: Path):
    source = write_source(tmp_path / "source")
    file = source / "grefcoco/grefs(unc).json"
    file.write_text(file.read_text()[:-40])
    with pytest.raises(SourceError, match=r"grefs\(unc\)\.json: damaged JSON .*download it again"):
        build(UNC, source, tmp_path / "data")
    file.unlink()
    with pytest.raises(SourceError, match=r"grefs\(unc\)\.json: not there; --source_dir must be"):
        build(UNC, source, tmp_path / "data")


def test_the_released_file_as_datasets_md_totals_it():
    total = {
        name: sum(split[name] for split in PUBLISHED.values())
        for name in ("refs", "expressions", "no target", "one target", "several targets")
    }
    assert total == {
        "refs": 94_050,
        "expressions": 258_836,
        "no target": 37_166,
        "one target": 132_187,
        "several targets": 89_483,
    }
    for split in PUBLISHED.values():
        parts = split["no target"] + split["one target"] + split["several targets"]
        assert parts == split["expressions"]


def test_the_real_sample_has_the_counts_of_its_source(shared_data: Path, tmp_path: Path):
    """One image of testB: 5 refs (3 and 2 objects, two of one, one of none), 12 sentences."""
    sample = shared_data / "real_mini_grefcoco"
    folder = build(UNC, sample, tmp_path)
    (record,) = read_records(folder, "testB")
    report = (folder / REPORT).read_text().splitlines()
    counts = {"images": 1, "refs": 5, "expressions": 12}
    counts |= {"no target": 2, "one target": 8, "several targets": 2}
    for name, number in counts.items():
        published = PUBLISHED["testB"][name]
        assert f"testB: {number} {name}; published: {published:,}" in report
    refs = json.loads((sample / "grefcoco/grefs(unc).json").read_text())
    stored = json.loads((sample / "grefcoco/instances.json").read_text())
    polygons = {a["id"]: a["segmentation"] for a in stored["annotations"]}
    said = {str(s["sent_id"]): (r, s["sent"]) for r in refs for s in r["sentences"]}
    assert {e.id for e in record.expressions} == said.keys()
    for expression in record.expressions:
        source, text = said[expression.id]
        assert expression.text == text
        ids = [] if source["no_target"] else source["ann_id"]
        assert len(expression.targets) == len(ids)
        expected = np.zeros((record.height, record.width), np.uint8)
        for ann_id in ids:
            parts: Any = coco_mask.frPyObjects(polygons[ann_id], record.height, record.width)
            expected |= coco_mask.decode(parts).max(-1)
        np.testing.assert_array_equal(record.mask(expression.targets), expected)
