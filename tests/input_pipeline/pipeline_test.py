import dataclasses
import json
import logging
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from input_pipeline.pipeline import (
    check_eval,
    eval_batches,
    train_batches,
)
from input_pipeline.schema import Record
from refseg_jax.errors import UserError
from tests.input_pipeline.batches import (
    EVERY,
    assert_same_rows,
    built,
    make_config,
    pair_ids,
    records,
    rows_of,
    rows_per_epoch,
    take,
    weave,
)
from tests.input_pipeline.tiny_dataset import build_tiny_dataset

data_dir = pytest.fixture(scope="module")(built)


# The order of training


def test_global_batches_are_the_same_for_any_number_of_processes(data_dir: Path):
    config = make_config(data_dir, "train", flip_probability=0.5)
    alone = rows_of(take(train_batches(config, batch_size=4, seed=3), 5))
    for count in (2, 4):
        shares = [
            train_batches(config, batch_size=4, seed=3, process_index=p, process_count=count)
            for p in range(count)
        ]
        assert_same_rows(weave([take(share, 5) for share in shares]), alone)


def test_a_run_resumes_mid_epoch_with_identical_batches(data_dir: Path):
    config = make_config(data_dir, "train", flip_probability=0.5)
    batches = train_batches(config, batch_size=4, seed=3)
    # Batches of 4 in epochs of 6 rows: every other state lies within an epoch.
    states, expected = [], []
    for _ in range(8):
        states.append(json.dumps(batches.get_state()))
        expected.append(next(batches))
    for step in (0, 1, 3, 4):
        fresh = train_batches(config, batch_size=4, seed=3)
        fresh.set_state(json.loads(states[step]))
        assert_same_rows(rows_of(take(fresh, 3)), rows_of(expected[step : step + 3]))
    # The iterator that was asked goes back as well.
    batches.set_state(json.loads(states[1]))
    assert_same_rows(rows_of(take(batches, 2)), rows_of(expected[1:3]))


def test_a_run_resumes_on_another_number_of_processes(data_dir: Path):
    config = make_config(data_dir, "train")
    alone = train_batches(config, batch_size=4, seed=3)
    take(alone, 2)
    parts = []
    for p in range(2):
        share = train_batches(config, batch_size=4, seed=3, process_index=p, process_count=2)
        share.set_state(alone.get_state())
        parts.append(take(share, 3))
    assert_same_rows(weave(parts), rows_of(take(alone, 3)))


def test_every_epoch_has_every_row_in_another_order(data_dir: Path):
    config = make_config(data_dir, "train", pairs=1)
    rows = rows_of(take(train_batches(config, batch_size=6, seed=0), 4))
    epochs = [[meta.key for _, meta in rows[at : at + 6]] for at in range(0, 24, 6)]
    assert all(sorted(epoch) == [f"train/{row}" for row in range(6)] for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) > 1
    # And with other sentences: 3 objects' expressions an image, one is drawn an epoch.
    drawn = {(meta.key, meta.pair_ids) for _, meta in rows}
    assert len(drawn) > 6


def test_the_seed_decides_the_order(data_dir: Path):
    config = make_config(data_dir, "train")
    ids = [pair_ids(take(train_batches(config, batch_size=6, seed=s), 2)) for s in (0, 0, 1)]
    assert ids[0] == ids[1] != ids[2]


def test_worker_processes_change_nothing_in_training_and_resume(data_dir: Path):
    config = make_config(data_dir, "train", flip_probability=0.5)
    expected = take(train_batches(config, batch_size=4, seed=3), 6)
    config = dataclasses.replace(config, num_workers=2)
    batches = train_batches(config, batch_size=4, seed=3)
    found, state = take(batches, 3), json.loads(json.dumps(batches.get_state()))
    fresh = train_batches(config, batch_size=4, seed=3)
    fresh.set_state(state)
    assert_same_rows(rows_of([*found, *take(fresh, 3)]), rows_of(expected))


def test_worker_processes_change_nothing_in_evaluation(data_dir: Path):
    # 3 batches for 2 workers: one of them ends before the other.
    config = make_config(data_dir, pairs=6, granularities=EVERY)
    expected = list(eval_batches(config, batch_size=3))
    assert len(expected) == 3
    found = list(eval_batches(dataclasses.replace(config, num_workers=2), batch_size=3))
    assert_same_rows(rows_of(found), rows_of(expected))


# What training draws


def test_one_expression_of_every_referent_is_drawn(data_dir: Path):
    config = make_config(data_dir, "train", pairs=1, sampling="referent")
    assert rows_per_epoch(config) == 12
    rows = rows_of(take(train_batches(config, batch_size=12, seed=0), 8))
    said = {
        e.id: (r.image_id, e.referent) for r in records(data_dir, "train") for e in r.expressions
    }
    for at in range(0, 96, 12):
        drawn = [said[meta.pair_ids[0]] for _, meta in rows[at : at + 12]]
        assert sorted(drawn) == [(f"train{n}", referent) for n in range(6) for referent in (0, 1)]
    # Referent 0 has two sentences, referent 1 has one.
    assert len({meta.pair_ids for _, meta in rows}) == 18


def test_several_expressions_of_an_image_are_about_different_things(data_dir: Path):
    config = make_config(data_dir, "train", pairs=2)
    assert rows_per_epoch(config) == 6
    for values, meta in rows_of(take(train_batches(config, batch_size=6, seed=0), 4)):
        # Expressions 0 and 1 are about the left box, 2 is about the right one.
        assert sorted(name[-1] in "01" for name in meta.pair_ids) == [False, True], meta.pair_ids
        assert values["valid"].all() and values["present"].all()
        assert (values["mask"] > 0).any((2, 3)).all() and "native" not in values


def test_a_flipped_run_mirrors_images_masks_and_words(data_dir: Path):
    # Native sizes that need no scaling, so that the mirror is exact.
    plain, mirrored = (
        rows_of(take(train_batches(config, batch_size=6, seed=0), 1))
        for config in (
            make_config(data_dir, "train", pairs=3, flip_probability=p) for p in (0.0, 1.0)
        )
    )
    for (one, before), (other, after) in zip(plain, mirrored, strict=True):
        assert before.pair_ids == after.pair_ids
        np.testing.assert_array_equal(other["image"], one["image"][:, :, ::-1])
        np.testing.assert_array_equal(other["mask"], one["mask"][..., ::-1])
        assert (other["mask"] != one["mask"]).any()
        said = [text.replace("left", "right") for text in before.expressions]
        assert list(after.expressions) == said
        changed = [k for k, text in enumerate(said) if text != before.expressions[k]]
        assert changed and (one["text"][changed] != other["text"][changed]).any(1).all()


# Evaluation


@pytest.mark.parametrize(("batch_size", "pairs"), [(1, 1), (4, 1), (4, 4), (3, 6), (16, 4)])
def test_evaluation_is_padded_and_sees_every_expression_once(
    data_dir: Path, batch_size: int, pairs: int
):
    config = make_config(data_dir, pairs=pairs, granularities=EVERY)
    batches = list(eval_batches(config, batch_size=batch_size))
    rows = rows_of(batches)
    count = rows_per_epoch(dataclasses.replace(config, sampling="expressions"))
    assert len(batches) == -(-count // batch_size) and len(rows) == len(batches) * batch_size
    expected = [e.id for record in records(data_dir) for e in record.expressions]
    assert pair_ids(batches) == expected
    for values, meta in rows:
        there = np.array(meta.pair_ids) != ""
        np.testing.assert_array_equal(values["valid"], there[None])
        assert not values["present"][:, ~there].any() and not values["native"][:, ~there].any()
        assert not values["text_valid"][~there].any()
        assert meta.error == "" and (meta.key == "") == (not there.any())


def test_processes_evaluate_the_same_batches_as_one(data_dir: Path):
    config = make_config(data_dir, pairs=1, granularities=EVERY)
    alone = rows_of(list(eval_batches(config, batch_size=8)))
    shares = [
        eval_batches(config, batch_size=8, process_index=p, process_count=2) for p in range(2)
    ]
    assert_same_rows(weave([list(share) for share in shares]), alone)


@pytest.mark.parametrize("resize", ["letterbox", "stretch"])
def test_numbers_and_words_are_those_of_the_record(data_dir: Path, resize: str):
    config = make_config(data_dir, pairs=6, granularities=EVERY, resize=resize)
    rows = rows_of(list(eval_batches(config, batch_size=len(records(data_dir)))))
    for (values, meta), record in zip(rows, records(data_dir), strict=True):
        height, width = record.height, record.width
        assert values["size"].tolist() == [[height, width]]
        assert meta.image_ids == (record.image_id,)
        assert meta.expressions == tuple(e.text for e in record.expressions)
        assert meta.granularities == tuple(e.granularity for e in record.expressions)
        assert values["present"][0].tolist() == [bool(e.targets) for e in record.expressions]
        expected = np.zeros((6, 40, 40), np.uint8)
        for k, e in enumerate(record.expressions):
            expected[k, :height, :width] = record.mask(e.targets)
        np.testing.assert_array_equal(values["native"][0], expected)
        # Covered cells, in native pixels, are as many as the mask has (stretched by `affine`).
        scale = values["affine"][0, 0, 0] * values["affine"][0, 1, 1]
        covered = values["mask"][0].sum((1, 2)) / 255 * 16 / scale
        np.testing.assert_allclose(covered, expected.sum((1, 2)), rtol=0.05)


def test_a_target_holds_means_of_cells_or_their_upper_left_pixels(data_dir: Path):
    fine, mean, nearest = (
        np.stack([v["mask"] for v, _ in rows_of(list(eval_batches(config, batch_size=3)))])
        for config in (
            make_config(data_dir, mask_stride=1),
            make_config(data_dir),
            make_config(data_dir, mask_cells="nearest"),
        )
    )
    stride = fine.shape[-1] // mean.shape[-1]
    assert stride > 1
    np.testing.assert_array_equal(nearest, fine[..., ::stride, ::stride])
    assert (nearest != mean).any()


def test_shuffled_words_evaluate_the_masks_of_before(tmp_path: Path):
    def turned(record: Record) -> Record:
        said = record.expressions
        return dataclasses.replace(record, expressions=(*said[3:], *said[:3]))

    build_tiny_dataset(tmp_path, {"val": 3}, change=turned)
    config = make_config(tmp_path, pairs=6, granularities=EVERY)
    plain = rows_of(list(eval_batches(config, batch_size=3)))
    config = dataclasses.replace(config, shuffled_text=True)
    shuffled = rows_of(list(eval_batches(config, batch_size=3)))
    for (one, before), (other, after) in zip(plain, shuffled, strict=True):
        # The only lid, the only pair and what is not there have no other; a box has the other box.
        assert other["valid"].tolist() == [[False] * 3 + [True] * 3]
        left, right = before.expressions[3:5], before.expressions[5]
        assert after.expressions[3:5] == (right, right) and after.expressions[5] in left
        assert after.pair_ids == ("", "", "", *before.pair_ids[3:])
        np.testing.assert_array_equal(other["native"][:, 3:], one["native"][:, 3:])
        np.testing.assert_array_equal(other["text"][3], one["text"][5])
        assert not other["text_valid"][:3].any()


# Settings


def test_settings_that_cannot_be_met_are_refused(data_dir: Path):
    config = make_config(data_dir)
    with pytest.raises(UserError, match="a batch of 3 rows does not divide over 2 processes"):
        train_batches(config, batch_size=3, seed=0, process_count=2)
    with pytest.raises(UserError, match=r"tiny val: no expression of salient.*granularities"):
        rows_per_epoch(dataclasses.replace(config, granularities=("salient",)))


def test_a_canvas_that_does_not_hold_every_image_is_refused(tmp_path: Path):
    build_tiny_dataset(tmp_path, {"val": 2}, size=(32, 40))
    for canvas in ((40, 39), (31, 40), (40, 32)):
        with pytest.raises(UserError, match=r"up to 32 x 40 .* canvas is .*config.eval.canvas"):
            eval_batches(make_config(tmp_path, canvas=canvas), batch_size=1)
    assert len(list(eval_batches(make_config(tmp_path, canvas=(32, 40)), batch_size=1))) == 4


def test_expressions_that_the_granularities_leave_out_are_counted_in_the_log(
    data_dir: Path, caplog: pytest.LogCaptureFixture
):
    with caplog.at_level(logging.INFO, "absl"):
        check_eval(make_config(data_dir, granularities=("object", "part")))
        train_batches(make_config(data_dir, "train", granularities=EVERY), batch_size=2, seed=0)
    kinds = Counter(e.granularity for record in records(data_dir) for e in record.expressions)
    assert caplog.messages == [
        f"tiny val: config.data.granularities leaves out {kinds['multi'] + kinds['none']} of "
        f"{kinds.total()} expressions (multi {kinds['multi']}, none {kinds['none']})"
    ]
