"""Texts without a word and texts that are cut: found when a run begins, and told once."""

import dataclasses
import logging
from pathlib import Path

import pytest

from input_pipeline.pipeline import check_eval, eval_batches, open_train, train_batches
from input_pipeline.schema import Record
from tests.input_pipeline.batches import make_config, rows_of, take
from tests.input_pipeline.tiny_dataset import build_tiny_dataset

BLANK = ("&nbsp;", "\u200b", "\ufeff\u00ad", "\u2800", "&amp;nbsp;", " \u3164 ")


def change(record: Record) -> Record:
    """Every image but the first has one blank text; the second has a long one, too."""
    number, expressions = int(record.image_id[-1]), list(record.expressions)
    if number:
        expressions[0] = dataclasses.replace(expressions[0], text=BLANK[number - 1])
    if number == 1:
        long = "the box that stands to the left of the other one in this picture"
        expressions[1] = dataclasses.replace(expressions[1], text=long)
    return dataclasses.replace(record, expressions=tuple(expressions))


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("texts")
    build_tiny_dataset(folder, {"train": 7, "val": 7}, change=change)
    return folder


@pytest.mark.parametrize("sampling", ["image", "referent", "expressions"])
def test_training_leaves_out_blank_texts_and_keeps_their_images(data_dir: Path, sampling: str):
    config = make_config(data_dir, "train", sampling=sampling, pairs=6, granularities=("object",))
    rows = open_train(config)
    # Three objects an image: two of one thing, one of which may be blank.
    assert len(rows.table) == 3 * 7 - 6
    assert set(rows.table.record) == set(range(7))
    for values, meta in rows_of(take(train_batches(config, batch_size=len(rows.rows), seed=0), 2)):
        assert not meta.error and not meta.left_out
        assert values["valid"].any()
        assert not set(meta.expressions) & set(BLANK)


def test_evaluation_leaves_out_blank_texts_alone_and_names_them(data_dir: Path):
    config = make_config(data_dir, pairs=6, granularities=("object",))
    left_out = []
    for values, meta in rows_of(list(eval_batches(config, batch_size=7))):
        assert not meta.error
        number = int(meta.image_ids[0][-1])
        assert values["valid"].sum() == 3 - bool(number)
        assert values["valid"][0].tolist() == [bool(name) for name in meta.pair_ids]
        assert all(f"image val{number}" in reason for reason in meta.left_out)
        left_out += meta.left_out
    assert len(left_out) == len(BLANK)
    assert all("an expression has no word" in reason for reason in left_out)


def test_it_is_told_once_before_a_run(data_dir: Path, caplog: pytest.LogCaptureFixture):
    config = make_config(data_dir, "train", granularities=("object",), context_length=12)
    with caplog.at_level(logging.WARNING, "absl"):
        take(train_batches(config, batch_size=2, seed=0), 20)
    blank, cut = caplog.messages
    assert blank.startswith("tiny train: 6 of 21 expressions have no word and are left out, e.g. '")
    assert cut == (
        "tiny train: 1 of 21 expressions are longer than 12 tokens of clip, and their last words are "
        "cut, e.g. 'the box that stands to the left of the other one in this picture' (train1-1); "
        "config.data.context_length=16 would read all of them"
    )
    caplog.clear()
    with caplog.at_level(logging.WARNING, "absl"):
        check_eval(dataclasses.replace(config, split="val"))
        list(eval_batches(dataclasses.replace(config, split="val"), batch_size=4))
    assert [message.split(", ")[0] for message in caplog.messages] == [
        "tiny val: 6 of 21 expressions have no word and are not scored",
        "tiny val: 1 of 21 expressions are longer than 12 tokens of clip",
    ]


def test_a_text_whose_anti_expression_alone_is_cut_counts(
    data_dir: Path, caplog: pytest.LogCaptureFixture
):
    config = make_config(
        data_dir, "train", granularities=("object",), context_length=16, anti_prefix="word"
    )
    with caplog.at_level(logging.WARNING, "absl"):
        take(train_batches(config, batch_size=2, seed=0), 2)
    _, cut = caplog.messages
    assert cut == (
        "tiny train: 1 of 21 expressions, or their anti-expressions of one more token, are longer than "
        "16 tokens of clip, and their last words are cut, e.g. 'the box that stands to the left of the "
        "other one in this picture' (train1-1); config.data.context_length=17 would read all of them"
    )
    caplog.clear()
    with caplog.at_level(logging.WARNING, "absl"):
        open_train(dataclasses.replace(config, context_length=17))
        open_train(dataclasses.replace(config, anti_prefix=""))
    assert not any("are cut" in message for message in caplog.messages)


def test_nothing_is_told_where_all_is_read(data_dir: Path, caplog: pytest.LogCaptureFixture):
    config = make_config(data_dir, "train", granularities=("part", "none"), context_length=16)
    with caplog.at_level(logging.WARNING, "absl"):
        open_train(config, "member")
    assert caplog.messages == []


def test_a_member_of_a_mixture_names_its_own_field(
    data_dir: Path, caplog: pytest.LogCaptureFixture
):
    with caplog.at_level(logging.WARNING, "absl"):
        open_train(make_config(data_dir, "train", context_length=12), "mine")
    assert "; config.mixture.mine.context_length=16 would read all of them" in caplog.text
