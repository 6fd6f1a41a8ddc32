"""Scenes that the tests of Scenes share."""

import itertools
import json
from typing import Any, TypeAlias

import numpy as np

from input_pipeline.datasets.scenes.config import SPLITS, ScenesConfig
from input_pipeline.datasets.scenes.graph import ObjectNode, PartNode, SceneGraph
from input_pipeline.datasets.scenes.kinds import KINDS
from input_pipeline.datasets.scenes.records import make_record
from input_pipeline.schema import Expression, Record

SMALL = ScenesConfig(
    name="small",
    seed=3,
    train=80,
    val=40,
    test=40,
    train_groups=8,
    val_groups=4,
    test_groups=4,
    novel_train=12,
    novel_test=12,
)
FEW = dict.fromkeys(("train", "val", "test", "novel_train", "novel_test"), 2) | dict.fromkeys(
    ("train_groups", "val_groups", "test_groups"), 1
)
Build: TypeAlias = dict[str, list[Record]]


def make_small() -> Build:
    """All records of `SMALL`."""
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


def make_graph(rng: np.random.Generator) -> SceneGraph:
    """A graph that was never drawn: few kinds, crowded, positions and areas on the limits."""
    kinds = [str(k) for k in rng.choice(["fish", "car", "bird"], rng.integers(2, 7))]
    depths = rng.permutation(len(kinds))
    target = len(kinds)
    nodes = []
    for number, kind in enumerate(kinds):
        parts = []
        worn = [name for name in KINDS[kind].extras if rng.random() < 0.5]
        for name in (*KINDS[kind].parts, *worn):
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
