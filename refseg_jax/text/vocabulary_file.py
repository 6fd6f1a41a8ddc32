"""Checks the content of a `tokenizer.json` before the `tokenizers` library takes it.

The library says of a damaged file only which Rust type it is not. It takes ids of any size (and then
fills the holes between them), equal ids of two tokens, and a `dropout` that draws the tokens of a text
anew each time.
"""

import json
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from refseg_jax.text.encoding import json_of

#: Bounds of a file and of its ids; the largest published vocabularies have 35 MB and 262,144 tokens.
_MAX_BYTES, _MAX_ID = 1 << 28, 1 << 23

#: Files that lie beside a `tokenizer.json` and are taken for it -> an entry that they have.
_BESIDE = {
    "tokenizer_config.json": "tokenizer_class",
    "config.json": "architectures",
    "vocab.json": "<|endoftext|>",
}


def read_vocabulary(path: Path) -> str:
    """Reads a `tokenizer.json`.

    Args:
        path: a regular file.

    Returns:
        Its JSON, with `dropout` switched off: ids of a text are always the same.

    Raises:
        OSError: the file cannot be read.
        ValueError: it is no such file, or damaged; the message has the reason alone.
    """
    if path.stat().st_size > _MAX_BYTES:
        raise ValueError(f"more than {_MAX_BYTES >> 20} MB")
    try:
        content = json_of(path.read_bytes())
    except RecursionError:
        raise ValueError("nested too deeply") from None
    _check(content)
    if content["model"].get("dropout") is not None:
        content["model"]["dropout"] = None
    return json.dumps(content, ensure_ascii=False)


def same_vocabulary(one: str, other: str) -> bool:
    """Whether two contents of `tokenizer.json` have the same tokens with the same ids and merges."""
    return _tokens(one) == _tokens(other)


def _tokens(content: str) -> tuple[Any, list[str]]:
    model = json.loads(content)["model"]
    # Older files write the two tokens of a merge as one text.
    merges = (m if isinstance(m, str) else " ".join(m) for m in model.get("merges", ()))
    return model["vocab"], list(merges)


def _check(content: Any) -> None:
    if not isinstance(content, dict) or not isinstance(content.get("model"), dict):
        there = content if isinstance(content, dict) else {}
        names = [name for name, entry in _BESIDE.items() if entry in there]
        raise ValueError(f"it is a {names[0]}" if names else "it has no table 'model'")
    numbers = list(_ids(content["model"].get("vocab")))
    if not numbers:
        raise ValueError("its vocabulary is empty")
    added = content.get("added_tokens") or []
    more = [token.get("id") for token in added if isinstance(token, dict)]
    for number in (*numbers, *more):
        if type(number) is not int or not 0 <= number <= _MAX_ID:
            raise ValueError(f"a token has the id {number!a:.40}, not one of 0 to {_MAX_ID}")
    number, count = Counter(numbers).most_common(1)[0]
    if count > 1:
        raise ValueError(f"{count} tokens have the id {number}")


def _ids(vocabulary: Any) -> Iterable[Any]:
    """Ids of a table token -> id, or of Unigram's list of (token, score), where they are the places."""
    if isinstance(vocabulary, Mapping):
        return vocabulary.values()
    if isinstance(vocabulary, list):
        return range(len(vocabulary))
    raise ValueError("its model has no table 'vocab'")
