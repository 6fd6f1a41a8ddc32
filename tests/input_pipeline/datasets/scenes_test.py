"""Scenes keeps what it promises: sound masks, splits and groups, the same bytes from the same seed."""

import collections
import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from input_pipeline.building import builder as building
from input_pipeline.datasets.scenes.config import SPLITS, ScenesConfig
from input_pipeline.datasets.scenes.drawing import draw_scene
from input_pipeline.datasets.scenes.graph import from_json
from input_pipeline.datasets.scenes.kinds import COLOURS, NOVEL_EXTRA, NOVEL_KIND
from input_pipeline.datasets.scenes.layout import Placed
from input_pipeline.datasets.scenes.records import make_record
from input_pipeline.datasets.scenes.scenes import build
from input_pipeline.schema import Expression, Record
from input_pipeline.sources import RecordSource
from refseg_jax.images.decoding import decode_image
from refseg_jax.text.tokenizers import build_tokenizer
from tests.input_pipeline.datasets.scenes_interpreter import understand
from tests.input_pipeline.datasets.scenes_made import (
    FEW,
    SMALL,
    Build,
    everything,
    make_graph,
    make_small,
)

MAIN = ("object", "part", "multi", "none", "category", "salient")


@pytest.fixture(scope="module")
def small() -> Build:
    return make_small()


def test_what_is_kept_for_later_is_in_no_other_split(small: Build):
    kind, extra = NOVEL_EXTRA
    for split, records in small.items():
        for record in records:
            nodes = json.loads(record.metadata)["objects"]
            novel = [
                node["kind"] == NOVEL_KIND
                or (node["kind"] == kind and extra in [part["name"] for part in node["parts"]])
                for node in nodes
            ]
            assert any(novel) == split.startswith("novel_")
            if not any(novel):
                words = " ".join(e.text for e in record.expressions)
                assert NOVEL_KIND not in words
                assert extra not in words
    both = [e.text for record in small["novel_test"] for e in record.expressions]
    assert any(NOVEL_KIND in text for text in both)
    assert any(extra in text for text in both)


def test_only_no_target_and_group_expressions_are_without_targets(small: Build):
    for _, _, expression in everything(small):
        assert expression.targets or expression.granularity in ("none", "group")


@pytest.mark.parametrize("size", [64, 128, 200])
def test_masks_and_graph_are_of_one_picture(size: int):
    config = ScenesConfig(image_size=size, seed=5)
    for index in range(12):
        record = make_record(config, "train", index)
        assert (record.height, record.width) == (size, size)
        assert decode_image(record.image, name="it").shape == (size, size, 3)
        masks = [record.mask([i]).astype(bool) for i in range(len(record.targets))]
        scale = (size / 128) ** 2
        for mask, target in zip(masks, record.targets, strict=True):
            assert mask.shape == (size, size)
            assert mask.sum() >= (250 if target.granularity == "object" else 60) * scale
            if target.granularity == "part":
                assert not (mask & ~masks[target.parent]).any()
                assert record.targets[target.parent].granularity == "object"
        check_graph(record, masks)


def check_graph(record: Record, masks: list[np.ndarray]):
    nodes = json.loads(record.metadata)["objects"]
    objects = [masks[node["target"]] for node in nodes]
    assert np.sum(objects, axis=0).max() == 1, "visible pixels belong to one object"
    assert sorted(node["depth"] for node in nodes) == list(range(len(nodes)))
    mentioned = []
    for node, mask in zip(nodes, objects, strict=True):
        target = record.targets[node["target"]]
        assert (target.category, target.parent) == (node["kind"], -1)
        rows, columns = np.nonzero(mask)
        centre = (np.array([columns.mean(), rows.mean()]) + 0.5) / record.width
        np.testing.assert_allclose([node["x"], node["y"]], centre, atol=6e-4)
        assert node["area"] == len(rows)
        assert 0.5 * node["full_area"] <= node["area"] <= node["full_area"]
        seen = [part for part in node["parts"] if part["target"] >= 0]
        mentioned += [node["target"], *(part["target"] for part in seen)]
        for part in seen:
            target = record.targets[part["target"]]
            assert (target.category, target.parent) == (part["name"], node["target"])
            assert part["area"] == masks[part["target"]].sum()
    assert sorted(mentioned) == list(range(len(masks)))


def test_what_is_spoken_of_is_large_enough_to_see(small: Build):
    least = {"object": 250, "part": 60}
    for record in itertools.chain(*small.values()):
        for index, target in enumerate(record.targets):
            assert record.mask([index]).sum() >= least[target.granularity]


def car(colour: str, width: float, x: float) -> Placed:
    return Placed("car", colour, width, x, 80, flip=False, angle=0.0, hero=False)


@pytest.mark.parametrize(
    ("layout", "seen"),
    [
        ([car("red", 40, 30), car("blue", 40, 90)], ["red", "blue"]),
        ([car("red", 26, 30), car("blue", 40, 90)], ["blue"]),  # Too small.
        ([car("red", 40, 88), car("blue", 40, 92)], ["blue"]),  # More than half covered.
        ([car("red", 40, 55), car("blue", 40, 70)], ["red", "blue"]),
    ],
)
def test_what_can_hardly_be_seen_is_not_there(layout: list[Placed], seen: list[str]):
    scene = draw_scene("meadow", layout, ScenesConfig(), np.random.default_rng(0))
    assert [node.colour for node in scene.graph.objects] == seen


def test_objects_look_the_colour_they_are_called(small: Build):
    names, palette = list(COLOURS), np.array(list(COLOURS.values()))
    right = []
    for record in small["train"]:
        image = decode_image(record.image, name="it").astype(float)
        for node in json.loads(record.metadata)["objects"]:
            if node["kind"] in ("boat", "house", "robot"):  # Sails, roofs and limbs are their own.
                continue
            pixels = image[record.mask([node["target"]]) > 0]
            nearest = ((pixels[:, None] - palette) ** 2).sum(-1).argmin(-1)
            right.append(names[np.bincount(nearest).argmax()] == node["colour"])
    assert len(right) > 100
    assert np.mean(right) > 0.95


def test_every_granularity_occurs(small: Build):
    for split in ("train", "val", "test"):
        told = {e.granularity for record in small[split] for e in record.expressions}
        assert told == set(MAIN), split
        said = {e.granularity for record in small[f"{split}_groups"] for e in record.expressions}
        assert said == {"group"}


def test_expressions_fit_17_clip_tokens(small: Build):
    texts = sorted({expression.text for _, _, expression in everything(small)})
    _, valid = build_tokenizer("clip")(texts, 77)
    assert valid.sum(1).max() <= 17


def test_about_half_of_a_group_have_the_target(small: Build):
    for split in ("train_groups", "val_groups", "test_groups"):
        groups: dict[str, list[tuple[Record, Expression]]] = collections.defaultdict(list)
        for record in small[split]:
            (expression,) = record.expressions
            groups[expression.group].append((record, expression))
        assert len(groups) == getattr(SMALL, split)
        for members in groups.values():
            said = [e for _, e in members]
            assert len(members) == SMALL.group_size
            assert len({e.text for e in said}) == 1
            present = sum(bool(e.targets) for e in said)
            assert abs(present - SMALL.group_size // 2) <= 1
            assert all(bool(e.targets) != bool(e.form) for e in said)
            scenes = [json.loads(record.metadata) for record, _ in members]
            assert len({scene["background"] for scene in scenes}) == 1
            assert len({o["kind"] for scene in scenes for o in scene["objects"]}) <= 3


def test_the_number_of_kinds_does_not_tell_which_pictures_of_a_group_have_a_category():
    config, kinds = ScenesConfig(), dict[bool, list[int]]({True: [], False: []})
    for number in range(3, 123, 4):
        for member in range(config.group_size):
            record = make_record(config, "train_groups", number * config.group_size + member)
            there = {node["kind"] for node in json.loads(record.metadata)["objects"]}
            kinds[bool(record.expressions[0].targets)].append(len(there))
    assert abs(np.mean(kinds[True]) - np.mean(kinds[False])) < 0.5


def test_groups_are_asked_at_every_granularity(small: Build):
    found = set()
    for record in itertools.chain(
        *(small[f"{split}_groups"] for split in ("train", "val", "test"))
    ):
        (expression,) = record.expressions
        scene = json.loads(record.metadata)
        if expression.targets:
            found.add(understand(expression.text, scene).granularity)
    assert found == {"object", "part", "multi", "category"}


def test_splits_have_no_image_and_no_name_in_common(small: Build):
    records = list(itertools.chain(*small.values()))
    assert len({record.image for record in records}) == len(records)
    assert len({record.metadata for record in records}) == len(records)
    assert len({record.image_id for record in records}) == len(records)
    ids = [expression.id for _, _, expression in everything(small)]
    assert len(set(ids)) == len(ids)


def test_another_seed_draws_other_images(small: Build):
    other = ScenesConfig(name="small", seed=4)
    images = {record.image for record in itertools.chain(*small.values())}
    for split in SPLITS:
        assert make_record(other, split, 0).image not in images


def test_the_size_of_a_split_changes_no_image(small: Build):
    longer = ScenesConfig(name="small", seed=3, train=9000, val_groups=99)
    for split in SPLITS:
        assert make_record(longer, split, 7) == small[split][7]


def test_the_files_are_the_same_for_any_number_of_workers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(building, "_FEW", 1)
    few = ScenesConfig("few", **{**FEW, "train": 26, "test": 1})
    one, two = (build(tmp_path / str(n), few, num_workers=n) for n in (1, 2))
    names = sorted(path.name for path in one.iterdir())
    assert names == sorted(path.name for path in two.iterdir())
    assert sum("array_record" in name for name in names) == len(SPLITS)
    for name in names:
        assert (one / name).read_bytes() == (two / name).read_bytes(), name
    for split in SPLITS:
        source = RecordSource(str(tmp_path / "2"), "scenes", split)
        stored = {source[i].image_id: source[i] for i in range(len(source))}
        made = [make_record(few, split, i) for i in range(few.images(split))]
        assert stored == {record.image_id: record for record in made}


def test_a_build_that_is_there_is_left_alone(tmp_path: Path):
    few = ScenesConfig("few", **FEW)
    folder = build(tmp_path, few, num_workers=1)
    before = {path: path.stat().st_mtime_ns for path in folder.iterdir()}
    assert build(tmp_path, few, num_workers=1) == folder
    assert {path: path.stat().st_mtime_ns for path in folder.iterdir()} == before


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"image_size": 63}, "image_size 63 is below 64"),
        ({"min_objects": 1}, "2 <= min_objects <= max_objects <= 8 is needed"),
        ({"min_objects": 6}, "min_objects 6, max_objects 5"),
        ({"max_objects": 9}, "2 <= min_objects <= max_objects <= 8 is needed"),
        ({"group_size": 3}, "group_size 3 is not in 4..16"),
        # No 24 drafts hold such a group, so that drawing it would never end.
        ({"group_size": 24}, "group_size 24 is not in 4..16"),
        ({"train": -1}, "train is -1; it is a whole number of 0 or more"),
        ({"seed": -1}, "seed is -1; it is a whole number"),
        ({"wordings": 0}, "wordings is 0; it is a whole number of 1 or more"),
        ({"image_size": 64.5}, "image_size is 64.5; it is a whole number"),
        ({"questions": True}, "questions is True; it is a whole number"),
        ({"jpeg_quality": 101}, "jpeg_quality 101 is above 100"),
        ({"name": "../x"}, "name '../x' is not made of"),
        ({"name": ""}, "name '' is not made of"),
    ],
)
def test_settings_that_cannot_be_drawn(settings: dict[str, Any], message: str):
    with pytest.raises(ValueError, match=message):
        ScenesConfig(**settings)


@pytest.mark.parametrize("size", [4, 16])
def test_groups_of_the_least_and_the_greatest_size_have_both_kinds_of_images(size: int):
    config = ScenesConfig(group_size=size)
    records = [make_record(config, "val_groups", i) for i in range(size)]
    present = [bool(record.expressions[0].targets) for record in records]
    assert size // 2 - 1 <= sum(present) <= size // 2 + 1


def test_a_graph_comes_back_from_its_text():
    graph = make_graph(np.random.default_rng(0))
    assert from_json(graph.to_json()) == graph
    for text in ("", "[]", "{}", graph.to_json().replace('"kind"', '"sort"')):
        with pytest.raises(ValueError, match="not a scene graph"):
            from_json(text)
