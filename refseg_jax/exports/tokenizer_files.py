"""Writes the tokenizer's files in Hugging Face's formats, for readers without this project's code."""

import json
from pathlib import Path
from typing import Any

from refseg_jax.exports.folder import TOKENIZER

#: Kind of special token in Hugging Face's files -> its possible names in a vocabulary.
_SPECIAL = {
    "bos_token": ("<|startoftext|>", "[CLS]", "<s>"),
    "eos_token": ("<|endoftext|>", "[SEP]", "</s>"),
    "unk_token": ("<|endoftext|>", "[UNK]", "<unk>"),
}


def write_tokenizer(target: Path, content: str, context_length: int) -> None:
    """Writes `tokenizer.json` and `tokenizer_config.json`.

    For byte-pair encodings it also writes `vocab.json` and `merges.txt`, which older readers need.

    Args:
        target: the folder.
        content: content of `tokenizer.json`.
        context_length: length `L` of the model's texts, SOS and EOS included.
    """
    (target / TOKENIZER).write_text(content)
    model = json.loads(content)["model"]
    names = _token_names(model["vocab"])
    special = {
        kind: next((name for name in choices if name in names), None)
        for kind, choices in _SPECIAL.items()
    }
    settings: dict[str, Any] = {
        "tokenizer_class": "CLIPTokenizer" if is_clips(content) else "PreTrainedTokenizerFast",
        "model_max_length": context_length,
        # No padding token: batches are padded with id 0, which is "!" in CLIP's vocabulary, and
        # readers would take every "!" in a text for a special token.
        **{kind: name for kind, name in special.items() if name is not None},
    }
    write_json(target / "tokenizer_config.json", settings)
    if model.get("type") == "BPE":
        write_json(target / "vocab.json", model["vocab"])
        lines = [m if isinstance(m, str) else " ".join(m) for m in model["merges"]]
        (target / "merges.txt").write_text("\n".join(["#version: 0.2", *lines]) + "\n")


def is_clips(content: str) -> bool:
    """Whether the content of a `tokenizer.json` has CLIP's vocabulary."""
    return "<|startoftext|>" in _token_names(json.loads(content)["model"]["vocab"])


def _token_names(vocabulary: Any) -> set[str]:
    """Tokens of a vocabulary: a table name -> id, or Unigram's list of pairs (name, score)."""
    return set(vocabulary) if isinstance(vocabulary, dict) else {name for name, _ in vocabulary}


def write_json(path: Path, content: Any) -> None:
    """Writes JSON for people to read: indented, non-ASCII characters not escaped."""
    path.write_text(json.dumps(content, ensure_ascii=False, indent=1) + "\n")
