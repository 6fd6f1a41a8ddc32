"""Mixtures: whose turn it is, the same batches everywhere, what is left out, mistakes."""

import dataclasses
import json
import logging
import math
import pickle
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from input_pipeline.leakage import Exclusion
from input_pipeline.mixtures import Member, Mixture, Schedule, open_mixture, read_members
from input_pipeline.pipeline import PipelineConfig, train_batches
from refseg_jax.batch import HostBatch
from refseg_jax.errors import UserError
from refseg_jax.naming import construct
from tests.input_pipeline.batches import assert_same_rows, rows_of, take, weave
from tests.input_pipeline.building.pools import build_pool

#: Of each member: N, K, L.
SHAPES = {"objects": (1, 2, 12), "parts": (1, 1, 9), "groups": (2, 1, 12)}
WEIGHTS = {"objects": 3.0, "parts": 1.5, "groups": 0.5}


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`one` shares images 2 and 3 with `two`'s val, `two` shares 10 with `one`'s test."""
    folder = tmp_path_factory.mktemp("pools")
    build_pool(folder, "one", train=range(8), test=[10, 40])
    build_pool(folder, "two", train=range(10, 15), val=[2, 3, 41])
    return folder


def read(data_dir: Path, mixture: dict[str, dict[str, Any]], **fields: Any) -> list[Member]:
    """As main.py does, from the fields of `config.data`."""
    data = {
        "data_dir": str(data_dir),
        "dataset": "one",
        "split": "train",
        "image_size": 32,
        "mask_stride": 4,
        "pairs": 2,
        "context_length": 12,
        "flip_probability": 0.5,
        **fields,
    }
    return read_members(
        mixture,
        lambda **changes: construct(PipelineConfig, {**data, **changes}, what="config.data"),
    )


def members(data_dir: Path, **fields: Any) -> list[Member]:
    three = {
        "objects": {"weight": WEIGHTS["objects"]},
        "parts": {
            "weight": WEIGHTS["parts"],
            "granularities": ("part",),
            "pairs": 1,
            "context_length": 9,
        },
        "groups": {
            "weight": WEIGHTS["groups"],
            "dataset": "two",
            "sampling": "group",
            "granularities": ("group",),
            "images": 2,
            "pairs": 1,
        },
    }
    return read(data_dir, three, **fields)


def mixture(data_dir: Path, **fields: Any) -> Mixture:
    return open_mixture(members(data_dir, **fields))


def batches(mixed: Mixture, **changes: Any) -> Any:
    return mixed.batches(**{"batch_size": 4, "seed": 3, **changes})


def assert_same(found: list[HostBatch], expected: list[HostBatch]) -> None:
    assert [host.name for host in found] == [host.name for host in expected]
    assert_same_rows(rows_of(found), rows_of(expected))


# Whose turn it is


@pytest.mark.parametrize(
    "weights", [[1], [1, 1], [3.0, 1.0], [0.7, 0.3], [5, 0.1, 2.5, 1e-3], [1 / 3, 2 / 3], [1e-9, 1]]
)
def test_members_never_stray_far_from_their_share(weights: list[float]) -> None:
    schedule = Schedule(weights)
    counts = np.zeros(len(weights))
    for step in range(3000):
        member, number = schedule[step]
        # Each member's own batches come one after the other.
        assert number == counts[member]
        counts[member] += 1
        share = (step + 1) * np.array(weights) / sum(weights)
        assert np.abs(counts - share).max() < 1 + math.log(len(weights)) + 1e-6


def test_random_weights_keep_the_bound_too() -> None:
    rng = np.random.default_rng(0)
    for _ in range(60):
        weights = (rng.exponential(size=rng.integers(2, 12)) ** 3 + 1e-3).tolist()
        schedule = Schedule(weights)
        turns = np.array([schedule[step][0] for step in range(300)])
        counts = np.cumsum(turns[:, None] == np.arange(len(weights)), 0)
        share = np.arange(1, 301)[:, None] * np.array(weights) / sum(weights)
        assert np.abs(counts - share).max() < 1 + math.log(len(weights)) + 1e-6


def test_equal_members_take_turns_and_any_step_is_known_at_once() -> None:
    schedule = Schedule([1, 1, 1])
    assert [schedule[step] for step in range(4)] == [(0, 0), (1, 0), (2, 0), (0, 1)]
    far = 10**15
    assert schedule[3 * far] == (0, far)
    assert pickle.loads(pickle.dumps(schedule))[7] == schedule[7]


# Batches


def test_a_batch_is_of_one_member_and_of_its_shape(data_dir: Path) -> None:
    found = take(batches(mixture(data_dir)), 20)
    counts = Counter(host.name for host in found)
    assert counts == {"objects": 12, "parts": 6, "groups": 2}
    for host in found:
        n, k, length = SHAPES[host.name]
        assert host.batch.image.shape[:2] == (4, n)
        assert host.batch.text.shape == (4, k, length)
        assert host.batch.mask.shape[:3] == (4, n, k)
        assert all(meta.key.startswith(f"{host.name}/train/") for meta in host.meta)
        kinds = {kind for meta in host.meta for kind in meta.granularities}
        assert kinds == {host.name.removesuffix("s")}
        assert host.batch.valid.all()


def test_global_batches_are_the_same_for_any_number_of_processes(data_dir: Path) -> None:
    mixed = mixture(data_dir)
    alone = take(batches(mixed), 12)
    assert {host.name for host in alone} == set(SHAPES)
    for count in (2, 4):
        shares = [
            take(batches(mixed, process_index=p, process_count=count), 12) for p in range(count)
        ]
        for hosts in zip(*shares, strict=True):
            assert len({(host.name, host.batch.text.shape) for host in hosts}) == 1
        assert_same_rows(weave(shares), rows_of(alone))


@pytest.mark.parametrize("workers", [0, 2])
def test_a_run_resumes_anywhere_with_identical_batches(data_dir: Path, workers: int) -> None:
    expected = take(batches(mixture(data_dir)), 14)
    running = batches(mixture(data_dir, num_workers=workers))
    states = [json.dumps(running.get_state())]
    found = []
    for _ in range(8):
        found.append(next(running))
        states.append(json.dumps(running.get_state()))
    assert_same(found, expected[:8])
    for step in (3,) if workers else (1, 2, 5, 8):
        fresh = batches(mixture(data_dir, num_workers=workers))
        fresh.set_state(json.loads(states[step]))
        assert_same(take(fresh, 6), expected[step : step + 6])


def test_a_run_resumes_on_another_number_of_processes(data_dir: Path) -> None:
    mixed = mixture(data_dir)
    alone = batches(mixed)
    take(alone, 5)
    shares = []
    for p in range(2):
        share = batches(mixed, process_index=p, process_count=2)
        share.set_state(alone.get_state())
        shares.append(take(share, 7))
    assert_same_rows(weave(shares), rows_of(take(alone, 7)))


def test_a_member_sees_each_of_its_rows_once_an_epoch_in_another_order(data_dir: Path) -> None:
    mixed = mixture(data_dir)
    # 6 rows of `objects` (8 images without 2 and 3) in batches of 2.
    mine = [h for h in take(batches(mixed, batch_size=2), 40) if h.name == "objects"][:12]
    keys = [meta.key for host in mine for meta in host.meta]
    epochs = [keys[at : at + 6] for at in range(0, 24, 6)]
    assert all(sorted(epoch) == [f"objects/train/{row}" for row in range(6)] for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) > 1


def test_a_member_keeps_its_batches_when_another_comes(data_dir: Path) -> None:
    def of_objects(mixed: Mixture) -> list[HostBatch]:
        return [host for host in take(batches(mixed), 30) if host.name == "objects"][:6]

    everyone = members(data_dir)
    assert_same(of_objects(open_mixture(everyone[:1])), of_objects(open_mixture(everyone)))


def test_members_on_one_split_have_orders_of_their_own(data_dir: Path) -> None:
    mixed = open_mixture(read(data_dir, {"a": {}, "b": {}}))
    found = take(batches(mixed, batch_size=6), 8)
    ids = {
        name: [meta.image_ids for host in found if host.name == name for meta in host.meta]
        for name in "ab"
    }
    assert sorted(ids["a"]) == sorted(ids["b"]) and ids["a"] != ids["b"]


def test_a_member_may_have_batches_of_its_own_size(data_dir: Path) -> None:
    fields = {"a": {}, "b": {"batch_size": 2, "weight": 3.0}}
    mixed = open_mixture(read(data_dir, fields))
    found = take(batches(mixed, batch_size=6), 8)
    sizes = {(host.name, len(host.meta)) for host in found}
    assert sizes == {("a", 6), ("b", 2)}
    shares = [
        take(batches(mixed, batch_size=6, process_index=p, process_count=2), 8) for p in (0, 1)
    ]
    assert_same_rows(weave(shares), rows_of(found))
    # One step in four has 6 rows, the others 2: 3 rows a step.
    assert mixed.steps_of(2.5, 6) == round(2.5 * mixed.rows_per_epoch / 3)
    assert open_mixture(read(data_dir, {})).steps_of(2.0, 4) == 4


def test_without_a_mixture_the_batches_are_those_of_the_split(data_dir: Path) -> None:
    (member,) = read(data_dir, {})
    mixed = open_mixture([member])
    # Published splits stay as they are: 2 and 3 are in the val of `two`.
    assert mixed.rows_per_epoch == 8 and mixed.exclusions == {}
    plain = train_batches(member.data, batch_size=4, seed=3)
    running = batches(mixed)
    assert running.get_state() == plain.get_state()
    assert_same(take(running, 5), take(plain, 5))


# What is left out


def test_no_member_trains_on_an_image_of_an_evaluation_set(
    data_dir: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, "absl"):
        mixed = mixture(data_dir)
    assert mixed.rows_per_epoch == 6 + 6 + 2
    seen: dict[str, set[str]] = {name: set() for name in SHAPES}
    for host in take(batches(mixed), 40):
        seen[host.name] |= {name for meta in host.meta for name in meta.image_ids if name}
    assert seen["objects"] == seen["parts"] == {"0", "1", "4", "5", "6", "7"}
    assert seen["groups"] == {"11", "12", "13", "14"}
    assert mixed.exclusions["parts"].by == {"two/val": 2}
    assert mixed.exclusions["parts"].expressions_left_out == 2
    assert (
        "config.mixture.groups: two train: 1 of 5 images and 1 of 5 expressions left out "
        "(images of one/test 1); 2 rows an epoch" in caplog.text
    )
    (stored,) = (data_dir / "two" / "1.0.0").glob("leakage-train-*.json")
    assert json.loads(stored.read_text())["image_ids"] == ["10"]


def test_a_member_may_keep_an_evaluation_set(data_dir: Path) -> None:
    mixed = open_mixture(
        read(data_dir, {"a": {"keep_held_out": ("two",)}, "b": {"dataset": "two"}})
    )
    assert [len(rows.rows) for rows in mixed.rows] == [8, 4]
    assert mixed.exclusions["a"].kept == ("two/val",)


def test_a_run_that_resumes_leaves_out_what_it_did_when_it_began(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    build_pool(tmp_path, "one", train=range(6), val=[0])
    begun = open_mixture(read(tmp_path, {"a": {}}))
    expected = take(batches(begun), 5)
    build_pool(tmp_path, "two", val=[1, 2])
    stored = {name: Exclusion(**dataclasses.asdict(e)) for name, e in begun.exclusions.items()}
    again = open_mixture(read(tmp_path, {"a": {}}), stored)
    assert again.exclusions == begun.exclusions
    assert_same(take(batches(again), 5), expected)
    assert "evaluation sets were built that hold 2 of the images" in caplog.text
    assert [len(rows.rows) for rows in open_mixture(read(tmp_path, {"a": {}})).rows] == [3]
    # Also where nothing would remain for a run that begins now.
    build_pool(tmp_path, "three", val=range(6))
    assert open_mixture(read(tmp_path, {"a": {}}), stored).rows_per_epoch == 5
    with pytest.raises(UserError, match="all 6 images are in evaluation sets"):
        open_mixture(read(tmp_path, {"a": {}}))


# Mistakes


@pytest.mark.parametrize(
    ("entry", "reason"),
    [
        ({"weight": 0}, r"config.mixture.a.weight=0: give a positive number"),
        ({"weight": -1.5}, r"config.mixture.a.weight=-1.5: give"),
        ({"weight": math.nan}, r"config.mixture.a.weight=nan: give"),
        ({"weight": math.inf}, r"config.mixture.a.weight=inf: give"),
        ({"batch_size": -1}, r"config.mixture.a.batch_size=-1: give a number of rows, or 0"),
        ({"wieght": 2}, r"unknown field of config.mixture.a 'wieght': did you mean 'weight'"),
        ({"tokenizer": "clip"}, r"unknown field of config.mixture.a 'tokenizer'"),
    ],
)
def test_a_member_that_makes_no_sense_is_one_line(
    data_dir: Path, entry: dict[str, Any], reason: str
) -> None:
    with pytest.raises(UserError, match=reason) as e:
        read(data_dir, {"a": entry, "b": {}})
    assert "\n" not in str(e.value)


@pytest.mark.parametrize(
    ("entry", "reason"),
    [
        ({"dataset": "three"}, r"config.mixture.a: .*three.*no built dataset"),
        ({"split": "trian"}, r"config.mixture.a: .*no split 'trian'; there are test, train"),
        ({"granularities": ("objects",)}, r"config.mixture.a: unknown granularity 'objects': did"),
        (
            {"sampling": "imgae"},
            r"config.mixture.a: unknown sampling 'imgae': did you mean 'image'",
        ),
        ({"granularities": ("salient",)}, r"config.mixture.a: one train: no expression of salient"),
        ({"split": "test"}, r"config.mixture.a: one test: all 2 images .*one/test.*keep_held_out"),
        ({"keep_held_out": ("two/vla",)}, r"config.mixture.a: .*'two/vla': did you mean 'two/val'"),
    ],
)
def test_a_member_that_cannot_be_trained_on_is_one_line(
    data_dir: Path, entry: dict[str, Any], reason: str
) -> None:
    chosen = read(data_dir, {"a": entry, "b": {"dataset": "two"}})
    with pytest.raises(UserError, match=reason) as e:
        open_mixture(chosen)
    assert "\n" not in str(e.value)


def test_a_batch_that_does_not_divide_is_refused(data_dir: Path) -> None:
    with pytest.raises(UserError, match="a batch of 3 rows does not divide over 2 processes"):
        batches(mixture(data_dir), batch_size=3, process_count=2)
