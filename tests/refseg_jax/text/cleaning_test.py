"""The one definition of a word, and what the vocabularies give for it."""

import re
from pathlib import Path

import pytest

from refseg_jax.text.cleaning import ExpressionError, clean, has_word
from refseg_jax.text.lengths import Lengths, count_tokens, quoted
from refseg_jax.text.tokenizers import ClipTokenizer

BLANK = [
    *("", " ", "\t\n", "\u00a0", "\u3000", "\u2028"),
    *("&nbsp;", "&amp;nbsp;", "&#8203;", "&zwj;", "&shy;"),
    *("\u200b", "\u200d", "\u200f", "\ufeff", "\u00ad", "\u2060", "\U000e0041"),
    *("\x00", "\x07\x1b", "\x85"),
    *("\u0301", "\ufe0f", "\u20e3"),
    *("\u115f", "\u1160", "\u3164", "\uffa0", "\u2800", "\ufffd", "\ue000"),
    "\u200b &nbsp; \u3164\u00ad",
]
WORDS = [
    *("cat", "7", "A", "é", "日", "カ", "ก", "ا"),
    *("...", "?", "-", "&", "+", "$", "\U0001f697", "\u2603\ufe0f", "\u00b2"),
    *("\u200bcat", "cat\u00ad", "e\u0301", "&lt;", "\U0001fae8"),
    " " * 3000 + "cat",
]


@pytest.mark.parametrize("text", BLANK, ids=ascii)
def test_what_shows_nothing_is_no_word(text: str) -> None:
    assert not has_word(text) and not has_word(text.encode())
    assert count_tokens(ClipTokenizer(), text) == 0
    with pytest.raises(ExpressionError, match=r"^an expression has no word or is empty; say what"):
        clean(text)


@pytest.mark.parametrize("text", WORDS, ids=lambda text: ascii(text[-8:]))
def test_what_shows_something_is_a_word(text: str) -> None:
    assert has_word(text)
    # With SOS and EOS: the vocabulary has a token for each of them.
    assert count_tokens(ClipTokenizer(), text) >= 3


def test_bytes_that_are_not_utf8_have_no_word() -> None:
    assert not has_word(b"caf\xe9") and not has_word("caf\udce9")


def test_tokens_are_counted_as_if_nothing_were_cut() -> None:
    tokenizer = ClipTokenizer()
    assert count_tokens(tokenizer, "a photo of a cat") == 7
    assert count_tokens(tokenizer, "cat " * 300) == 302
    # Texts are cut at 2,000 characters before that.
    assert count_tokens(tokenizer, "日本" * 10**5) < 8192


def test_lengths_tell_how_many_texts_are_cut() -> None:
    first, second = Lengths(), Lengths()
    for text, tokens in (("a b", 4), ("long " * 40, 30), ("&nbsp;", 0)):
        first.add(text, tokens)
    second.add("longest\n", 90)
    first.merge(second)
    first.merge(Lengths())
    assert [first.longer_than(length) for length in (3, 17, 30, 90)] == [3, 2, 1, 0]
    assert first.line("val", "clip", (17, 77, 100)) == (
        "val: of 4 texts, 2 take more than 17 tokens of clip, 1 more than 77, none more than 100; a "
        "model of that context_length does not read their last words; the longest takes 90: "
        "'longest\\n'"
    )
    assert first.line("val", "clip", (90,)) == ""


def test_texts_are_quoted_on_one_line() -> None:
    assert quoted("the cat") == "'the cat'"
    assert quoted("猫") == "'猫'"
    assert quoted("\u200b") == "'\\u200b'" and quoted("\u3164") == "'\\u3164'"
    assert quoted("a" * 500) == f"'{'a' * 120}...'"


def test_the_table_of_languages_is_measured() -> None:
    page = Path(__file__).resolve().parents[3] / "docs" / "own_data.md"
    rows = re.findall(
        r"^\| (\w+) \| (.+) \| (\d+) \| (\d\.\d\d) \|$", page.read_text("utf-8"), re.M
    )
    assert len(rows) >= 15
    tokenizer = ClipTokenizer()
    for _, sentence, tokens, share in rows:
        assert count_tokens(tokenizer, sentence) == int(tokens)
        assert f"{(int(tokens) - 2) / len(sentence):.2f}" == share
