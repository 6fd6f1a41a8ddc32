"""Rows of groups: which images they have, in training and in evaluation."""

import dataclasses
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from input_pipeline.pipeline import PipelineConfig, eval_batches, open_train, train_batches
from input_pipeline.rows import DrawImages
from input_pipeline.schema import Expression, Record
from refseg_jax.batch import HostBatch
from refseg_jax.errors import UserError
from tests.input_pipeline.batches import (
    assert_same_rows,
    make_config,
    records,
    rows_of,
    rows_per_epoch,
    take,
    weave,
)
from tests.input_pipeline.tiny_dataset import build_tiny_dataset, flip_a_bit

#: Image -> whether it has what its group is asked for: 5 and 4 of "any box", 1 and 3 of "the lid".
BOXES = {number: number not in (2, 5, 7, 8) for number in range(9)}
LIDS = {number: number == 10 for number in range(9, 13)}
PRESENT = {f"val{number}": there for number, there in (BOXES | LIDS).items()}


def _grouped(record: Record) -> Record:
    number = int(record.image_id[3:])
    text, target = ("any box", 1) if number in BOXES else ("the lid", 2)
    targets = (target,) if PRESENT[record.image_id] else ()
    shared = Expression(f"{record.image_id}-g", text, targets, "group", group="g")
    return dataclasses.replace(record, expressions=(*record.expressions, shared))


@pytest.fixture(scope="module")
def group_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("groups")
    build_tiny_dataset(folder, {"val": 13}, change=_grouped)
    return folder


def grouped(group_dir: Path, images: int, **changes: Any) -> PipelineConfig:
    fields = {"sampling": "group", "granularities": ("group",), "pairs": 1, **changes}
    return make_config(group_dir, images=images, **fields)


def scored(hosts: list[HostBatch]) -> list[str]:
    """Image ids of the pairs that an evaluation scores."""
    return [
        name
        for host in hosts
        for valid, meta in zip(host.batch.valid, host.meta, strict=True)
        for n, name in enumerate(meta.image_ids)
        if valid[n].any() and n not in meta.reused
    ]


# The draw


@pytest.mark.parametrize(
    ("positives", "negatives", "images", "share", "expected"),
    [
        (5, 5, 8, 0.5, {(4, 4)}),
        (50, 9, 8, 0.5, {(4, 4)}),
        (3, 5, 8, 0.5, {(3, 3)}),
        (1, 7, 8, 0.5, {(1, 1)}),
        (4, 4, 3, 0.5, {(2, 1), (1, 2)}),
        (4, 4, 1, 0.5, {(1, 0), (0, 1)}),
        (9, 9, 8, 0.25, {(6, 2)}),
        (9, 9, 5, 0.3, {(4, 1), (3, 2)}),
        (9, 9, 8, 0.0, {(8, 0)}),
        (5, 0, 8, 0.5, {(5, 0)}),
        (0, 12, 8, 0.5, {(0, 8)}),
    ],
)
def test_the_share_of_negatives_holds_for_every_group_that_has_both(
    positives: int, negatives: int, images: int, share: float, expected: set[tuple[int, int]]
):
    present = np.arange(positives + negatives) < positives
    draw, rng = DrawImages(images, share), np.random.default_rng(0)
    rng.shuffle(present)
    # Without a share of negatives, the table has none.
    present = present[present] if not share else present
    drawn = [draw(present, rng) for _ in range(200)]
    counts = Counter((int(present[d].sum()), int((~present[d]).sum())) for d in drawn)
    assert set(counts) == expected
    for one in drawn:
        assert one.tolist() == sorted(set(one.tolist())), "each once, in the order of the group"
    if len(expected) == 2:
        total = sum(absent * number for (_, absent), number in counts.items())
        assert total / (200 * len(drawn[0])) == pytest.approx(share, abs=0.06)
    # All images have their turn.
    if positives + negatives > len(drawn[0]):
        assert len(set(np.concatenate(drawn).tolist())) == len(present)


@pytest.mark.parametrize("share", [0.1, 0.3, 0.5, 0.7, 0.9])
def test_the_number_of_images_is_the_largest_that_both_roundings_allow(share: float):
    draw = DrawImages(8, share)
    for positives in range(1, 12):
        for negatives in range(1, 12):
            fitting = [
                count
                for count in range(1, 130)
                if np.ceil(count * share - 1e-9) <= negatives
                and count - np.floor(count * share + 1e-9) <= positives
            ]
            assert draw.number(positives, negatives) == max(fitting)


# Training


def test_rows_are_drawn_in_the_order_of_ids_and_anew_each_epoch(group_dir: Path):
    config = grouped(group_dir, 4)
    # 4 of 9 boxes have nothing: 8 images make 2 rows. 1 of 4 lids is there: 2 images.
    assert rows_per_epoch(config) == 3
    rows = rows_of(take(train_batches(config, batch_size=3, seed=0), 20))
    seen: dict[str, set[tuple[str, ...]]] = {"any box": set(), "the lid": set()}
    for values, meta in rows:
        names = tuple(filter(None, meta.image_ids))
        assert meta.error == "" and meta.reused == ()
        assert list(names) == sorted(names) and len(set(names)) == len(names)
        assert names + ("",) * (4 - len(names)) == meta.image_ids
        assert values["valid"][:, 0].tolist() == [bool(name) for name in meta.image_ids]
        there = [PRESENT[name] for name in names]
        assert values["present"][: len(names), 0].tolist() == there
        assert (there.count(True), there.count(False)) == {4: (2, 2), 2: (1, 1)}[len(names)]
        seen[meta.expressions[0]].add(names)
    assert len(seen["any box"]) > 10 and len(seen["the lid"]) == 3


def test_training_without_negatives_has_images_with_targets_alone(group_dir: Path):
    config = grouped(group_dir, 4, negatives=0.0)
    assert rows_per_epoch(config) == 3
    for values, meta in rows_of(take(train_batches(config, batch_size=3, seed=0), 4)):
        names = list(filter(None, meta.image_ids))
        assert all(PRESENT[name] for name in names)
        assert len(names) == (4 if meta.expressions == ("any box",) else 1)
        assert values["present"][: len(names)].all()


def test_a_row_of_one_image_has_a_target_half_of_the_time(group_dir: Path):
    config = grouped(group_dir, 1)
    assert rows_per_epoch(config) == 8 + 2
    rows = rows_of(take(train_batches(config, batch_size=10, seed=0), 20))
    present = [bool(values["present"][0, 0]) for values, _ in rows]
    assert np.mean(present) == pytest.approx(0.5, abs=0.1)
    assert {meta.image_ids[0] for _, meta in rows} == set(PRESENT)


def test_groups_are_the_same_for_any_number_of_processes_and_after_a_resume(group_dir: Path):
    config = grouped(group_dir, 4, flip_probability=0.5)
    alone = train_batches(config, batch_size=4, seed=3)
    hosts = take(alone, 2)
    state = alone.get_state()
    hosts += take(alone, 3)
    shares = [
        train_batches(config, batch_size=4, seed=3, process_index=p, process_count=2)
        for p in range(2)
    ]
    assert_same_rows(weave([take(share, 5) for share in shares]), rows_of(hosts))
    fresh = train_batches(config, batch_size=4, seed=3)
    fresh.set_state(state)
    assert_same_rows(rows_of(take(fresh, 3)), rows_of(hosts[2:]))


def test_images_that_are_asked_for_the_same_text_are_a_group(group_dir: Path):
    kinds = ("object", "none", "group")
    config = grouped(group_dir, 4, sampling="text", granularities=kinds)
    rows = rows_of(take(train_batches(config, batch_size=4, seed=0), 40))
    asked: dict[str, set[str]] = {}
    for record in records(group_dir):
        for e in record.expressions:
            if e.granularity in kinds:
                asked.setdefault(e.text, set()).add(record.image_id)
    seen: dict[str, set[str]] = {}
    for _, meta in rows:
        seen.setdefault(meta.expressions[0], set()).update(filter(None, meta.image_ids))
    # "any box", "the lid", "the box on the left", "the purple box", and three colours.
    assert set(seen) == set(asked) and len(seen) == 7
    assert all(found <= asked[text] for text, found in seen.items())
    assert seen["the lid"] == asked["the lid"]


def test_a_text_that_one_image_has_is_no_group(tmp_path: Path):
    def alone(record: Record) -> Record:
        said = dataclasses.replace(record.expressions[0], text=f"box {record.image_id}")
        return dataclasses.replace(record, expressions=(said, *record.expressions[1:2]))

    build_tiny_dataset(tmp_path, {"val": 3}, change=alone)
    fields = {"sampling": "text", "granularities": ("object",)}
    assert rows_per_epoch(grouped(tmp_path, 2, **fields)) == 2
    with pytest.raises(UserError, match=r"no expression of object that images of a group share"):
        rows_per_epoch(grouped(tmp_path, 2, granularities=("object",)))


@pytest.mark.parametrize("sampling", ["text", "group"])
def test_an_image_with_several_expressions_of_a_text_is_in_its_group_once_with_all_targets(
    tmp_path: Path, sampling: str
):
    def twice(record: Record) -> Record:
        """Asked for both boxes by a line each; val2's left one and val3's are said to be absent."""
        given = {"val2": ((), (1,)), "val3": ((), ())}.get(record.image_id, ((1,), (0,)))
        first, second = (
            Expression(f"{record.image_id}-{k}", "box", targets, "object", k, group="g")
            for k, targets in enumerate(given)
        )
        # Of another granularity, and with another text.
        part = dataclasses.replace(first, id="lid", targets=(2,), granularity="part")
        other = dataclasses.replace(first, id="lid", targets=(2,), text="lid")
        return dataclasses.replace(record, expressions=(part, first, other, second))

    build_tiny_dataset(tmp_path, {"val": 4}, change=twice)
    config = grouped(tmp_path, 8, sampling=sampling, granularities=("object",))
    evaluated = rows_of(list(eval_batches(config, batch_size=2)))
    trained = rows_of(take(train_batches(config, batch_size=2, seed=0), 8))
    found = {record.image_id: record for record in records(tmp_path)}
    drawn = set[str]()
    for row in (evaluated, trained):
        boxes = [(values, meta) for values, meta in row if meta.expressions == ("box",)]
        assert boxes
        for values, meta in boxes:
            names = list(filter(None, meta.image_ids))
            drawn.update(names)
            assert len(set(names)) == len(names)
            for n, name in enumerate(names):
                assert values["present"][n, 0] == (name != "val3")
                union = found[name].mask({"val2": (1,), "val3": ()}.get(name, (0, 1)))
                seen = values["mask"][n, 0] / 255
                # Cells of the network's square, in which the image stands in the middle.
                assert seen.mean() == pytest.approx(union.sum() / 32**2, abs=0.02), name
                if "native" in values:
                    native = values["native"][n, 0, : union.shape[0], : union.shape[1]]
                    np.testing.assert_array_equal(native, union)
    assert drawn == set(found)
    ids = [name for _, meta in evaluated for name in meta.pair_ids if name and name != "lid"]
    assert sorted(ids) == ["val0-0", "val1-0", "val2-1", "val3-0"]


# Evaluation


@pytest.mark.parametrize(
    ("images", "expected"),
    [
        (1, [[name] for name in sorted(f"val{n}" for n in BOXES)] + [["val10"], ["val11"]]),
        (4, [["val0", "val1", "val2", "val3"], ["val4", "val5", "val6", "val7"]]),
        (5, [["val0", "val1", "val2", "val3", "val4"]]),
        (8, [[f"val{n}" for n in range(8)]]),
    ],
)
def test_evaluation_cuts_groups_in_the_order_of_ids(
    group_dir: Path, images: int, expected: list[list[str]]
):
    hosts = list(eval_batches(grouped(group_dir, images), batch_size=2))
    rows = [list(filter(None, meta.image_ids)) for _, meta in rows_of(hosts)]
    assert rows[: len(expected)] == expected
    assert sorted(scored(hosts)) == sorted(PRESENT), "each image once"


def test_the_last_chunk_is_filled_by_images_that_do_not_count_twice(group_dir: Path):
    found = {record.image_id: record for record in records(group_dir)}
    rows = rows_of(list(eval_batches(grouped(group_dir, 5), batch_size=3)))
    values, meta = rows[1]
    assert meta.image_ids == ("val4", "val5", "val6", "val7", "val8") and meta.reused == (0,)
    for n, name in enumerate(meta.image_ids):
        record = found[name]
        shared = record.expressions[-1]
        # Valid and complete, for the model, whether it is reused or not.
        assert values["valid"][n, 0]
        said = (meta.pair_ids[n], meta.granularities[n], meta.groups[n], meta.categories[n])
        assert said == (shared.id, "group", "g", "box" if PRESENT[name] else "")
        assert values["size"][n].tolist() == [record.height, record.width]
        assert values["present"][n, 0] == PRESENT[name]
        native = values["native"][n, 0, : record.height, : record.width]
        np.testing.assert_array_equal(native, record.mask(shared.targets))
    # The four lids are fewer than N: their row is padded.
    values, meta = rows[2]
    assert meta.image_ids == ("val10", "val11", "val12", "val9", "") and meta.reused == ()
    assert values["valid"][:, 0].tolist() == [True] * 4 + [False]


def test_an_evaluation_of_positives_leaves_out_the_others(group_dir: Path):
    hosts = list(eval_batches(grouped(group_dir, 4, positives_only=True), batch_size=2))
    assert sorted(scored(hosts)) == sorted(name for name, there in PRESENT.items() if there)
    single = make_config(group_dir, granularities=("object", "none"), positives_only=True)
    kinds = {
        g
        for _, meta in rows_of(list(eval_batches(single, batch_size=2)))
        for g in meta.granularities
    }
    assert kinds == {"object", ""}


@pytest.mark.parametrize("images", [1, 4, 8])
def test_processes_evaluate_the_same_groups_as_one(group_dir: Path, images: int):
    config = grouped(group_dir, images)
    alone = rows_of(list(eval_batches(config, batch_size=4)))
    shares = [
        eval_batches(config, batch_size=4, process_index=p, process_count=2) for p in range(2)
    ]
    assert_same_rows(weave([list(share) for share in shares]), alone)


def test_a_damaged_image_costs_itself_alone_and_is_told_once(tmp_path: Path):
    def damaged(record: Record) -> Record:
        # It is in the row of its own, and fills the last one up.
        image = b"no image" if record.image_id == "val4" else record.image
        return dataclasses.replace(_grouped(record), image=image)

    build_tiny_dataset(tmp_path, {"val": 13}, change=damaged)
    hosts = list(eval_batches(grouped(tmp_path, 6), batch_size=4))
    assert sorted(scored(hosts)) == sorted(set(PRESENT) - {"val4"})
    first, last = (meta for _, meta in rows_of(hosts)[:2])
    assert len(first.left_out) == 1 and "image val4" in first.left_out[0]
    assert last.left_out == () and last.error == ""
    assert last.image_ids == ("val3", "val5", "val6", "val7", "val8", "")
    assert last.reused == (0, 1)
    rows = rows_of(take(train_batches(grouped(tmp_path, 8), batch_size=2, seed=0), 3))
    assert all(meta.error == "" and "val4" not in meta.image_ids for _, meta in rows)


def test_a_record_that_cannot_be_read_is_quarantined(tmp_path: Path):
    folder = build_tiny_dataset(tmp_path, {"val": 13}, change=_grouped)
    flip_a_bit(folder, "val")
    for changes in ({}, {"positives_only": True}, {"sampling": "text"}):
        hosts = list(eval_batches(grouped(tmp_path, 4, **changes), batch_size=2))
        (reason,) = {meta.error for _, meta in rows_of(hosts) if meta.error}
        assert "damaged" in reason
    lost = set(PRESENT) - set(scored(list(eval_batches(grouped(tmp_path, 4), batch_size=2))))
    assert len(lost) == 1
    for share in (0.5, 0.0):
        config = grouped(tmp_path, 4, negatives=share)
        rows = rows_of(take(train_batches(config, batch_size=rows_per_epoch(config), seed=0), 1))
        assert [bool(meta.error) for _, meta in rows].count(True) == 1
        assert not lost & {name for _, meta in rows for name in meta.image_ids}


# Settings


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"pairs": 2}, r"set config\.data\.pairs=1 \(now 2\), and config\.eval\.pairs=1"),
        ({"negatives": 1.0}, r"config\.data\.negatives=1: give a share from 0 to below 1"),
        ({"negatives": -0.5}, r"config\.data\.negatives=-0\.5"),
        ({"images": 0}, r"config\.data\.images=0"),
    ],
)
def test_settings_of_groups_that_cannot_be_met_are_refused(
    group_dir: Path, changes: dict[str, Any], words: str
):
    config = dataclasses.replace(grouped(group_dir, 4), **changes)
    for begin in (open_train, lambda config: eval_batches(config, batch_size=1)):
        with pytest.raises(UserError, match=words):
            begin(config)


def test_groups_have_no_shuffled_words(group_dir: Path):
    with pytest.raises(UserError, match=r"leave out evaluations with shuffled"):
        eval_batches(grouped(group_dir, 4, shuffled_text=True), batch_size=1)
