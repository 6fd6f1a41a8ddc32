"""Ids against a slow retelling of CLIP's own code, and texts that nobody should send."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import tokenizers as hub

from refseg_jax.errors import UserError
from refseg_jax.models import UniRESConfig
from refseg_jax.text.tokenizers import (
    CLIP_EOS,
    CLIP_SOS,
    CLIP_VOCAB,
    ClipTokenizer,
    ExpressionError,
    JsonTokenizer,
    Tokenizer,
    build_tokenizer,
    check_tokenizer,
    clean,
    tokenizer_identity,
)
from tests.refseg_jax.text.clip_reference import SlowClip, read_merges, vocabulary

#: Ids of `SlowClip` with OpenAI's merges, which `slow_words` checks again.
KNOWN = {
    "a photo of a cat": [320, 1125, 539, 320, 2368],
    "the man's left-hand 3rd umbrella!!": [
        *(518, 786, 568, 1823, 268, 2463, 274, 1973, 17143, 748),
    ],
    "man in    RED (2nd from left), #23": [
        *(786, 530, 736, 263, 273, 1764, 633, 1823, 2361, 258, 273, 274),
    ],
    "don't you're we'll 1234": [847, 713, 592, 982, 649, 1342, 272, 273, 274, 275],
    "naïve café ☕ 日本": [1097, 35689, 563, 15304, 26561, 39121, 19277, 361],
    "“quote” it's \n I'M": [257, 4020, 257, 585, 568, 328, 880],
    "guy &amp;amp; girl": [2149, 261, 1611],
    "schÃ¶n": [844, 7255, 333],
    "x² Ⅷ 👩‍👩‍👧": [343, 41175, 158, 227, 371, 26304, 26304, 964, 356],
    "\x1b[1ma\x7f": [320],
}
UGLY = [*KNOWN, "_under_score", "can't've", "İstanbul ſ K", "a\u3000b", "हिन्दी", "&lt;b&gt;"]


@pytest.fixture(scope="module")
def clip() -> ClipTokenizer:
    return ClipTokenizer()


@pytest.fixture(scope="module")
def merges(shared_data: Path) -> list[tuple[str, str]]:
    return read_merges(shared_data / "clip_bpe" / "bpe_simple_vocab_16e6.txt.gz")


@pytest.fixture(scope="module")
def real_expressions(shared_data: Path) -> list[str]:
    """All of RefCOCO's, RefCOCO+'s and RefCOCOg's val and test splits, as they come."""
    files = sorted((shared_data / "minigpt4_refcoco_eval").glob("*.json"))
    texts = [row["sents"] for file in files for row in json.loads(file.read_text())]
    assert len(texts) == 57_457
    return texts


@pytest.fixture(scope="module")
def slow_words(merges: list[tuple[str, str]], real_expressions: list[str]) -> list[list[int]]:
    """Ids of the real expressions and the ugly ones, by CLIP's own way."""
    slow = SlowClip(merges)
    assert all(slow.encode(text) == ids for text, ids in KNOWN.items())
    return [slow.encode(text) for text in (*real_expressions, *UGLY)]


@pytest.fixture(params=["wheel", "json"])
def tokenizer(request: pytest.FixtureRequest, tmp_path: Path) -> Tokenizer:
    return (
        ClipTokenizer() if request.param == "wheel" else JsonTokenizer(str(_words_file(tmp_path)))
    )


def _words_file(folder: Path) -> Path:
    """BERT's names for the ends, and a template, truncation and padding that must be ignored."""
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "cat", "red", "word"]
    model = hub.models.WordLevel({w: n for n, w in enumerate(words)}, unk_token="[UNK]")
    tokenizer = hub.Tokenizer(model)
    tokenizer.pre_tokenizer = hub.pre_tokenizers.Whitespace()
    tokenizer.post_processor = hub.processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    tokenizer.enable_truncation(5)
    tokenizer.enable_padding(pad_id=1, length=4)
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder / "tokenizer.json"


def _clip_file(folder: Path, merges: list[tuple[str, str]]) -> Path:
    """CLIP's tokenizer.json, as it lies on the hub."""
    model = hub.models.BPE(vocabulary(merges), merges, end_of_word_suffix="</w>")
    tokenizer = hub.Tokenizer(model)
    pattern = r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"
    split = hub.pre_tokenizers.Split(hub.Regex(pattern), "removed", invert=True)
    bytewise = hub.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = hub.pre_tokenizers.Sequence([split, bytewise])
    tokenizer.add_special_tokens(["<|startoftext|>", "<|endoftext|>"])
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder / "tokenizer.json"


def _words(ids: np.ndarray, valid: np.ndarray) -> list[list[int]]:
    """Without the ends, which must be there."""
    rows = [row[mask].tolist() for row, mask in zip(ids, valid, strict=True)]
    assert all((row[0], row[-1]) == (CLIP_SOS, CLIP_EOS) for row in rows)
    return [row[1:-1] for row in rows]


@pytest.mark.parametrize("text", KNOWN)
def test_clip_ids_are_known(clip: ClipTokenizer, text: str) -> None:
    assert _words(*clip([text], 22)) == [KNOWN[text]]
    assert _words(*clip([text.encode()], 22)) == [KNOWN[text]]


def test_clip_ids_of_real_expressions(
    clip: ClipTokenizer, slow_words: list[list[int]], real_expressions: list[str]
) -> None:
    assert _words(*clip([*real_expressions, *UGLY], 100)) == slow_words


@pytest.mark.parametrize("length", [17, 22])
def test_whole_rows_of_real_expressions(
    clip: ClipTokenizer,
    slow_words: list[list[int]],
    real_expressions: list[str],
    length: int,
) -> None:
    """What the model gets: both ends, padding, and in the longest ones EOS in the last place."""
    assert sum(len(row) > length - 2 for row in slow_words) > 100
    expected = np.zeros((len(slow_words), length), np.int32)
    for row, ids in zip(expected, slow_words, strict=True):
        whole = [CLIP_SOS, *ids[: length - 2], CLIP_EOS]
        row[: len(whole)] = whole
    found, valid = clip([*real_expressions, *UGLY], length)
    np.testing.assert_array_equal(found, expected)
    ends = np.minimum([len(row) for row in slow_words], length - 2) + 2
    np.testing.assert_array_equal(valid, np.arange(length) < ends[:, None])
    assert (np.argmax(found == CLIP_EOS, 1) == ends - 1).all()


def test_clips_json_is_the_same_tokenizer(
    clip: ClipTokenizer,
    merges: list[tuple[str, str]],
    real_expressions: list[str],
    tmp_path: Path,
) -> None:
    """The error of a platform without the wheel recommends it."""
    other = JsonTokenizer(str(_clip_file(tmp_path, merges)))
    assert (other.vocab_size, other.eos_id) == (clip.vocab_size, clip.eos_id)
    texts = [*real_expressions, *UGLY, "red <|endoftext|> cat"]
    for found, expected in zip(other(texts, 17), clip(texts, 17), strict=True):
        np.testing.assert_array_equal(found, expected)


def test_ids_are_padded_with_zeros(tokenizer: Tokenizer) -> None:
    ids, valid = tokenizer(["cat", "red cat"], 6)
    assert (ids.dtype, valid.dtype) == (np.int32, bool)
    assert valid.tolist() == [[True] * 3 + [False] * 3, [True] * 4 + [False] * 2]
    assert not ids[~valid].any()
    assert ids[0, 2] == ids[1, 3] == tokenizer.eos_id
    assert ids[0, 1] == ids[1, 2]
    assert ids.max() < tokenizer.vocab_size


@pytest.mark.parametrize("length", [2, 3, 17, 22, 77])
def test_truncation_keeps_both_ends(tokenizer: Tokenizer, length: int) -> None:
    ids, valid = tokenizer(["word " * 1000, "cat"], length)
    assert valid[0].all()
    assert ids[0, 0] == ids[1, 0]
    assert ids[0, -1] == tokenizer.eos_id
    assert len(set(ids[0, 1:-1].tolist())) == (length > 2)
    assert (ids[0] == tokenizer.eos_id).sum() == 1


def test_a_text_that_just_fits_is_whole(clip: ClipTokenizer) -> None:
    for length in (5, 6, 7, 8):
        (words,) = _words(*clip(["a photo of a cat"], length))
        assert words == [320, 1125, 539, 320, 2368][: length - 2]


def test_a_text_does_not_depend_on_its_neighbours(tokenizer: Tokenizer) -> None:
    together = tokenizer(["cat", "word " * 1000, "red cat"], 9)
    alone = [tokenizer([text], 9) for text in ("cat", "word " * 1000, "red cat")]
    for part in (0, 1):
        np.testing.assert_array_equal(together[part], np.concatenate([a[part] for a in alone]))


def test_a_megabyte_of_text_is_cut(tokenizer: Tokenizer) -> None:
    for text in ("é " * 10**6, "&amp; " * 10**6, "cat " * 10**6):
        ids, valid = tokenizer([text], 17)
        assert valid.all()
        assert ids[0, -1] == tokenizer.eos_id


def test_names_of_special_tokens_are_words(clip: ClipTokenizer) -> None:
    """Else a text could end itself in the middle (CLIP's pooling takes the largest id)."""
    ids, _ = clip(["red <|endoftext|> <|startoftext|> cat"], 50)
    assert (ids >= CLIP_SOS).sum() == 2


def test_no_texts_are_no_rows(tokenizer: Tokenizer) -> None:
    ids, valid = tokenizer([], 17)
    assert ids.shape == valid.shape == (0, 17)


@pytest.mark.parametrize("text", ["", "   \n\t", b"", "&nbsp;", "\u2003", "\x00\x01"])
def test_an_empty_expression_is_refused(tokenizer: Tokenizer, text: str | bytes) -> None:
    with pytest.raises(ExpressionError, match="empty; say what to look for"):
        tokenizer(["cat", text], 17)


@pytest.mark.parametrize(
    "text", [b"caf\xe9", b"\xff\xfec\x00", "caf\udce9", "\ud800", b"\xc3" * 10**6]
)
def test_what_is_not_utf8_is_refused(tokenizer: Tokenizer, text: str | bytes) -> None:
    with pytest.raises(ExpressionError, match=r"is not UTF-8 .*convert it") as caught:
        tokenizer([text], 17)
    message = str(caught.value)
    assert len(message) < 300
    assert message.isascii()
    assert "\n" not in message


@pytest.mark.parametrize("text", [None, 3, 2.5, ["cat"], bytearray(b"cat"), np.array([1])])
def test_what_is_no_text_is_refused(tokenizer: Tokenizer, text: object) -> None:
    with pytest.raises(ExpressionError, match=f"{type(text).__name__}, not text"):
        tokenizer([text], 17)  # pyright: ignore[reportArgumentType]


def test_cleaning_twice_changes_nothing() -> None:
    for text in ("  The  RED\tcat ", "caf\u00e9", "cafe\u0301", "schÃ¶n", "don’t"):
        assert clean(clean(text)) == clean(text)
    assert clean("  The  RED\tcat ") == "the red cat"
    assert clean("cafe\u0301") == clean("CAF\u00c9")


def test_a_tokenizer_is_built_once_a_name(tmp_path: Path) -> None:
    name = str(_words_file(tmp_path))
    assert build_tokenizer(name) is build_tokenizer(name)
    assert isinstance(build_tokenizer(), ClipTokenizer)
    assert build_tokenizer().vocab_size == CLIP_VOCAB


def test_a_folder_that_holds_the_json_will_do(tmp_path: Path) -> None:
    file = _words_file(tmp_path)
    found, expected = JsonTokenizer(str(tmp_path)), JsonTokenizer(str(file))
    np.testing.assert_array_equal(found(["red cat"], 5)[0], expected(["red cat"], 5)[0])
    assert found(["red cat"], 5)[0].tolist() == [[2, 5, 4, 3, 0]]


def test_a_json_that_is_none_is_refused(tmp_path: Path) -> None:
    broken = tmp_path / "broken.json"
    broken.write_text('{"version": "1.0", "model": ')
    for source in (str(broken), str(tmp_path / "missing.json"), str(tmp_path)):
        with pytest.raises(UserError, match=r"config\.data\.tokenizer") as caught:
            JsonTokenizer(source)
        assert source in str(caught.value)
        assert "\n" not in str(caught.value)


def test_copies_of_a_vocabulary_are_one_tokenizer_and_a_changed_one_is_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = [tmp_path / name / "tokenizer.json" for name in ("one", "other", "clip")]
    for path in paths:
        path.parent.mkdir()
        path.write_text("{}")
    one, other = (tokenizer_identity(str(path)) for path in paths[:2])
    assert one == other == tokenizer_identity(str(paths[0].parent))
    paths[1].write_text("[]")
    assert tokenizer_identity(str(paths[1])) != one
    # A folder of that name is not CLIP's own tokenizer.
    clip = tokenizer_identity("clip")
    monkeypatch.chdir(tmp_path)
    assert tokenizer_identity("clip") == clip != one


def test_a_vocabulary_without_ends_is_refused(tmp_path: Path) -> None:
    hub.Tokenizer(hub.models.WordLevel({"cat": 0}, unk_token="cat")).save(str(tmp_path / "t.json"))
    with pytest.raises(UserError, match="startoftext"):
        JsonTokenizer(str(tmp_path / "t.json"))


@pytest.mark.parametrize("length", [-1, 0, 1])
def test_a_length_without_room_for_both_ends_is_refused(tokenizer: Tokenizer, length: int) -> None:
    with pytest.raises(UserError, match=f"config.data.context_length={length} has no room"):
        tokenizer(["cat"], length)


@pytest.mark.parametrize(
    ("changes", "length", "words"),
    [
        ({"vocab_size": 6}, 8, r"has 7 tokens, the model 6: set config\.model\.vocab_size=7"),
        ({"eos_id": 4}, 8, r"token 3, the model expects 4: set config\.model\.eos_id=3"),
        ({}, 9, r"context_length=9 is more than the 8 text positions"),
        ({}, 1, r"context_length=1 has no room"),
    ],
)
def test_a_model_that_does_not_fit_a_tokenizer_is_refused(
    tmp_path: Path, changes: dict[str, int], length: int, words: str
) -> None:
    name = str(_words_file(tmp_path))
    fitting = UniRESConfig(vocab_size=7, eos_id=3, text_positions=8)
    check_tokenizer(name, 8, fitting)
    # A table with spare rows is no mistake.
    check_tokenizer(name, 8, dataclasses.replace(fitting, vocab_size=8))
    with pytest.raises(UserError, match=words) as caught:
        check_tokenizer(name, length, dataclasses.replace(fitting, **changes))
    assert "config.data." in str(caught.value) and "\n" not in str(caught.value)


def test_the_default_model_takes_the_default_tokenizer() -> None:
    check_tokenizer("clip", 77, UniRESConfig())
