"""Expressions to token ids; the input pipeline and the predictor share this code."""

import functools
import html
import importlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from refseg_jax.errors import UserError
from refseg_jax.text import clip_vocabulary

#: Ids of start and end of a text in CLIP's vocabulary, and the size of the vocabulary.
CLIP_SOS, CLIP_EOS, CLIP_VOCAB = 49406, 49407, 49408

#: Longer expressions are cut before they are cleaned: no context has room for so many words.
_MAX_CHARACTERS = 2000


class ExpressionError(UserError, ValueError):
    """An expression is empty, or not text."""


class Tokenizer(Protocol):
    """Turns texts into token ids of a fixed length.

    Attributes:
        vocab_size: number of tokens in the vocabulary.
        eos_id: id of the token that ends a text.
    """

    vocab_size: int
    eos_id: int

    def __call__(
        self, texts: Sequence[str | bytes], context_length: int
    ) -> tuple[np.ndarray, np.ndarray]:
        """Tokenizes K texts; truncation keeps EOS.

        Args:
            texts: the K texts; bytes must be UTF-8.
            context_length: L, with SOS and EOS.

        Returns:
            Ids i32 `[K, L]`, zero-padded, and bool `[K, L]`, true from SOS to EOS.

        Raises:
            ExpressionError: an expression is empty, or not UTF-8 text.
            UserError: L has no room for SOS and EOS.
        """
        ...

    def as_json(self) -> str:
        """The vocabulary as the text of a `tokenizer.json`, for `JsonTokenizer` and transformers."""
        ...


def clean(text: str | bytes) -> str:
    """Cleans a text as CLIP does: repairs mojibake, unescapes HTML twice, folds blanks and case.

    Raises:
        ExpressionError: no text is left, or the bytes are not UTF-8.
    """
    words = _decode(text)[:_MAX_CHARACTERS]
    # ftfy does not change printable ASCII (except HTML, see below), and importing it is slow.
    if not (words.isascii() and words.isprintable()):
        words = importlib.import_module("ftfy").fix_text(words)
    cleaned = " ".join(html.unescape(html.unescape(words)).split()).lower()
    if not cleaned:
        raise ExpressionError("an expression is empty; say what to look for")
    return cleaned


def _decode(text: str | bytes) -> str:
    if isinstance(text, str):
        try:
            # Bytes from a terminal that are not UTF-8 arrive as lone surrogates.
            text.encode()
        except UnicodeEncodeError as error:
            raise ExpressionError(
                f"expression {text[:40]!a} is not UTF-8 ({error.reason}); convert it"
            ) from None
        return text
    if not isinstance(text, bytes):
        raise ExpressionError(f"expression {text!r:.40} is {type(text).__name__}, not text")
    try:
        return text.decode()
    except UnicodeDecodeError as error:
        raise ExpressionError(
            f"expression {text[:40]!r} is not UTF-8 ({error.reason}); convert it"
        ) from None


class ClipTokenizer:
    """CLIP's byte-pair encoding, offline, from the `instant-clip-tokenizer` wheel."""

    vocab_size = CLIP_VOCAB
    eos_id = CLIP_EOS

    def __init__(self) -> None:
        """Loads the vocabulary.

        Raises:
            UserError: the wheel is not installed; it does not exist for every platform.
        """
        try:
            wheel = importlib.import_module("instant_clip_tokenizer")
        except ImportError:
            raise UserError(
                "tokenizer 'clip': no instant-clip-tokenizer wheel for this Python and platform; "
                "set config.data.tokenizer to the path of CLIP's tokenizer.json, or to a hub name "
                "such as openai/clip-vit-base-patch16"
            ) from None
        tokenizer = wheel.Tokenizer()
        self._encode, self._decode = tokenizer.encode, tokenizer.decode

    def __call__(
        self, texts: Sequence[str | bytes], context_length: int
    ) -> tuple[np.ndarray, np.ndarray]:
        """See `Tokenizer`."""
        words = [self._encode(clean(text)) for text in texts]
        return _pad(words, context_length, CLIP_SOS, CLIP_EOS)

    def as_json(self) -> str:
        """See `Tokenizer`."""
        return clip_vocabulary.tokenizer_json(self._decode, CLIP_VOCAB)


class JsonTokenizer:
    """A vocabulary from a `tokenizer.json` of the `tokenizers` library.

    The template, truncation and padding in the file are ignored: SOS and EOS are added here, so that
    truncation is the same for every vocabulary.
    """

    def __init__(self, source: str) -> None:
        """Loads the vocabulary.

        Args:
            source: the file, a folder that holds it, or a name on the Hugging Face hub.

        Raises:
            UserError: the file does not exist, the hub cannot be reached, or the vocabulary has no
                tokens for the start and the end of a text.
        """
        library = importlib.import_module("tokenizers")
        path = _file(source)
        try:
            if path.is_file():
                self._tokenizer = library.Tokenizer.from_file(str(path))
            else:
                self._tokenizer = library.Tokenizer.from_pretrained(source)
        except Exception as error:  # The library raises plain Exceptions.
            reason = " ".join(str(error).split())[:120]
            raise UserError(
                f"tokenizer {source!r}: no such file, and the hub gave none ({reason}); download "
                "its tokenizer.json and name that file in config.data.tokenizer"
            ) from None
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        # "<|endoftext|>" within an expression is ordinary text and does not end it.
        self._tokenizer.encode_special_tokens = True
        self._sos = self._special("<|startoftext|>", "[CLS]", "<s>")
        self.eos_id = self._special("<|endoftext|>", "[SEP]", "</s>")
        self.vocab_size = self._tokenizer.get_vocab_size()

    def __call__(
        self, texts: Sequence[str | bytes], context_length: int
    ) -> tuple[np.ndarray, np.ndarray]:
        """See `Tokenizer`."""
        cleaned = [clean(text) for text in texts]
        words = [self._tokenizer.encode(t, add_special_tokens=False).ids for t in cleaned]
        return _pad(words, context_length, self._sos, self.eos_id)

    def as_json(self) -> str:
        """See `Tokenizer`."""
        return self._tokenizer.to_str()

    def _special(self, *names: str) -> int:
        for name in names:
            number = self._tokenizer.token_to_id(name)
            if number is not None:
                return number
        raise UserError(f"the tokenizer has none of the tokens {', '.join(names)}")


def build_tokenizer(name: str = "clip") -> Tokenizer:
    """A tokenizer by name: `clip`, or any source of `JsonTokenizer`.

    Tokenizers are cached until their file changes.
    """
    return _build(name, () if name == "clip" else _version(name))


@functools.cache
def _build(name: str, version: tuple[int, ...]) -> Tokenizer:
    del version
    return ClipTokenizer() if name == "clip" else JsonTokenizer(name)


def _version(source: str) -> tuple[int, ...]:
    """Identifies the version of a vocabulary's file; `()` for a name on the hub.

    It only calls `stat`, because pipelines ask for every row.
    """
    try:
        found = _file(source).stat()
    except OSError:
        return ()
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns


def _file(source: str) -> Path:
    return Path(source) / "tokenizer.json" if Path(source).is_dir() else Path(source)


def check_length(context_length: int) -> None:
    """Checks that a text has room for SOS and EOS.

    Raises:
        UserError: `context_length` is less than 2.
    """
    if context_length < 2:
        raise UserError(
            f"config.data.context_length={context_length} has no room for the tokens SOS and EOS "
            "that every text holds; set it to 3 or more"
        )


def check_tokenizer(name: str, context_length: int, model: Any) -> None:
    """Checks that a tokenizer fits a model, which would otherwise train on wrong words without an error.

    Args:
        name: the tokenizer, as in `build_tokenizer`.
        context_length: L of the texts.
        model: the model's config, with `vocab_size`, `eos_id` and `text_positions`.

    Raises:
        UserError: they do not fit, or the tokenizer does not exist.
    """
    check_length(context_length)
    tokenizer = build_tokenizer(name)
    if tokenizer.vocab_size > model.vocab_size:
        raise UserError(
            f"config.data.tokenizer {name!r} has {tokenizer.vocab_size} tokens, the model "
            f"{model.vocab_size}: set config.model.vocab_size={tokenizer.vocab_size}, or take the "
            "model's tokenizer"
        )
    if tokenizer.eos_id != model.eos_id:
        raise UserError(
            f"config.data.tokenizer {name!r} ends texts by token {tokenizer.eos_id}, the model "
            f"expects {model.eos_id}: set config.model.eos_id={tokenizer.eos_id}, or take the "
            "model's tokenizer"
        )
    if context_length > model.text_positions:
        raise UserError(
            f"config.data.context_length={context_length} is more than the "
            f"{model.text_positions} text positions of the model"
        )


def _pad(
    words: Sequence[Sequence[int]], length: int, sos: int, eos: int
) -> tuple[np.ndarray, np.ndarray]:
    check_length(length)
    ids = np.zeros((len(words), length), np.int32)
    counts = np.array([min(len(w) + 2, length) for w in words], np.int32)
    for row, word_ids, count in zip(ids, words, counts, strict=True):
        row[0], row[count - 1] = sos, eos
        row[1 : count - 1] = word_ids[: count - 2]
    return ids, np.arange(length) < counts[:, None]
