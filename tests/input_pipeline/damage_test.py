"""Damaged rows and pairs are left out one by one; mistakes in the config are no damage."""

import dataclasses
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from input_pipeline import transforms
from input_pipeline.pipeline import eval_batches, open_train, train_batches
from input_pipeline.schema import Expression, Record, Target, encode_mask
from input_pipeline.sources import RecordSource
from refseg_jax.errors import UserError
from refseg_jax.images import preprocess
from tests.input_pipeline.batches import (
    EVERY,
    SPLITS,
    assert_same_rows,
    built,
    make_config,
    rows_of,
    rows_per_epoch,
    take,
)
from tests.input_pipeline.tiny_dataset import build_tiny_dataset, flip_a_bit

data_dir = pytest.fixture(scope="module")(built)


def damage(record: Record) -> Record:
    """Five of seven records, each in its way."""
    small = encode_mask(np.ones((4, 4), np.uint8))
    number, expressions = int(record.image_id[-1]), record.expressions
    changes: dict[int, dict[str, Any]] = {
        0: {"image": record.image[: len(record.image) // 2], "file_name": "two\nlines"},
        1: {"height": record.height - 1},
        3: {"expressions": (dataclasses.replace(expressions[0], text=" \n "), *expressions[1:])},
        4: {"targets": (Target(small, "box"), *record.targets[1:])},
        6: {"image": b""},
    }
    if not record.image_id.startswith("val"):
        return record
    return dataclasses.replace(record, **changes.get(number, {}))


REASONS = {
    "val0": "the image is damaged",
    "val1": "the image is 32 x 32, its masks are 32 x 31",
    "val6": "the image is damaged",
}
#: Image -> why some of its pairs are left out, and how many.
PAIRS = {
    "val3": ("an expression has no word", 1),
    # The whole left box, and both boxes.
    "val4": ("target 0: the RLE's runs do not fill 32 x 32 pixels", 3),
}


@pytest.fixture(scope="module")
def damaged_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("damaged")
    build_tiny_dataset(folder, SPLITS, change=damage)
    return folder


@pytest.mark.parametrize("training", [False, True])
def test_a_damaged_row_is_invalid_and_the_others_keep_their_place(
    data_dir: Path, damaged_dir: Path, training: bool
):
    whole, damaged = (
        rows_of(
            take(train_batches(config, batch_size=7, seed=5), 2)
            if training
            else list(eval_batches(config, batch_size=4))
        )
        for config in (
            make_config(folder, pairs=6, granularities=EVERY) for folder in (data_dir, damaged_dir)
        )
    )
    assert len(damaged) == len(whole)
    reasons = []
    for one, (values, meta) in zip(whole, damaged, strict=True):
        name = one[1].image_ids[0]
        if name in PAIRS:
            words, left_out = PAIRS[name]
            assert meta.key == one[1].key and not meta.error
            lost = set(one[1].pair_ids) - set(meta.pair_ids)
            if training and name == "val3":
                # The other five are drawn.
                assert not meta.left_out and len(lost) == 1
            else:
                assert all(words in reason and name in reason for reason in meta.left_out)
                assert meta.left_out
                assert len(lost) == left_out
            assert values["valid"].sum() == one[0]["valid"].sum() - left_out
            kept = {i: k for k, i in enumerate(meta.pair_ids) if i}
            for k, i in enumerate(one[1].pair_ids):
                if i in kept:
                    for field in ("mask", "present"):
                        np.testing.assert_array_equal(
                            values[field][0, kept[i]], one[0][field][0, k]
                        )
            continue
        if name not in REASONS:
            assert_same_rows([(values, meta)], [one])
            continue
        reasons.append(name)
        assert meta.key == one[1].key and set(meta.pair_ids) == {""}
        assert not values["valid"].any() and not values["present"].any()
        assert REASONS[name] in meta.error and name in meta.error and "\n" not in meta.error
    assert sorted(set(reasons)) == sorted(REASONS)


@pytest.mark.parametrize("when", ["before the table", "after it"])
@pytest.mark.parametrize("sampling", ["image", "referent", "expressions"])
def test_a_flipped_bit_quarantines_its_row_alone(tmp_path: Path, when: str, sampling: str):
    folder = build_tiny_dataset(tmp_path, {"val": 5})
    config = make_config(tmp_path, pairs=2, granularities=("object",), sampling=sampling)
    if when == "after it":
        rows_per_epoch(config)
        (table,) = folder.glob("expressions-*")
        flip_a_bit(folder, "val")
        # A disk that rots does not change the date.
        table.rename(
            folder
            / f"expressions-val-{RecordSource(str(tmp_path), 'tiny', 'val').fingerprint()}.npz"
        )
    else:
        flip_a_bit(folder, "val")
    count = rows_per_epoch(config)
    rows = rows_of(take(train_batches(config, batch_size=count, seed=0), 1))
    rows += rows_of(list(eval_batches(config, batch_size=2)))
    errors = {meta.error for _, meta in rows if meta.error}
    (error,) = errors
    assert str(folder) in error and "of split 'val' is damaged" in error
    for values, meta in rows:
        assert values["valid"].any() == (not meta.error and meta.key != "")
    assert len({meta.image_ids for _, meta in rows if meta.image_ids != ("",)}) == 4
    assert all(meta.key for _, meta in rows if meta.error)


def test_a_record_that_is_sound_again_stays_out_of_the_run(tmp_path: Path):
    """Which of its expressions take part is not known."""
    folder = build_tiny_dataset(tmp_path, {"val": 3})
    flip_a_bit(folder, "val")
    batches = train_batches(make_config(tmp_path), batch_size=3, seed=0)
    flip_a_bit(folder, "val")
    errors = [meta.error for _, meta in rows_of(take(batches, 1)) if meta.error]
    assert len(errors) == 1 and "could not be read when the run began; begin again" in errors[0]
    rows = rows_of(take(train_batches(make_config(tmp_path), batch_size=3, seed=0), 1))
    assert not any(meta.error for _, meta in rows)


@pytest.mark.parametrize(
    ("field", "value", "words"),
    [
        ("tokenizer", "clop", "tokenizer 'clop': no such file"),
        ("tokenizer", "/nowhere/tokenizer.json", "tokenizer '/nowhere/tokenizer.json': no such"),
        ("tokenizer", "", "tokenizer ''"),
        ("resize", "leterbox", "config.data.resize 'leterbox': did you mean 'letterbox'"),
        ("mask_cells", "nearst", "config.data.mask_cells 'nearst': did you mean 'nearest'"),
        ("context_length", 1, "config.data.context_length=1"),
        ("context_length", 0, "config.data.context_length=0"),
    ],
)
def test_a_mistake_in_the_config_is_told_at_once_and_not_as_damage(
    data_dir: Path, monkeypatch: pytest.MonkeyPatch, field: str, value: Any, words: str
):
    # The hub would be asked for the tokenizer.
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    for begin in (partial(train_batches, seed=0), eval_batches):
        with pytest.raises(UserError) as caught:
            begin(make_config(data_dir, "train", **{field: value}), batch_size=2)
        assert words in str(caught.value) and "\n" not in str(caught.value)


class Refused(Exception):
    """An exception of a library that nobody knows."""


@pytest.mark.parametrize(
    "error",
    [
        MemoryError("no room"),
        IndexError("7"),
        RecursionError("deep"),
        Refused("so"),
        OSError(5, "I/O"),
    ],
    ids=lambda error: type(error).__name__,
)
@pytest.mark.parametrize("step", ["decode_image", "prepare_image", "prepare_mask"])
@pytest.mark.parametrize("native", [False, True])
def test_whatever_a_step_raises_costs_its_record_alone(
    data_dir: Path, monkeypatch: pytest.MonkeyPatch, step: str, error: Exception, native: bool
):
    home: Any = transforms if step == "decode_image" else preprocess
    sound, calls = getattr(home, step), list[int]()

    def raises(*arguments: Any, **named: Any) -> Any:
        calls.append(0)
        if len(calls) == 2:
            raise error
        return sound(*arguments, **named)

    make = dataclasses.replace(open_train(make_config(data_dir)).make, native=native)
    expected = [make(row, np.random.default_rng(row)) for row in range(7)]
    monkeypatch.setattr(home, step, raises)
    found = [make(row, np.random.default_rng(row)) for row in range(7)]
    bad = 0 if step == "prepare_mask" else 1  # Each row has two masks.
    (reason,) = filter(None, (found[bad].meta[0].error, *found[bad].meta[0].left_out))
    assert f"{type(error).__name__}: {error}" in reason
    (image_id,) = expected[bad].meta[0].image_ids
    assert "\n" not in reason and reason.startswith(f"tiny: image {image_id} ({image_id}.jpg): ")
    assert found[bad].batch.valid.sum() == (1 if step == "prepare_mask" else 0)
    del found[bad], expected[bad]
    assert_same_rows(rows_of(found), rows_of(expected))


def test_a_damaged_image_of_a_group_leaves_the_others(tmp_path: Path):
    def grouped(record: Record) -> Record:
        shared = Expression(f"{record.image_id}-g", "any box", (0,), "group", group="g")
        image = record.image[:100] if record.image_id == "val1" else record.image
        return dataclasses.replace(record, image=image, expressions=(shared,))

    build_tiny_dataset(tmp_path, {"val": 4}, change=grouped)
    config = make_config(tmp_path, sampling="group", granularities=("group",), pairs=1, images=4)
    for batches in (
        take(train_batches(config, batch_size=1, seed=0), 1),
        list(eval_batches(config, batch_size=1)),
    ):
        ((values, meta),) = rows_of(batches)
        assert set(meta.image_ids) == {"val0", "val2", "val3", ""} and not meta.error
        assert values["valid"][:, 0].tolist() == [True, True, True, False]
        (reason,) = meta.left_out
        assert reason.startswith("tiny: image val1") and "damaged" in reason
