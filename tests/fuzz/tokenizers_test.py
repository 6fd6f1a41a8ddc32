"""Changed `tokenizer.json` files and odd texts: ids within the vocabulary, or one line."""

import copy
import json
import random
from pathlib import Path
from typing import Any

import pytest

from refseg_jax.errors import UserError
from refseg_jax.text.tokenizers import JsonTokenizer
from tests.fuzz.values import flipped, mutated
from tests.refseg_jax.text.vocabulary_file_test import content, written

pytestmark = pytest.mark.slow

KINDS = ("WordPiece", "WordLevel", "Unigram", "BPE")
TEXTS: list[Any] = [
    *(
        "cat",
        "red cat",
        "",
        "&nbsp;",
        "\u200b",
        "\ufffd",
        "\0",
        "日本語",
        "👩‍👩‍👧",
        "[CLS] cat [SEP]",
    ),
    *("x" * 10**6, "c" * 2000, "a\u0301" * 5000, "ﷺ" * 2000, "\ud800", b"\xff", b"cat", None, 3),
]


_SLOW = {"Regex": "(x+x+)+y"}
#: Field of a file -> values that the small vocabularies do not have.
PARTS: dict[str, list[Any]] = {
    "normalizer": [
        {"type": "Precompiled", "precompiled_charsmap": "AAAA"},
        {"type": "Replace", "pattern": {"String": ""}, "content": "x"},
        {"type": "Replace", "pattern": _SLOW, "content": ""},
        {"type": "Prepend", "prepend": "x"},
        {"type": "Nmt"},
        {"type": "ByteLevel"},
        {"type": "Sequence", "normalizers": []},
    ],
    "pre_tokenizer": [
        {"type": "Split", "pattern": _SLOW, "behavior": "Isolated", "invert": False},
        {"type": "Split", "pattern": {"String": ""}, "behavior": "Isolated", "invert": False},
        {"type": "Metaspace", "replacement": "_", "prepend_scheme": "always", "split": True},
        {"type": "UnicodeScripts"},
        {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True},
        {"type": "FixedLength", "length": 0},
    ],
    "truncation": [
        {"direction": "Right", "max_length": 1, "strategy": "LongestFirst", "stride": 99}
    ],
    "padding": [
        {
            "strategy": {"Fixed": 10**9}, "direction": "Right", "pad_to_multiple_of": None,
            "pad_id": 0, "pad_type_id": 0, "pad_token": "x",
        }
    ],
}  # fmt: skip


def _made(rng: random.Random) -> bytes:
    value = content(rng.choice(KINDS))
    for field in rng.sample(list(PARTS), rng.randint(0, 2)):
        value[field] = copy.deepcopy(rng.choice(PARTS[field]))
    if rng.random() < 0.6:
        value = mutated(value, rng, [part for parts in PARTS.values() for part in parts])
    data = json.dumps(value).encode()
    return flipped(data, rng) if rng.random() < 0.3 else data


def _checked(tokenizer: JsonTokenizer, text: Any) -> bool:
    """Whether the text was encoded."""
    try:
        ids, valid = tokenizer([text], 17)
    except UserError as error:
        assert "\n" not in str(error) and len(str(error)) < 700
        return False
    assert 0 <= ids.min() <= ids.max() < tokenizer.vocab_size
    assert ids[0, valid[0].sum() - 1] == tokenizer.eos_id
    return True


def test_files_with_changes_and_odd_texts(tmp_path: Path) -> None:
    rng, read = random.Random(17), 0
    for _ in range(2_000):
        source = written(tmp_path, _made(rng))
        try:
            tokenizer = JsonTokenizer(source)
            read += all(_checked(tokenizer, text) for text in ("cat", "red cat"))
            for text in TEXTS:
                _checked(tokenizer, text)
            tokenizer.as_json()
        except UserError as error:
            assert str(error).startswith("tokenizer "), error
            assert "\n" not in str(error) and len(str(error)) < 700
    assert read > 300
