import json
import pickle
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from input_pipeline.building.builder import HELD_OUT, BuildError
from input_pipeline.building.published import REPORT
from input_pipeline.datasets.refcoco.regrouped import CONVERSIONS, regroup
from input_pipeline.formats.refer.layout import Annotation, ImagePlan, Referent
from input_pipeline.rows import make_rows
from input_pipeline.schema import Expression, Record
from input_pipeline.sources import ExpressionTable, RecordSource
from tests.input_pipeline.datasets.refcoco_files import read_records, ref, sentence
from tests.input_pipeline.datasets.refer_files import (
    TRAIN2014,
    build,
    coco_name,
    config_of,
    square,
    square_mask,
    write_instances,
    write_jpegs,
)

G_REFC = config_of(CONVERSIONS, "g_refc/unc")

#: image -> annotations with their sentences. "man" is in 1, 2 and 3 (there of two regions), "left
#: zebra" in 4, 5; 6 and 7 say nothing that another one says, 6 nothing at all of the others' words.
SAID = {
    1: [["man", "the tall one"]],
    2: [["man "], ["a cup"]],
    3: [["man"], ["man"]],
    4: [["left  zebra"]],
    5: [["left zebra", "a horse"]],
    6: [["a boat"]],
    7: [["a plane"]],
}
SQUARES = ((2, 2), (30, 20))


def write_source(folder: Path, said: dict[int, list[list[str]]] | None = None) -> Path:
    refs: list[dict[str, Any]] = []
    annotations = []
    number = 0
    for image, regions in (said or SAID).items():
        for k, texts in enumerate(regions):
            ann_id = 10 * image + k
            annotations.append(
                {"id": ann_id, "image_id": image, "segmentation": square(*SQUARES[k])}
            )
            sentences = [sentence(number := number + 1, text) for text in texts]
            split = "val" if image > 100 else "train"
            refs.append(ref(1000 + ann_id, image, ann_id, split, *sentences))
    names = {image: coco_name(image) for image in (said or SAID)}
    write_instances(folder / "refcoco/instances.json", names, annotations)
    (folder / "refcoco/refs(unc).p").write_bytes(pickle.dumps(refs, 2))
    write_jpegs(folder / TRAIN2014, list(names.values()))
    return folder


def groups(records: list[Record]) -> dict[tuple[str, str], list[tuple[Record, Expression]]]:
    found: dict[tuple[str, str], list[tuple[Record, Expression]]] = {}
    for record in records:
        for e in record.expressions:
            found.setdefault((e.group, e.text), []).append((record, e))
    return found


def test_a_sentence_of_several_images_is_a_group_with_as_many_images_of_other_groups(
    tmp_path: Path,
):
    folder = build(G_REFC, write_source(tmp_path / "source"), tmp_path / "data")
    found = groups(read_records(folder, "train"))
    assert found.keys() == {("train-00000", "left zebra"), ("train-00001", "man")}
    zebras = found["train-00000", "left zebra"]
    assert sorted(r.image_id for r, e in zebras if e.targets) == ["4", "5"]
    negatives = [r.image_id for r, e in zebras if not e.targets]
    assert len(negatives) == 2
    assert set(negatives) <= {"1", "2", "3"}
    men = found["train-00001", "man"]
    assert sorted(r.image_id for r, e in men if e.targets) == ["1", "2", "3"]
    assert {r.image_id for r, e in men if not e.targets} == {"4", "5"}
    assert {e.granularity for rows in found.values() for _, e in rows} == {"group"}
    assert {e.id for _, e in men} == {f"train-00001-{i}" for i in (1, 2, 3, 4, 5)}
    report = (folder / REPORT).read_text()
    line = "groups in all splits (the GRSer paper has 8,717, by a rule not published): 2\n"
    assert line in report
    assert "negatives that groups lack for want of other images: 1\n" in report
    assert "not drawn as negatives, left out: 2\n" in report
    assert "this is not the published split" not in report


def test_all_regions_that_a_sentence_is_said_of_are_meant(tmp_path: Path):
    folder = build(G_REFC, write_source(tmp_path / "source"), tmp_path / "data")
    (record,) = [r for r in read_records(folder, "train") if r.image_id == "3"]
    (man,) = [e for e in record.expressions if e.text == "man"]
    np.testing.assert_array_equal(record.mask(man.targets), square_mask(*SQUARES))
    assert json.loads(record.metadata) == {"ann_ids": [30, 31]}


def test_groups_stay_within_their_split(tmp_path: Path):
    said = {**SAID, 101: [["man"]], 102: [["man"]], 103: [["a cup"]], 104: [["a cup"]]}
    folder = build(G_REFC, write_source(tmp_path / "source", said), tmp_path / "data")
    for split, ids in (("train", range(1, 6)), ("val", range(101, 105))):
        records = read_records(folder, split)
        assert {r.image_id for r in records} == {str(i) for i in ids}
        for name, _ in groups(records):
            assert name.startswith(split)
    val = groups(read_records(folder, "val"))
    assert {text: len(rows) for (_, text), rows in val.items()} == {"a cup": 4, "man": 4}
    held_out = json.loads((folder / HELD_OUT).read_text())
    assert held_out == {"val": ["101", "102", "103", "104"]}


def test_a_row_of_a_group_has_images_with_and_without(tmp_path: Path):
    build(G_REFC, write_source(tmp_path / "source"), tmp_path / "data")
    source = RecordSource(str(tmp_path / "data"), "g_refc/unc", "train")
    rows = make_rows(ExpressionTable.of(source), "group", ("group",), pairs=1, images=8)
    sizes = []
    for row in range(len(rows)):
        records, positions = rows.entries(row)
        said = [source[int(r)].expressions[k] for r, k in zip(records, positions, strict=True)]
        assert len({(e.group, e.text) for e in said}) == 1
        sizes.append((len(said), sum(bool(e.targets) for e in said)))
    assert sorted(sizes) == [(4, 2), (5, 3)]


def test_an_image_that_is_missing_is_a_problem(tmp_path: Path):
    source = write_source(tmp_path / "source")
    (source / TRAIN2014 / coco_name(4)).unlink()
    with pytest.raises(BuildError, match=r"not there; copy it from COCO train2014"):
        build(G_REFC, source, tmp_path / "data")


def random_plans(rng: np.random.Generator, images: int, words: int) -> list[ImagePlan]:
    plans = []
    for i in range(images):
        referents = []
        for k in range(int(rng.integers(1, 4))):
            texts = [f"word {int(w)}" for w in rng.integers(words, size=rng.integers(1, 4))]
            sentences = tuple((f"{i}-{k}-{n}", text) for n, text in enumerate(texts))
            referents.append(Referent(k, (Annotation(10 * i + k, "x", b"[]"),), sentences))
        plans.append(ImagePlan(str(i), Path(f"{i}.jpg"), 4, 4, tuple(referents)))
    return plans


def test_the_rules_of_grouping_hold_for_many_random_datasets():
    """Against a slow restatement of the rules."""
    rng = np.random.default_rng(0)
    for _ in range(200):
        plans = random_plans(rng, int(rng.integers(1, 20)), int(rng.integers(1, 40)))
        having: dict[str, set[str]] = {}
        for plan in plans:
            for referent in plan.referents:
                for _, text in referent.sentences:
                    having.setdefault(text, set()).add(plan.image_id)
        having = {text: ids for text, ids in having.items() if len(ids) > 1}
        grouped = set().union(*having.values()) if having else set()

        images, number, lacking = regroup(plans, "val", "seed")
        assert number == len(having)
        positives: dict[str, set[str]] = {}
        negatives: dict[str, set[str]] = {}
        names: dict[str, set[str]] = {}
        for image in images:
            of_image = Counter(r.group for r in image.referents)
            assert set(of_image.values()) == {1}
            for referent in image.referents:
                ((_, text),) = referent.sentences
                side = positives if referent.annotations else negatives
                side.setdefault(text, set()).add(image.image_id)
                names.setdefault(text, set()).add(referent.group)
        assert positives == having
        assert all(len(group) == 1 for group in names.values())
        short = 0
        for text, ids in having.items():
            drawn = negatives.get(text, set())
            assert drawn <= grouped - ids
            assert len(drawn) == min(len(ids), len(grouped - ids))
            short += len(ids) - len(drawn)
        assert short == lacking


def test_the_draw_is_the_same_each_time_and_another_with_another_seed():
    plans = random_plans(np.random.default_rng(1), 60, 30)

    def negatives(split: str, seed: str) -> set[tuple[str, str]]:
        images, _, _ = regroup(plans, split, seed)
        return {
            (image.image_id, r.sentences[0][1])
            for image in images
            for r in image.referents
            if not r.annotations
        }

    assert regroup(plans, "val", "a") == regroup(plans, "val", "a")
    assert negatives("val", "a") != negatives("val", "b")
    assert negatives("val", "a") != negatives("testA", "a")


def test_complete_splits_of_refcoco(shared_data: Path):
    """Published expressions without masks: 702 + 341 + 342 groups outside of train."""
    found = {}
    for split in ("val", "testA", "testB"):
        file = shared_data / f"minigpt4_refcoco_eval/refcoco_{split}.json"
        images: dict[str, list[Referent]] = {}
        sentences: dict[str, set[str]] = {}
        for k, row in enumerate(json.loads(file.read_text())):
            image = row["img_id"].split("_")[2]
            said = ((str(k), row["sents"]),)
            images.setdefault(image, []).append(Referent(k, (Annotation(k, "", b""),), said))
            sentences.setdefault(" ".join(row["sents"].split()), set()).add(image)
        plans = [ImagePlan(i, Path(i), 1, 1, tuple(r)) for i, r in images.items()]
        _, found[split], lacking = regroup(plans, split, "g_refc")
        assert found[split] == sum(len(ids) > 1 for ids in sentences.values())
        assert lacking == 0
    assert found == {"val": 702, "testA": 341, "testB": 342}
