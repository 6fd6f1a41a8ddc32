"""Expressions to token ids; the input pipeline and the predictor share this code."""

import contextlib
import functools
import hashlib
import importlib
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, Protocol, TypeAlias

import numpy as np

from refseg_jax.errors import UserError, shown
from refseg_jax.storage.hub import Address, hub_file
from refseg_jax.text import clip_vocabulary
from refseg_jax.text.anti import check_anti_length
from refseg_jax.text.cleaning import ExpressionError, clean
from refseg_jax.text.vocabulary_file import read_vocabulary, same_vocabulary

#: What stands before an anti-expression (`refseg_jax.text.anti`). `""`: there are no anti-expressions.
#: `token`: a token of its own, whose meaning is learned. `word`: the word "no", which pretrained text
#: encoders know, but which expressions hold as well ("the cat with no collar"). GRSer's paper writes
#: `<no>` and does not say which it is.
AntiPrefix: TypeAlias = Literal["", "token", "word"]

#: Ids of start and end of a text in CLIP's vocabulary, and the size of the vocabulary.
CLIP_SOS, CLIP_EOS, CLIP_VOCAB = 49406, 49407, 49408

#: Where the hub has CLIP's vocabulary, for platforms without its wheel.
CLIP_ON_HUB = "openai/clip-vit-base-patch16"

#: A name on the Hugging Face hub; what ends as a file does, or begins by a dot, is a path.
_HUB_NAME = re.compile(r"(?!.*\.json$)\w[\w.-]{0,95}(/\w[\w.-]{0,95})?", re.ASCII)

#: A token of BERT's vocabularies that no text is encoded to.
_FREE = "[unused0]"

#: Words that no vocabulary has: letters, a rare script, a symbol.
_UNKNOWN_WORDS = ("qzxjwv", "\U00013000\U00013001", "\u2603")

_AGAIN = "download its tokenizer.json again and name that file in config.data.tokenizer"
_NO_UNKNOWN = "take another tokenizer in config.data.tokenizer, with a token for unknown words"


class MissingLibrary(UserError):
    """The `tokenizers` library, or CLIP's wheel, is not installed."""


class Tokenizer(Protocol):
    """Turns texts into token ids of a fixed length.

    Attributes:
        vocab_size: number of tokens in the vocabulary.
        eos_id: id of the token that ends a text.
        free_id: id of a token that no text has, for a token of one's own: one that the vocabulary keeps
            free (BERT's `[unused0]`), else `vocab_size`, for which a model needs one more row.
    """

    vocab_size: int
    eos_id: int
    free_id: int

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
            ExpressionError: an expression has no word, or is not UTF-8 text.
            UserError: L has no room for SOS and EOS.
        """
        ...

    def as_json(self) -> str:
        """The vocabulary as the text of a `tokenizer.json`, for `JsonTokenizer` and transformers."""
        ...


class ClipTokenizer:
    """CLIP's byte-pair encoding, offline, from the `instant-clip-tokenizer` wheel."""

    vocab_size = CLIP_VOCAB
    eos_id = CLIP_EOS
    free_id = CLIP_VOCAB

    def __init__(self) -> None:
        """Loads the vocabulary.

        Raises:
            MissingLibrary: the wheel is not installed; it does not exist for every platform.
        """
        try:
            wheel = importlib.import_module("instant_clip_tokenizer")
        except ImportError:
            raise MissingLibrary(
                "tokenizer 'clip': no instant-clip-tokenizer wheel for this Python and platform; "
                "set config.data.tokenizer to CLIP's tokenizer.json (every exported folder of such a "
                "model has it) or to a hub name such as openai/clip-vit-base-patch16; to predict, take "
                "an exported folder"
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

    The template, truncation, padding and dropout in the file are ignored: SOS and EOS are added here, so
    that truncation is the same for every vocabulary.
    """

    def __init__(self, source: str) -> None:
        """Loads the vocabulary.

        Args:
            source: the file, a folder that holds it, or a name on the Hugging Face hub.

        Raises:
            UserError: the library is not installed; the file does not exist or is damaged, or the hub
                cannot be reached; the vocabulary has no tokens for the start and the end of a text, or
                none for words that it does not know.
        """
        self._name = f"tokenizer {shown(source)!r}"
        self._tokenizer = self._load(source)
        with self._explained("", "take another tokenizer in config.data.tokenizer"):
            self._tokenizer.no_truncation()
            self._tokenizer.no_padding()
            # "<|endoftext|>" within an expression is ordinary text and does not end it.
            self._tokenizer.encode_special_tokens = True
            self._sos = self._special("<|startoftext|>", "[CLS]", "<s>")
            self.eos_id = self._special("<|endoftext|>", "[SEP]", "</s>")
            # Not `get_vocab_size`, which counts tokens: ids may have holes.
            self.vocab_size = max(self._tokenizer.get_vocab(with_added_tokens=True).values()) + 1
            free = self._tokenizer.token_to_id(_FREE)
            self.free_id = self.vocab_size if free is None else free
        with self._explained("cannot encode words that it does not know", _NO_UNKNOWN):
            for text in _UNKNOWN_WORDS:
                self._tokenizer.encode(text, add_special_tokens=False)

    def _load(self, source: str) -> Any:
        try:
            library = importlib.import_module("tokenizers")
        except ImportError:
            raise MissingLibrary(
                f"{self._name}: needs the tokenizers library; pip install tokenizers (CLIP's "
                "vocabulary alone: config.data.tokenizer=clip)"
            ) from None
        if path := _regular(source):
            with self._explained("no tokenizer.json, or a damaged one", _AGAIN):
                return library.Tokenizer.from_str(read_vocabulary(path))
        if not _HUB_NAME.fullmatch(source):
            raise UserError(
                f"{self._name}: no such file; name a tokenizer.json, a folder that holds one or a name "
                "on the Hugging Face hub in config.data.tokenizer"
            )
        with self._explained("no such file, and the hub gave none", _AGAIN):
            return library.Tokenizer.from_pretrained(source)

    @contextlib.contextmanager
    def _explained(self, what: str, cure: str, kind: type[UserError] = UserError) -> Iterator[None]:
        """Turns any exception of the library, whose panics are no `Exception`, into one line."""
        try:
            yield
        except (UserError, MemoryError, KeyboardInterrupt, SystemExit, GeneratorExit):
            raise
        except BaseException as error:
            reason = " ".join(str(error).split())[:120] or type(error).__name__
            about = f"{what} ({reason})" if what else reason
            raise kind(f"{self._name}: {about}; {cure}") from None

    def __call__(
        self, texts: Sequence[str | bytes], context_length: int
    ) -> tuple[np.ndarray, np.ndarray]:
        """See `Tokenizer`."""
        words = [self._ids(clean(text)) for text in texts]
        return _pad(words, context_length, self._sos, self.eos_id)

    def _ids(self, text: str) -> list[int]:
        with self._explained(f"cannot encode {text[:40]!a}", "say it otherwise", ExpressionError):
            return self._tokenizer.encode(text, add_special_tokens=False).ids

    def as_json(self) -> str:
        """See `Tokenizer`."""
        with self._explained("cannot be written", _AGAIN):
            return self._tokenizer.to_str()

    def _special(self, *names: str) -> int:
        for name in names:
            number = self._tokenizer.token_to_id(name)
            if number is not None:
                return number
        raise UserError(
            f"{self._name}: it has none of the tokens {', '.join(names)}; take another tokenizer in "
            "config.data.tokenizer"
        )


def build_tokenizer(name: str = "clip") -> Tokenizer:
    """A tokenizer by name: `clip`, or any source of `JsonTokenizer`.

    Tokenizers are cached until their file changes. Where CLIP's wheel is missing, `clip` is read by the
    `tokenizers` library, from the hub or its cache. Where that library is not installed, a file with
    CLIP's vocabulary, such as that of an exported folder, is read by CLIP's wheel.

    Raises:
        UserError: there is no such tokenizer, or what it needs is not installed.
    """
    return _build(name, () if name == "clip" else _version(name))


@functools.cache
def _build(name: str, version: tuple[int, ...]) -> Tokenizer:
    del version
    if name == "clip":
        return _clip()
    try:
        return JsonTokenizer(name)
    except MissingLibrary as error:
        with contextlib.suppress(UserError, OSError, ValueError):
            clip, path = ClipTokenizer(), _regular(name)
            if path and same_vocabulary(read_vocabulary(path), clip.as_json()):
                return clip
        raise error


def _clip() -> Tokenizer:
    """CLIP's vocabulary from its wheel; where there is none, from the hub."""
    try:
        return ClipTokenizer()
    except MissingLibrary as missing:
        try:
            file = hub_file(Address(CLIP_ON_HUB), "tokenizer.json", hint="take another")
        except UserError:
            raise UserError(
                f"{missing}; or fetch it once, where there is a network: hf download {CLIP_ON_HUB} "
                "tokenizer.json"
            ) from None
    found = JsonTokenizer(str(file))
    if (found.vocab_size, found.eos_id) != (CLIP_VOCAB, CLIP_EOS):
        raise UserError(f"{file}: it is not CLIP's vocabulary; delete it, and it is fetched again")
    return found


def _version(source: str) -> tuple[int, ...]:
    """Identifies the version of a vocabulary's file; `()` for a name on the hub.

    It only calls `stat`, because pipelines ask for every row.
    """
    path = _regular(source)
    if path is None:
        return ()
    found = path.stat()
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns


def tokenizer_identity(name: str) -> str:
    """16 hexadecimal digits that tell tokenizers apart.

    Those of a file tell its content, not its place: copies on several machines are one tokenizer.
    """
    path = None if name == "clip" else _regular(name)
    content = name.encode()
    if path is not None:
        with contextlib.suppress(OSError):  # `build_tokenizer` tells of it.
            content = path.read_bytes()
    return hashlib.sha256(content).hexdigest()[:16]


def _file(source: str) -> Path:
    """The file that a source means, if it means one."""
    with contextlib.suppress(OSError, RuntimeError):  # A name too long, a home folder of nobody.
        path = Path(source).expanduser()
        return path / "tokenizer.json" if path.is_dir() else path
    return Path(source)


def _regular(source: str) -> Path | None:
    """As `_file`, or `None` if there is no such regular file."""
    path = _file(source)
    with contextlib.suppress(OSError):
        return path if path.is_file() else None
    return None


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


def prefix_id(tokenizer: Tokenizer, prefix: AntiPrefix) -> int:
    """Id of the token that stands before an anti-expression.

    Args:
        tokenizer: the vocabulary.
        prefix: `"token"` (its id is `Tokenizer.free_id`) or `"word"`.

    Raises:
        UserError: the prefix is neither, or the vocabulary does not have the word "no" as one token.
    """
    if prefix == "token":
        return tokenizer.free_id
    if prefix != "word":
        raise UserError(
            f"config.data.anti_prefix={shown(prefix)!r}: give token, word, or '' for none"
        )
    ids, valid = tokenizer(["no", _UNKNOWN_WORDS[0]], 8)
    if valid[0].sum() != 3 or ids[0, 1] == ids[1, 1]:
        raise UserError(
            "config.data.anti_prefix=word: the vocabulary does not have the word 'no' as one token; "
            "set it to token"
        )
    return int(ids[0, 1])


def check_tokenizer(
    name: str, context_length: int, model: Any, anti_prefix: AntiPrefix = ""
) -> None:
    """Checks that a tokenizer fits a model, which would otherwise train on wrong words without an error.

    Args:
        name: the tokenizer, as in `build_tokenizer`.
        context_length: L of the texts.
        model: the model's config, with `vocab_size`, `eos_id` and `text_positions`.
        anti_prefix: what stands before an anti-expression, if there are any.

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
    if anti_prefix:
        _check_prefix(tokenizer, context_length, model, anti_prefix)


def _check_prefix(tokenizer: Tokenizer, length: int, model: Any, prefix: AntiPrefix) -> None:
    check_anti_length(length)
    needed = prefix_id(tokenizer, prefix) + 1
    if needed > model.vocab_size:
        raise UserError(
            f"config.data.anti_prefix={prefix}: the vocabulary has no unused token, and the model no "
            f"row for a new one: set config.model.vocab_size={needed}, or config.data.anti_prefix=word"
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
