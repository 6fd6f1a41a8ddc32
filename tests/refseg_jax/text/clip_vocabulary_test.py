"""What the wheel does not name, against the merges that OpenAI published."""

import json
from pathlib import Path

import numpy as np
import pytest

from refseg_jax.text import clip_vocabulary
from refseg_jax.text.tokenizers import CLIP_VOCAB, ClipTokenizer, JsonTokenizer
from tests.refseg_jax.text.clip_reference import read_merges, vocabulary

#: Words of every kind of character, some of which the vocabulary cuts within one.
TEXTS = [
    "the man's left-hand 3rd umbrella!!",
    "don't you're we'll 1234",
    "naïve café ☕ 日本 हिन्दी",
    "“quote” it's \n I'M &amp;amp; schÃ¶n",
    "x² Ⅷ 👩‍👩‍👧 \ufffd 🔥🔥🔥🔥 İstanbul ſ K",
    "red <|endoftext|> cat _under_score",
]


@pytest.fixture(scope="module")
def content() -> str:
    return ClipTokenizer().as_json()


def test_merges_and_ids_are_the_published_ones(content: str, shared_data: Path) -> None:
    published = read_merges(shared_data / "clip_bpe" / "bpe_simple_vocab_16e6.txt.gz")
    model = json.loads(content)["model"]
    assert [tuple(pair) for pair in model["merges"]] == published
    assert model["vocab"] == vocabulary(published)


def test_the_written_vocabulary_gives_the_same_ids(content: str, tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text(content)
    clip, other = ClipTokenizer(), JsonTokenizer(str(tmp_path))
    assert (other.vocab_size, other.eos_id) == (CLIP_VOCAB, clip.eos_id)
    for found, expected in zip(other(TEXTS, 60), clip(TEXTS, 60), strict=True):
        np.testing.assert_array_equal(found, expected)


def test_the_written_vocabulary_gives_the_same_ids_of_all_real_expressions(
    content: str, tmp_path: Path, shared_data: Path
) -> None:
    files = (shared_data / "minigpt4_refcoco_eval").glob("*.json")
    texts = [row["sents"] for file in files for row in json.loads(file.read_text())]
    assert len(texts) > 50_000
    (tmp_path / "tokenizer.json").write_text(content)
    ids, valid = JsonTokenizer(str(tmp_path))(texts, 22)
    expected, _ = ClipTokenizer()(texts, 22)
    np.testing.assert_array_equal(ids, expected)
    assert valid.sum() > 5 * len(texts)


def test_a_token_that_is_no_merge_is_refused() -> None:
    names = [*(f"{n}" for n in range(512)), "abc", "<|startoftext|>", "<|endoftext|>"]
    with pytest.raises(ValueError, match="'abc' is no merge"):
        clip_vocabulary.merges(names)
