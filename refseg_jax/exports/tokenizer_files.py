"""The tokenizer's files, for readers without this project's code."""

import json
from pathlib import Path
from typing import Any

from refseg_jax.exports.folder import TOKENIZER

#: Names of special tokens in Hugging Face's files, and what vocabularies call them.
_SPECIAL = {
    "bos_token": ("<|startoftext|>", "[CLS]", "<s>"),
    "eos_token": ("<|endoftext|>", "[SEP]", "</s>"),
    "unk_token": ("<|endoftext|>", "[UNK]", "<unk>"),
}


def write_tokenizer(target: Path, content: str, context_length: int) -> None:
    """`tokenizer.json` and `tokenizer_config.json`; of byte-pair encodings the two old files too.

    Args:
        target: the folder.
        content: of `tokenizer.json`.
        context_length: of the texts that the model was trained on, SOS and EOS included.
    """
    (target / TOKENIZER).write_text(content)
    model = json.loads(content)["model"]
    names = _token_names(model["vocab"])
    special = {
        kind: next((name for name in choices if name in names), None)
        for kind, choices in _SPECIAL.items()
    }
    clip = special["bos_token"] == "<|startoftext|>"
    settings: dict[str, Any] = {
        "tokenizer_class": "CLIPTokenizer" if clip else "PreTrainedTokenizerFast",
        "model_max_length": context_length,
        **{kind: name for kind, name in special.items() if name is not None},
    }
    if clip:
        # Padding is masked away, so that any token does; id 0, which our batches are padded with.
        settings["pad_token"] = "!"
    _write_json(target / "tokenizer_config.json", settings)
    if model.get("type") == "BPE":
        _write_json(target / "vocab.json", model["vocab"])
        lines = [m if isinstance(m, str) else " ".join(m) for m in model["merges"]]
        (target / "merges.txt").write_text("\n".join(["#version: 0.2", *lines]) + "\n")


def _token_names(vocabulary: Any) -> set[str]:
    """Of a table name -> id, or of Unigram's list of pairs."""
    return set(vocabulary) if isinstance(vocabulary, dict) else {name for name, _ in vocabulary}


def _write_json(path: Path, content: Any) -> None:
    path.write_text(json.dumps(content, ensure_ascii=False, indent=1) + "\n")
