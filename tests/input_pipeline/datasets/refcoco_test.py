import json
import os
import pickle
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from input_pipeline.building.builder import BuildError
from input_pipeline.building.conversion import SourceError
from input_pipeline.building.counts import compare, not_there
from input_pipeline.building.processes import ordered_map
from input_pipeline.building.published import REPORT
from input_pipeline.facts.published import all_facts, facts_of
from input_pipeline.formats.refer.convert import convert
from input_pipeline.formats.refer.layout import Layout, read_plan
from input_pipeline.schema import to_features
from refseg_jax.unpickling import PickleError
from tests.input_pipeline.datasets import refcoco_files
from tests.input_pipeline.datasets.refcoco_files import (
    AREAS,
    HEIGHT,
    WIDTH,
    annotation,
    default_refs,
    image_path,
    jpeg,
    read_instances,
    read_records,
    ref,
    sentence,
    write_instances,
    write_source,
)


def build(source: Path, data_dir: Path, config: str = "unc", **options: Any) -> Path:
    return refcoco_files.build(f"refcoco/{config}", source, data_dir, **options)


def datasets_in(data_dir: Path) -> list[Path]:
    """Everything that could be taken for a (half) built dataset."""
    return list(data_dir.glob("refcoco/unc*/*"))


def test_the_record(tmp_path: Path):
    source = write_source(tmp_path / "source")
    folder = build(source, tmp_path / "data")
    assert folder == tmp_path / "data" / "refcoco" / "unc" / "1.0.0"
    (train,), (val,) = read_records(folder, "train"), read_records(folder, "val")
    assert (train.image_id, train.file_name) == ("1", "COCO_train2014_000000000001.jpg")
    assert (train.height, train.width, train.source) == (HEIGHT, WIDTH, "refcoco/unc")
    assert train.image == image_path(source, 1).read_bytes()
    assert [t.category for t in train.targets] == ["square"] * 3
    assert [int(train.mask([i]).sum()) for i in range(3)] == AREAS
    assert [(e.id, e.text, e.targets, e.referent) for e in train.expressions] == [
        ("1", "both squares", (0,), 0),
        ("2", "it", (0,), 0),
        ("3", "the small one", (1,), 1),
        ("4", "the stripe", (2,), 2),
    ]
    assert {e.granularity for e in train.expressions} == {"object"}
    assert json.loads(train.metadata) == {"ann_ids": [10, 11, 12], "ref_ids": [100, 101, 102]}
    assert [e.text for e in val.expressions] == ["café ☂"]
    report = (folder / REPORT).read_text()
    assert "train: 1 images; published: 16,994\ntrain: 3 refs; published: 42,404\n" in report
    assert "polygons of fewer than three points, left out of masks: 4" in report
    assert "expressions without a word, left out: 1" in report


def test_the_union_of_overlapping_polygons(tmp_path: Path):
    folder = build(write_source(tmp_path / "source"), tmp_path / "data")
    expected = np.zeros((HEIGHT, WIDTH), np.uint8)
    expected[4:24, 4:24] = 1
    expected[14:34, 14:34] = 1
    np.testing.assert_array_equal(read_records(folder, "train")[0].mask([0]), expected)


def test_raw_text_has_a_config_of_its_own(tmp_path: Path):
    folder = build(write_source(tmp_path / "source"), tmp_path / "data", config="unc_raw")
    (record,) = read_records(folder, "train")
    assert record.expressions[0].text == "BOTH squares!"
    assert record.source == "refcoco/unc_raw"


def test_refs_of_one_annotation_share_the_target(tmp_path: Path):
    refs = [ref(1, 1, 10, "val", sentence(1, "a")), ref(2, 1, 10, "val", sentence(2, "b"))]
    folder = build(write_source(tmp_path / "source", refs), tmp_path / "data")
    (record,) = read_records(folder, "val")
    assert len(record.targets) == 1
    assert [(e.targets, e.referent) for e in record.expressions] == [((0,), 0), ((0,), 1)]


def test_an_image_in_two_splits_is_a_record_in_each(tmp_path: Path):
    """As in Google's splits, which are by object."""
    refs = [ref(1, 1, 10, "train", sentence(1, "a")), ref(2, 1, 11, "val", sentence(2, "b"))]
    source = write_source(tmp_path / "source", refs, by="google")
    folder = build(source, tmp_path / "data", config="google")
    (train,), (val,) = read_records(folder, "train"), read_records(folder, "val")
    assert train.image_id == val.image_id == "1"
    assert [e.id for e in train.expressions] == ["1"]
    assert [e.id for e in val.expressions] == ["2"]


def test_text_in_other_encodings(tmp_path: Path):
    texts = [b"caf\xe9", "été".encode(), "broken \ud800", "naïve"]
    refs = [ref(n, 1, 10, "val", sentence(n, t)) for n, t in enumerate(texts)]
    folder = build(write_source(tmp_path / "source", refs), tmp_path / "data")
    (record,) = read_records(folder, "val")
    assert [e.text for e in record.expressions] == ["café", "été", "broken ?", "naïve"]


def test_only_the_wanted_splits(tmp_path: Path):
    source = write_source(tmp_path / "source")
    folder = build(source, tmp_path / "data", splits=("val",))
    assert len(read_records(folder, "val")) == 1
    assert not list(folder.glob("*train*"))
    with pytest.raises(SourceError, match=r"unknown split of refcoco/unc 'trian'.*'train'"):
        build(source, tmp_path / "other", splits=("trian",))
    with pytest.raises(SourceError, match=r"split of refcoco/unc 'a'.*split of refcoco/unc 'b'"):
        build(source, tmp_path / "other", splits=("a", "val", "b"))


def missing(source: Path) -> str:
    image_path(source, 2).unlink()
    return f"{image_path(source, 2)}: not there; copy it from COCO train2014"


def truncated(source: Path) -> str:
    path = image_path(source, 2)
    path.write_bytes(path.read_bytes()[:-900])
    return f"{path}: the image is damaged"


def no_image(source: Path) -> str:
    image_path(source, 2).write_bytes(b"no image")
    return f"{image_path(source, 2)}: the image is damaged or no image"


def pointer(source: Path) -> str:
    image_path(source, 2).write_bytes(b"version https://git-lfs.github.com/spec/v1")
    return f"{image_path(source, 2)}: a Git LFS pointer is not read here; run git lfs pull"


def wrong_size(source: Path) -> str:
    image_path(source, 2).write_bytes(jpeg(HEIGHT + 1, WIDTH))
    return f"{image_path(source, 2)}: is 64 x 49, its annotations are for 64 x 48"


def no_mask(source: Path) -> str:
    stored = read_instances(source)
    stored["annotations"][-1]["segmentation"] = [[1, 1, 2, 2]]
    write_instances(source, stored)
    return f"{image_path(source, 2)}: annotation 20: no polygon has three points"


def no_annotation(source: Path) -> str:
    stored = read_instances(source)
    del stored["annotations"][-1]
    write_instances(source, stored)
    return f"{source / 'refcoco/instances.json'}: no annotation 20 (of ref 103); use the"


def no_entry_of_the_image(source: Path) -> str:
    stored = read_instances(source)
    del stored["images"][-1]
    write_instances(source, stored)
    return f"{source / 'refcoco/instances.json'}: no image 2 (of ref 103); use the"


def annotation_of_another_image(source: Path) -> str:
    stored = read_instances(source)
    stored["annotations"][-1] = annotation(20, 1, stored["annotations"][-1]["segmentation"])
    write_instances(source, stored)
    return f"{source / 'refcoco/instances.json'}: annotation 20 is of another image than ref 103"


PROBLEMS = [
    missing,
    truncated,
    no_image,
    pointer,
    wrong_size,
    no_mask,
    no_annotation,
    no_entry_of_the_image,
    annotation_of_another_image,
]


@pytest.mark.parametrize("damage", PROBLEMS)
def test_a_problem_fails_the_build_or_is_skipped(damage: Callable[[Path], str], tmp_path: Path):
    # A second image in val keeps that split alive.
    refs = [*default_refs(), ref(104, 1, 10, "val", sentence(7, "again"))]
    source = write_source(tmp_path / "source", refs)
    line = damage(source)
    with pytest.raises(BuildError) as caught:
        build(source, tmp_path / "data")
    head, problem = str(caught.value).splitlines()
    assert "nothing was built, 1 problem; cure" in head
    assert "--skip_missing" in head
    assert problem.startswith(line)
    assert datasets_in(tmp_path / "data") == []

    folder = build(source, tmp_path / "data", skip_missing=True)
    assert [r.image_id for r in read_records(folder, "train")] == ["1"]
    assert [r.image_id for r in read_records(folder, "val")] == ["1"]
    report = (folder / REPORT).read_text()
    assert "left out: 1 problem\n" in report
    assert line in report
    assert "val: 1 images; published: 1,500" in report


def test_all_problems_are_listed(tmp_path: Path):
    refs = [ref(n, n, n, "val", sentence(n, "it")) for n in range(30)]
    with pytest.raises(BuildError) as caught:
        build(write_source(tmp_path / "source", refs), tmp_path / "data")
    lines = str(caught.value).splitlines()
    assert "30 problems" in lines[0]
    assert len(lines) == 22
    assert lines[-1] == "... 10 more"


def test_a_split_of_which_nothing_is_left(tmp_path: Path):
    source = write_source(tmp_path / "source")
    truncated(source)
    with pytest.raises(SourceError, match="no image of val could be built"):
        build(source, tmp_path / "data", skip_missing=True)
    assert datasets_in(tmp_path / "data") == []


def test_file_names_cannot_lead_out_of_the_folder(tmp_path: Path):
    source = write_source(tmp_path / "source")
    (tmp_path / "secret.jpg").write_bytes(jpeg())
    stored = read_instances(source)
    stored["images"][1]["file_name"] = "../../../secret.jpg"
    write_instances(source, stored)
    with pytest.raises(BuildError, match=r"train2014/secret\.jpg: not there"):
        build(source, tmp_path / "data")


def hostile(source: Path) -> None:
    (source / "refcoco" / "refs(unc).p").write_bytes(b"cos\nsystem\n(Vtrue\ntR.")


def no_refs(source: Path) -> None:
    (source / "refcoco" / "refs(unc).p").unlink()


def other_pickle(source: Path) -> None:
    (source / "refcoco" / "refs(unc).p").write_bytes(pickle.dumps([{"ref_id": 1}]))


def no_list(source: Path) -> None:
    (source / "refcoco" / "refs(unc).p").write_bytes(pickle.dumps({}))


def repeated_id(source: Path) -> None:
    refs = [ref(n, 1, 10, "val", sentence(7, "it")) for n in range(2)]
    (source / "refcoco" / "refs(unc).p").write_bytes(pickle.dumps(refs))


def truncated_json(source: Path) -> None:
    path = source / "refcoco" / "instances.json"
    path.write_text(path.read_text()[:-20])


def other_json(source: Path) -> None:
    write_instances(source, {"images": []})


def no_images(source: Path) -> None:
    for image in (1, 2):
        image_path(source, image).unlink()


@pytest.mark.parametrize(
    ("damage", "error", "message"),
    [
        (hostile, PickleError, r"refs\(unc\)\.p: refused, it asks for 'os.system'.*use the orig"),
        (no_refs, SourceError, r"refs\(unc\)\.p: not there; --source_dir must be the folder"),
        (other_pickle, SourceError, r"refs\(unc\)\.p: entry 0 is not refer's \(KeyError: 'sent"),
        (no_list, SourceError, r"refs\(unc\)\.p: holds no list of refs; use the file"),
        (repeated_id, SourceError, r"refs\(unc\)\.p: sent_id 7 occurs twice; use the file"),
        (truncated_json, SourceError, r"instances\.json: damaged JSON .*download it again"),
        (other_json, SourceError, r"instances\.json: damaged or not COCO's \(KeyError: 'categ"),
        (no_images, SourceError, r"source: no folder of images; put \(or link\) COCO's train2014"),
    ],
)
def test_files_that_cannot_be_used(
    damage: Callable[[Path], None], error: type[Exception], message: str, tmp_path: Path
):
    source = write_source(tmp_path / "source")
    damage(source)
    with pytest.raises(error, match=message) as caught:
        build(source, tmp_path / "data", skip_missing=True)
    assert "\n" not in str(caught.value)
    assert datasets_in(tmp_path / "data") == []


def test_processes_change_nothing(tmp_path: Path):
    source = write_source(tmp_path / "source")
    plan = read_plan(source, layout=Layout("refcoco", "unc"))
    images = [image for split in plan.splits.values() for image in split]
    alone = [to_features(r.record) for r in ordered_map(_convert, images, 0) if r.record]
    shared = [to_features(r.record) for r in ordered_map(_convert, images, 2) if r.record]
    assert len(alone) == 2
    assert alone == shared


def _convert(image: Any) -> Any:
    return convert(image, "refcoco/unc")


def test_results_keep_their_order_and_wait_for_the_reader():
    items = iter(range(100))
    results = ordered_map(_later, items, 2)
    assert [next(results) for _ in range(3)] == [0, 1, 4]
    assert next(items) <= 3 + 4 * 2 + 1
    results.close()


def test_neighbours_are_mapped_by_one_process():
    found = list(ordered_map(_process, range(10), 2, together=4))
    assert [number for number, _ in found] == list(range(10))
    for chunk in (found[:4], found[4:8], found[8:]):
        assert len({process for _, process in chunk}) == 1
    assert os.getpid() not in {process for _, process in found}


def _process(number: int) -> tuple[int, int]:
    return number, os.getpid()


def _later(number: int) -> int:
    time.sleep(0.02 if number % 2 == 0 else 0)
    return number**2


def test_counts_are_compared_with_the_published_ones():
    complete = facts_of("refcoco_plus/unc").published
    assert [e.split("; ")[1] for e in compare(complete, complete)] == ["as published"] * 12
    off = {"val": {**complete["val"], "refs": 3_804}}
    assert compare(off, complete) == [
        "val: 1,500 images; as published",
        "val: 3,804 refs; published: 3,805",
        "val: 10,758 expressions; as published",
        "val: this is not the published split (refs differ)",
    ]
    # Nobody published the expressions of Google's RefCOCO splits.
    google = {"test": {"images": 4_527, "refs": 5_000, "expressions": 14_000, "groups": 0}}
    published = facts_of("refcoco/google").published
    assert len(compare(google, published)) == 2
    (line,) = compare({"dev": google["test"]}, published)
    assert line == "dev: 4,527 images, 5,000 refs, 14,000 expressions; nothing is published of it"


def test_published_splits_that_the_source_lacks_are_said(tmp_path: Path):
    folder = build(write_source(tmp_path / "source"), tmp_path / "data")
    lines = (folder / REPORT).read_text().splitlines()
    assert "testA: not there; published: 750 images, 1,975 refs, 5,657 expressions" in lines
    assert [line.split(":")[0] for line in lines if "not there" in line] == ["testA", "testB"]
    alone = build(tmp_path / "source", tmp_path / "alone", splits=("val",))
    assert "not there" not in (alone / REPORT).read_text(), "it was not asked for"
    complete = facts_of("refcoco/unc").published
    assert not_there(complete, complete) == []


def test_the_published_totals():
    total = {
        name: sum(counts.get("expressions", 0) for counts in facts.published.values())
        for name, facts in all_facts().items()
    }
    assert total["refcoco/unc"] == 142_210
    assert total["refcoco_plus/unc"] == 141_564
    assert total["refcocog/umd"] == total["refcocog/google"] == 95_010
