"""Ids of anti-expressions against lists, and which token their prefix is."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import tokenizers as hub

from refseg_jax.errors import UserError
from refseg_jax.models import UniRESConfig
from refseg_jax.text.anti import anti_text
from refseg_jax.text.tokenizers import (
    CLIP_EOS,
    CLIP_SOS,
    CLIP_VOCAB,
    AntiPrefix,
    ClipTokenizer,
    JsonTokenizer,
    build_tokenizer,
    check_tokenizer,
    prefix_id,
)


def _vocabulary(folder: Path, *words: str) -> str:
    """A file of BERT's kind, with these words and an unused token."""
    names = ("[PAD]", "[unused0]", "[UNK]", "[CLS]", "[SEP]", *words)
    made = hub.Tokenizer(
        hub.models.WordLevel({name: i for i, name in enumerate(names)}, unk_token="[UNK]")
    )
    made.pre_tokenizer = hub.pre_tokenizers.Whitespace()  # pyright: ignore[reportAttributeAccessIssue]
    made.save(str(folder / "tokenizer.json"))
    return str(folder / "tokenizer.json")


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        # SOS 1, EOS 2, prefix 9; 6 positions.
        ([5], [1, 9, 5, 2, 0, 0]),
        ([5, 6, 7], [1, 9, 5, 6, 7, 2]),
        ([5, 6, 7, 8], [1, 9, 5, 6, 7, 2]),
        ([], [1, 9, 2, 0, 0, 0]),
        (None, [0] * 6),
    ],
)
def test_the_prefix_stands_behind_the_first_token(words: list[int] | None, expected: list[int]):
    text = np.zeros((2, 3, 6), np.int32)
    valid = np.zeros((2, 3, 6), bool)
    if words is not None:
        ids = [1, *words, 2]
        text[1, 2, : len(ids)], valid[1, 2, : len(ids)] = ids, True
    found = anti_text(text, valid, 9)
    assert found.dtype == np.int32 and found.shape == text.shape
    assert found[1, 2].tolist() == expected
    assert not found[0].any() and not found[1, :2].any()


def test_an_anti_expression_is_what_its_words_would_be():
    tokenizer = ClipTokenizer()
    texts = ["cat", "the two men on the left", "a very long text about a cat and its dog"]
    anti = anti_text(*tokenizer(texts, 9), prefix_id(tokenizer, "word"))
    expected, _ = tokenizer([f"no {text}" for text in texts], 9)
    np.testing.assert_array_equal(anti, expected)


def test_a_length_without_room_for_the_prefix_is_refused():
    with pytest.raises(UserError, match=r"context_length=2 has no room for the prefix"):
        anti_text(np.array([[1, 2]], np.int32), np.ones((1, 2), bool), 9)
    ids = anti_text(np.array([[1, 5, 2]], np.int32), np.ones((1, 3), bool), 9)
    assert ids.tolist() == [[1, 9, 2]]


def test_a_new_token_is_one_that_no_text_has(tmp_path: Path):
    clip = ClipTokenizer()
    assert prefix_id(clip, "token") == CLIP_VOCAB
    assert prefix_id(clip, "word") not in (CLIP_SOS, CLIP_EOS, CLIP_VOCAB)
    stored = tmp_path / "clip.json"
    stored.write_text(clip.as_json())
    assert prefix_id(JsonTokenizer(str(stored)), "token") == CLIP_VOCAB
    bert = build_tokenizer(_vocabulary(tmp_path, "no", "cat"))
    assert prefix_id(bert, "token") == 1
    assert prefix_id(bert, "word") == 5
    assert 1 not in bert(["no [unused0] cat"], 12)[0]


def test_a_prefix_that_is_none_is_refused(tmp_path: Path):
    with pytest.raises(UserError, match=r"anti_prefix='not': give token, word"):
        prefix_id(ClipTokenizer(), "not")  # pyright: ignore[reportArgumentType]
    # An unknown word is the same token as any other.
    without = build_tokenizer(_vocabulary(tmp_path, "cat"))
    with pytest.raises(UserError, match=r"does not have the word 'no' as one token"):
        prefix_id(without, "word")


@pytest.mark.parametrize(
    ("prefix", "length", "words"),
    [
        ("token", 8, r"set config\.model\.vocab_size=49409, or config\.data\.anti_prefix=word"),
        ("word", 2, r"context_length=2 has no room for the prefix"),
        ("nope", 8, r"anti_prefix='nope'"),
    ],
)
def test_a_model_without_a_row_for_the_prefix_is_refused(
    prefix: AntiPrefix, length: int, words: str
):
    model = UniRESConfig()
    check_tokenizer("clip", 8, model, "word")
    check_tokenizer("clip", 8, dataclasses.replace(model, vocab_size=CLIP_VOCAB + 1), "token")
    with pytest.raises(UserError, match=words) as caught:
        check_tokenizer("clip", length, model, prefix)
    assert "\n" not in str(caught.value)
