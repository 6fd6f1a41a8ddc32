"""Damaged and odd `tokenizer.json`, and machines where a library of tokenizers is not installed."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tokenizers as hub

from refseg_jax.errors import UserError
from refseg_jax.text.tokenizers import (
    ClipTokenizer,
    ExpressionError,
    JsonTokenizer,
    build_tokenizer,
)
from refseg_jax.text.vocabulary_file import read_vocabulary, same_vocabulary

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "cat", "red", "c", "##at"]


def content(kind: str = "WordPiece") -> dict[str, Any]:
    """A small vocabulary as JSON."""
    table = {word: number for number, word in enumerate(WORDS)}
    models = hub.models
    model = {
        "WordPiece": lambda: models.WordPiece(table, unk_token="[UNK]"),
        "WordLevel": lambda: models.WordLevel(table, unk_token="[UNK]"),
        "Unigram": lambda: models.Unigram(
            [("<unk>", 0.0), ("<s>", 0.0), ("</s>", 0.0), ("cat", -1.0), ("c", -2.0)], unk_id=0
        ),
        "BPE": lambda: models.BPE(
            {"<s>": 0, "</s>": 1, "c": 2, "a": 3, "t": 4, "ca": 5, "cat": 6},
            [("c", "a"), ("ca", "t")],
        ),
    }[kind]()
    tokenizer = hub.Tokenizer(model)
    tokenizer.pre_tokenizer = hub.pre_tokenizers.Whitespace()
    return json.loads(tokenizer.to_str())


def written(folder: Path, value: Any) -> str:
    path = folder / "tokenizer.json"
    path.write_bytes(value if isinstance(value, bytes) else json.dumps(value).encode())
    return str(path)


def with_model(kind: str, **fields: Any) -> dict[str, Any]:
    made = content(kind)
    made["model"] |= fields
    return {**made}


@pytest.mark.parametrize("kind", ["WordPiece", "WordLevel", "Unigram", "BPE"])
def test_every_kind_of_model_is_read(tmp_path: Path, kind: str) -> None:
    tokenizer = JsonTokenizer(written(tmp_path, content(kind)))
    ids, valid = tokenizer(["cat", "\u2603 cat"], 6)
    assert valid[0].sum() == 3
    assert ids.max() < tokenizer.vocab_size
    again = JsonTokenizer(written(tmp_path, tokenizer.as_json().encode()))
    np.testing.assert_array_equal(again(["cat", "\u2603 cat"], 6)[0], ids)


NO_TABLE = {**content(), "model": {"type": "WordPiece"}}
DAMAGED: dict[str, tuple[Any, str]] = {
    "empty": (b"", "no tokenizer.json, or a damaged one"),
    "cut": (json.dumps(content()).encode()[:-40], "Expecting"),
    "binary": (b"\x80\x04\xff" * 30, "is not UTF-8"),
    "utf-16": (json.dumps(content()).encode("utf-16"), "UTF-16"),
    "nested": (b"[" * 100_000, "nested too deeply"),
    "a list": ([], "it has no table 'model'"),
    "a number": (b"9", "it has no table 'model'"),
    "huge number": (b"9" * 5000, "no tokenizer.json"),
    "vocab.json": ({"<|endoftext|>": 3}, "it is a vocab.json"),
    "tokenizer_config.json": (
        {"tokenizer_class": "CLIPTokenizer"},
        "it is a tokenizer_config.json",
    ),
    "config.json": ({"architectures": ["CLIPModel"]}, "it is a config.json"),
    "no vocabulary": (NO_TABLE, "its model has no table 'vocab'"),
    "empty vocabulary": (with_model("WordPiece", vocab={}), "its vocabulary is empty"),
    "unknown model": (with_model("WordPiece", type="Neural"), "did not match any variant"),
    "model of another kind": (with_model("WordPiece", type="BPE"), "no tokenizer.json"),
    "lone surrogate": (with_model("WordLevel", vocab={"[UNK]": 0, "\ud800": 1}), "surrogate"),
    "id beyond 32 bits": (
        with_model("WordLevel", vocab={"[UNK]": 0, "[CLS]": 1, "[SEP]": 2**32}),
        "a token has the id 4294967296, not one of 0 to 8388608",
    ),
    "id of another world": (
        with_model("WordLevel", vocab={"[UNK]": 0, "[CLS]": 1, "[SEP]": 2**31}),
        "a token has the id 2147483648",
    ),
    "negative id": (with_model("WordLevel", vocab={"[UNK]": 0, "cat": -1}), "the id -1"),
    "id that is no number": (with_model("WordLevel", vocab={"[UNK]": 0, "cat": ["1"]}), "['1']"),
    "boolean id": (with_model("WordLevel", vocab={"[UNK]": 0, "cat": True}), "the id True"),
    "two tokens of one id": (
        with_model("WordLevel", vocab={"[UNK]": 0, "[CLS]": 1, "[SEP]": 2, "red": 2}),
        "2 tokens have the id 2",
    ),
    "a token twice": (
        json.dumps(content()).replace('"red": 5', '"cat": 5').encode(),
        "'cat' stands there twice",
    ),
    # The library takes these three, and raises when it meets an unknown word.
    "no unknown token, words": (
        with_model("WordLevel", unk_token="[NONE]"),
        "cannot encode words that it does not know",
    ),
    "no unknown token, pieces": (
        with_model("WordPiece", unk_token="[NONE]"),
        "cannot encode words that it does not know",
    ),
    "no unknown token, scores": (
        with_model("Unigram", unk_id=None),
        "cannot encode words that it does not know",
    ),
    # The library panics, which is no `Exception`.
    "panic on loading": (
        {**content(), "normalizer": {"type": "Precompiled", "precompiled_charsmap": "AAAA"}},
        "no tokenizer.json, or a damaged one",
    ),
    "panic on encoding": (
        {**content(), "pre_tokenizer": {"type": "FixedLength", "length": 0}},
        "cannot encode",
    ),
}


@pytest.mark.parametrize("name", DAMAGED)
def test_a_damaged_file_is_one_line(tmp_path: Path, name: str) -> None:
    value, words = DAMAGED[name]
    with pytest.raises(UserError) as caught:
        build_tokenizer(written(tmp_path, value))
    line = str(caught.value)
    assert line.startswith(f"tokenizer '{tmp_path}/tokenizer.json': ")
    assert words in line
    assert "config.data.tokenizer" in line
    assert "\n" not in line and len(line) < 600


@pytest.mark.parametrize(
    "source",
    ["missing.json", "a/b/c", "./clip", "x" * 5000, "a\0b", "caf\udce9", "~nobody-at-all/x", ""],
)
def test_a_name_of_nothing_is_one_line_without_the_hub(
    tmp_path: Path, source: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def asked(*_: object) -> None:
        raise AssertionError("the hub is asked")

    monkeypatch.setattr(hub.Tokenizer, "from_pretrained", asked)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=r"no such file; name a tokenizer\.json") as caught:
        build_tokenizer(source)
    assert len(str(caught.value)) < 700 and str(caught.value).isprintable()


def test_dropout_does_not_draw_tokens(tmp_path: Path) -> None:
    """A field of byte-pair encodings in training: each call would give other ids."""
    tokenizer = JsonTokenizer(written(tmp_path, with_model("BPE", dropout=0.5)))
    rows = {tuple(tokenizer(["cat cat cat"], 12)[0][0]) for _ in range(30)}
    assert rows == {(0, 6, 6, 6, 1, *(0,) * 7)}
    assert json.loads(tokenizer.as_json())["model"]["dropout"] is None


def test_ids_with_holes_are_within_the_vocabulary(tmp_path: Path) -> None:
    """The largest id counts, not the number of tokens: a model of that size has a row for each."""
    table = {"[UNK]": 0, "[CLS]": 1, "[SEP]": 2, "cat": 40}
    tokenizer = JsonTokenizer(written(tmp_path, with_model("WordLevel", vocab=table)))
    assert tokenizer.vocab_size == 41
    assert tokenizer(["cat"], 3)[0].tolist() == [[1, 40, 2]]


def test_what_the_library_cannot_encode_is_the_expressions_fault(tmp_path: Path) -> None:
    tokenizer = JsonTokenizer(written(tmp_path, content()))

    def fails(*_: object, **__: object) -> None:
        raise BaseException("thread panicked\nat line 3")

    tokenizer._tokenizer = type("Broken", (), {"encode": fails})()
    with pytest.raises(ExpressionError, match=r"cannot encode 'r\\u1234d' \(thread panicked at"):
        tokenizer(["r\u1234d"], 5)


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("export") / "tokenizer.json"
    path.write_text(ClipTokenizer().as_json())
    return path


@pytest.fixture
def no_library(monkeypatch: pytest.MonkeyPatch) -> None:
    # What `import` finds where the package is not installed.
    monkeypatch.setitem(sys.modules, "tokenizers", None)


@pytest.mark.usefixtures("no_library")
def test_without_the_library_an_exports_clip_vocabulary_is_read(clips: Path) -> None:
    for source in (clips, clips.parent):
        assert isinstance(build_tokenizer(str(source)), ClipTokenizer)


def _other_token(value: dict[str, Any]) -> None:
    table = value["model"]["vocab"]
    table["cat</w>"], table["dog</w>"] = table["dog</w>"], table["cat</w>"]


def _other_merge(value: dict[str, Any]) -> None:
    value["model"]["merges"].reverse()


@pytest.mark.usefixtures("no_library")
@pytest.mark.parametrize("change", [_other_token, _other_merge])
def test_without_the_library_other_vocabularies_are_one_line(
    clips: Path, tmp_path: Path, change: Callable[[dict[str, Any]], None]
) -> None:
    value = json.loads(clips.read_text())
    change(value)
    for source in (written(tmp_path, value), "bert-base-uncased"):
        with pytest.raises(UserError, match="pip install tokenizers"):
            build_tokenizer(source)


def test_without_either_library_the_line_names_both_cures(
    clips: Path, no_library: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "instant_clip_tokenizer", None)
    # A copy: tokenizers are kept by their file.
    source = written(tmp_path, clips.read_bytes())
    with pytest.raises(UserError, match="pip install tokenizers"):
        build_tokenizer(source)
    with pytest.raises(UserError, match=r"tokenizer\.json \(every exported folder"):
        ClipTokenizer()


def test_merges_of_both_spellings_are_the_same(clips: Path, tmp_path: Path) -> None:
    value = json.loads(clips.read_text())
    value["model"]["merges"] = [" ".join(pair) for pair in value["model"]["merges"]]
    other = read_vocabulary(Path(written(tmp_path, value)))
    assert same_vocabulary(clips.read_text(), other)
