"""Builds of the real sample (51 COCO images, original ids and polygons)."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pycocotools import mask as coco_mask

from input_pipeline.building.builder import HELD_OUT
from input_pipeline.building.published import REPORT
from tests.input_pipeline.datasets.refcoco_files import build, read_records

#: As in the sample's summary.
NAMES = ("refcoco/unc", "refcoco+/unc", "refcocog/umd", "refcocog/google")


@pytest.fixture(scope="module")
def sample(shared_data: Path) -> Path:
    return shared_data / "real_mini_refcoco"


@pytest.fixture(scope="module")
def built(sample: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    data_dir = tmp_path_factory.mktemp("data")
    return {name: build(name.replace("+", "_plus"), sample, data_dir) for name in NAMES}


def read_json(path: Path) -> Any:
    return json.loads(path.read_text())


@pytest.mark.parametrize("name", NAMES)
def test_counts_are_those_of_the_sample(name: str, sample: Path, built: dict[str, Path]):
    counts = {}
    report = (built[name] / REPORT).read_text().splitlines()
    for split, expected in read_json(sample / "summary.json")[name].items():
        records = read_records(built[name], split)
        counts[split] = {
            "images": len(records),
            "refs": sum(len({e.referent for e in r.expressions}) for r in records),
            "sents": sum(len(r.expressions) for r in records),
        }
        assert counts[split] == expected
        of_split = [line for line in report if line.startswith(f"{split}: ")]
        assert of_split[-1].startswith(f"{split}: this is not the published split")
        for words in ("images", "refs"):
            assert any(f" {counts[split][words]:,} {words}; published: " in e for e in of_split)
    stored = read_json(built[name] / "dataset_info.json")["splits"]
    assert {s["name"] for s in stored} == set(counts)
    assert not any(line.startswith("left out") for line in report)
    held_out = read_json(built[name] / HELD_OUT)
    assert set(held_out) == set(counts) - {"train"}
    for split, ids in held_out.items():
        assert ids == sorted({r.image_id for r in read_records(built[name], split)})


@pytest.mark.parametrize("name", NAMES)
def test_records_say_what_the_files_say(name: str, sample: Path, built: dict[str, Path]):
    """Joined once more, from the JSON copy of the refs."""
    dataset, by = name.split("/")
    refs = {r["ref_id"]: r for r in read_json(sample / dataset / f"refs({by}).json")}
    stored = read_json(sample / dataset / "instances.json")
    annotations = {a["id"]: a for a in stored["annotations"]}
    categories = {c["id"]: c["name"] for c in stored["categories"]}
    seen = set()
    for split in {r["split"] for r in refs.values()}:
        for record in read_records(built[name], split):
            path = sample / "images" / "train2014" / record.file_name
            assert record.image == path.read_bytes()
            ids = json.loads(record.metadata)
            for target, ann_id in zip(record.targets, ids["ann_ids"], strict=True):
                annotation = annotations[ann_id]
                assert str(annotation["image_id"]) == record.image_id
                assert target.category == categories[annotation["category_id"]]
            for expression in record.expressions:
                ref = refs[ids["ref_ids"][expression.referent]]
                (said,) = [s for s in ref["sentences"] if str(s["sent_id"]) == expression.id]
                assert expression.text == said["sent"]
                assert ref["split"] == split
                (target_index,) = expression.targets
                assert ids["ann_ids"][target_index] == ref["ann_id"]
                seen.add(expression.id)
    assert len(seen) == sum(len(r["sentences"]) for r in refs.values())


def test_masks_are_unions_of_their_polygons(sample: Path, built: dict[str, Path]):
    """Areas agree with COCO's, and in two referents polygons overlap."""
    areas: dict[int, float] = {}
    polygons: dict[int, Any] = {}
    for dataset in ("refcoco", "refcoco+", "refcocog"):
        for a in read_json(sample / dataset / "instances.json")["annotations"]:
            areas[a["id"]], polygons[a["id"]] = a["area"], a["segmentation"]
    overlapping = set()
    compared = 0
    for name, folder in built.items():
        splits = read_json(sample / "summary.json")[name]
        for record in (r for split in splits for r in read_records(folder, split)):
            for index, ann_id in enumerate(json.loads(record.metadata)["ann_ids"]):
                mask = record.mask([index])
                parts = coco_mask.decode(
                    coco_mask.frPyObjects(polygons[ann_id], record.height, record.width)
                )
                np.testing.assert_array_equal(mask, parts.max(-1))
                if parts.sum(-1, dtype=np.int32).max() > 1:
                    overlapping.add(ann_id)
                edge = 2 * np.sqrt(areas[ann_id]) + 10
                assert abs(int(mask.sum()) - areas[ann_id]) < max(edge, 0.05 * areas[ann_id])
                compared += 1
    assert compared > 100
    assert len(overlapping) == 2
