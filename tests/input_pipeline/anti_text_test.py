"""Anti-expressions in the batches of training and evaluation."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from input_pipeline.pipeline import eval_batches, open_train, train_batches
from input_pipeline.schema import Record
from refseg_jax.errors import UserError
from refseg_jax.text.tokenizers import AntiPrefix, build_tokenizer, prefix_id
from tests.input_pipeline.batches import EVERY, make_config, rows_of, take
from tests.input_pipeline.tiny_dataset import build_tiny_dataset


def _odd_texts(record: Record) -> Record:
    """Of three images, one has an empty text and one a text that is cut."""
    text = {"0": " ", "1": "the box " * 9}.get(record.image_id[-1])
    if text is None:
        return record
    first, *others = record.expressions
    return dataclasses.replace(record, expressions=(dataclasses.replace(first, text=text), *others))


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("anti")
    build_tiny_dataset(folder, {"train": 4, "val": 3}, change=_odd_texts)
    return folder


@pytest.mark.parametrize("prefix", ["token", "word"])
def test_rows_have_the_anti_expressions_of_their_texts(data_dir: Path, prefix: AntiPrefix):
    config = make_config(data_dir, pairs=4, granularities=EVERY, anti_prefix=prefix)
    number, length = prefix_id(build_tokenizer("clip"), prefix), config.context_length
    train = dataclasses.replace(config, split="train")
    # 6 rows, in batches of 4: two rows of padding.
    hosts = [
        *eval_batches(config, batch_size=4),
        *take(train_batches(train, batch_size=4, seed=0), 3),
    ]
    cut = empty = 0
    for values, _ in rows_of(hosts):
        for anti, text, valid in zip(
            values["anti_text"], values["text"], values["text_valid"], strict=True
        ):
            words = text[valid].tolist()
            expected = [words[0], number, *words[1:-1]][: length - 1] + words[-1:] if words else []
            assert anti.tolist() == expected + [0] * (length - len(expected))
            cut, empty = cut + (len(words) == length), empty + (not words)
    assert cut and empty


def test_batches_have_none_unless_a_prefix_is_given(data_dir: Path):
    config = make_config(data_dir)
    assert all(host.batch.anti_text is None for host in eval_batches(config, batch_size=2))
    rows = open_train(make_config(data_dir, "train", anti_prefix="word"))
    assert rows.padding.batch.anti_text is not None
    assert not np.any(rows.padding.batch.anti_text)


def test_a_prefix_without_room_or_meaning_is_refused(data_dir: Path):
    with pytest.raises(UserError, match=r"config\.data\.anti_prefix='not'"):
        open_train(make_config(data_dir, "train", anti_prefix="not"))
    with pytest.raises(UserError, match=r"context_length=2 has no room for the prefix"):
        eval_batches(make_config(data_dir, anti_prefix="word", context_length=2), batch_size=1)
