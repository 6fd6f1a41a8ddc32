"""Scenes keeps what it promises: plain sentences, sound masks, the same bytes from the same seed."""

import collections
import itertools
import json
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import pytest

from input_pipeline.building import builder as building
from input_pipeline.datasets.scenes.config import SPLITS, ScenesConfig
from input_pipeline.datasets.scenes.drawing import draw_scene
from input_pipeline.datasets.scenes.expressions import describe
from input_pipeline.datasets.scenes.graph import ObjectNode, PartNode, SceneGraph, from_json
from input_pipeline.datasets.scenes.kinds import COLOURS, KINDS
from input_pipeline.datasets.scenes.layout import Placed
from input_pipeline.datasets.scenes.records import make_record
from input_pipeline.datasets.scenes.scenes import build
from input_pipeline.schema import Expression, Record
from input_pipeline.sources import RecordSource
from refseg_jax.images.decoding import decode_image
from refseg_jax.text.tokenizers import build_tokenizer
from tests.input_pipeline.datasets.scenes_interpreter import understand

SMALL = ScenesConfig(
    name="small", seed=3, train=60, val=20, test=20, train_groups=4, val_groups=2, test_groups=2
)
MAIN = ("object", "part", "multi", "none", "category", "salient")

Build: TypeAlias = dict[str, list[Record]]


@pytest.fixture(scope="module")
def small() -> Build:
    return {
        split: [make_record(SMALL, split, index) for index in range(SMALL.images(split))]
        for split in SPLITS
    }


def everything(made: Build) -> list[tuple[Record, dict[str, Any], Expression]]:
    """Every record with its graph and each of its expressions."""
    return [
        (record, json.loads(record.metadata), expression)
        for record in itertools.chain(*made.values())
        for expression in record.expressions
    ]


def check_said(text: str, targets: tuple[int, ...], granularity: str, scene: dict[str, Any]):
    understood = understand(text, scene)
    assert understood.readings == {frozenset(targets)}, (text, targets, scene)
    if granularity == "group":
        assert understood.granularity == ("object" if targets else "none")
    else:
        assert understood.granularity == granularity, (text, scene)


def test_every_expression_has_one_reading_and_it_is_its_targets(small: Build):
    for _, scene, expression in everything(small):
        assert len(set(expression.targets)) == len(expression.targets)
        check_said(expression.text, expression.targets, expression.granularity, scene)


def make_graph(rng: np.random.Generator) -> SceneGraph:
    """A graph that was never drawn: few kinds, crowded, positions and areas on the limits."""
    kinds = [str(k) for k in rng.choice(["fish", "car", "bird"], rng.integers(2, 7))]
    depths = rng.permutation(len(kinds))
    target = len(kinds)
    nodes = []
    for number, kind in enumerate(kinds):
        parts = []
        for name in KINDS[kind].parts:
            seen = rng.random() < 0.8
            parts.append(PartNode(name, 90 if seen else 10, target if seen else -1))
            target += seen
        area = int(rng.choice([400, 600, 800, 900, 1200, 1800]))
        full = area * int(rng.choice([100, 100, 133, 150])) // 100
        x, y = (round(0.02 + 0.06 * int(step), 3) for step in rng.integers(0, 17, 2))
        colour = str(rng.choice(["red", "blue", "white"]))
        nodes.append(
            ObjectNode(kind, colour, x, y, area, full, int(depths[number]), number, tuple(parts))
        )
    return SceneGraph("sea", 128, tuple(nodes))


def test_nothing_ambiguous_is_said_of_crowded_scenes():
    config = ScenesConfig(object_referents=6, part_referents=9, wordings=9)
    forms: collections.Counter[str] = collections.Counter()
    for seed in range(250):
        rng = np.random.default_rng([11, seed])
        graph = make_graph(rng)
        scene = json.loads(graph.to_json())
        for said in describe(graph, config, rng):
            check_said(said.text, said.targets, said.granularity, scene)
            forms.update(said.text.split())
    # Every kind of sentence was among them.
    words = "left right top bottom above below largest smallest of both two three everything"
    assert {*words.split(), "all", "things", "and", "salient", "fish"} <= set(forms)


def thing(kind: str, x: float, area: int = 500, **changes: Any) -> dict[str, Any]:
    fields = {"kind": kind, "colour": "red", "x": x, "y": 0.5, "depth": 1, "parts": []}
    return {**fields, "area": area, "full_area": area, **changes}


@pytest.mark.parametrize(
    ("text", "positions", "areas", "readings"),
    [
        ("the car on the left", (0.2, 0.32), (1, 1), [{0}]),
        ("the car on the left", (0.2, 0.319), (1, 1), [{0}, {1}]),
        ("the largest car", (0.2, 0.8), (2, 3), [{1}]),
        ("the largest car", (0.2, 0.8), (21, 30), [{0}, {1}]),
        ("the red car", (0.2, 0.8), (1, 1), [{0}, {1}]),
        ("the blue car", (0.2, 0.8), (1, 1), [set()]),
        ("the most salient object", (0.2, 0.8), (1, 9), [{0}, {1}]),
        ("the most salient object", (0.2, 0.8), (9, 1), [{0}]),
        ("both cars", (0.2, 0.8), (1, 1), [{0, 1}]),
        ("the cars on the left", (0.2, 0.3, 0.45), (1, 1, 1), [{0, 1}, {0, 1, 2}]),
    ],
)
def test_the_listener_hears_what_is_not_plain(
    text: str, positions: tuple[float, ...], areas: tuple[int, ...], readings: list[set[int]]
):
    things = [
        thing("car", x, area, target=number, depth=number)
        for number, (x, area) in enumerate(zip(positions, areas, strict=True))
    ]
    heard = understand(text, {"objects": things}).readings
    assert heard == {frozenset(reading) for reading in readings}


def test_the_fish_may_be_several():
    fish = [thing("fish", 0.2, target=0), thing("fish", 0.4, target=1)]
    heard = understand("the fish on the left", {"objects": fish}).readings
    assert heard == {frozenset({0}), frozenset({0, 1})}


def test_no_target_expressions_match_nothing_but_come_near(small: Build):
    found = [(s, e) for _, s, e in everything(small) if e.granularity == "none"]
    assert len(found) > 50
    for scene, expression in found:
        assert expression.targets == ()
        _, colour, kind = expression.text.split()
        worn = [(o["colour"], o["kind"]) for o in scene["objects"]]
        assert (colour, kind) not in worn
        assert any(c == colour or k == kind for c, k in worn)
        assert colour in KINDS[kind].colours


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


def has_distractor(record: Record, scene: dict[str, Any], expression: Expression) -> bool:
    """Whether another object of a kind that is spoken of is there and is not meant."""
    parents = [record.targets[i].parent for i in expression.targets]
    meant = {i if p < 0 else p for i, p in zip(expression.targets, parents, strict=True)}
    kinds = {record.targets[i].category for i in meant} or {expression.text.split()[-1]}
    return any(o["kind"] in kinds and o["target"] not in meant for o in scene["objects"])


def test_most_expressions_have_a_distractor_of_the_same_kind(small: Build):
    said = [row for row in everything(small) if row[2].granularity != "group"]
    assert np.mean([has_distractor(*row) for row in said]) >= 0.6
    single = [row for row in said if row[2].granularity in ("object", "part")]
    assert np.mean([has_distractor(*row) for row in single]) >= 0.8


def test_every_granularity_occurs(small: Build):
    for split in ("train", "val", "test"):
        said = {e.granularity for record in small[split] for e in record.expressions}
        assert said == set(MAIN), split
        said = {e.granularity for record in small[f"{split}_groups"] for e in record.expressions}
        assert said == {"group"}


def test_expressions_fit_17_clip_tokens(small: Build):
    texts = sorted({expression.text for _, _, expression in everything(small)})
    _, valid = build_tokenizer("clip")(texts, 77)
    assert valid.sum(1).max() <= 17


def test_a_group_has_images_with_and_without_its_target(small: Build):
    for split in ("train_groups", "val_groups", "test_groups"):
        groups: dict[str, list[Expression]] = collections.defaultdict(list)
        for record in small[split]:
            (expression,) = record.expressions
            groups[expression.group].append(expression)
        assert len(groups) == getattr(SMALL, split)
        for members in groups.values():
            assert len(members) == SMALL.group_size
            assert len({e.text for e in members}) == 1
            present = sum(bool(e.targets) for e in members)
            assert 2 <= present <= SMALL.group_size - 2
            assert all(len(e.targets) <= 1 for e in members)


def test_wordings_of_a_referent_mean_the_same(small: Build):
    rewordings = 0
    for record in itertools.chain(*small.values()):
        by_referent: dict[int, list[Expression]] = collections.defaultdict(list)
        for expression in record.expressions:
            by_referent[expression.referent].append(expression)
        for said in by_referent.values():
            assert len({(e.targets, e.granularity) for e in said}) == 1
            assert len({e.text for e in said}) == len(said) <= SMALL.wordings
            rewordings += len(said) - 1
        for granularity, most in (("object", SMALL.object_referents), ("part", 3)):
            said = {e.referent for e in record.expressions if e.granularity == granularity}
            assert len(said) <= most
    assert rewordings > 200


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
    few = ScenesConfig("few", train=26, val=2, test=1, train_groups=1, val_groups=1, test_groups=1)
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
    few = ScenesConfig("few", train=1, val=1, test=1, train_groups=1, val_groups=1, test_groups=1)
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
        ({"group_size": 3}, "group_size 3 is below 4"),
        ({"name": "../x"}, "name '../x' is not made of"),
        ({"name": ""}, "name '' is not made of"),
    ],
)
def test_settings_that_cannot_be_drawn(settings: dict[str, Any], message: str):
    with pytest.raises(ValueError, match=message):
        ScenesConfig(**settings)


def test_the_smallest_group_has_both_kinds_of_images():
    config = ScenesConfig(group_size=4)
    present = [bool(make_record(config, "val_groups", i).expressions[0].targets) for i in range(4)]
    assert sum(present) == 2


def test_a_graph_comes_back_from_its_text():
    graph = make_graph(np.random.default_rng(0))
    assert from_json(graph.to_json()) == graph
    for text in ("", "[]", "{}", graph.to_json().replace('"kind"', '"sort"')):
        with pytest.raises(ValueError, match="not a scene graph"):
            from_json(text)
