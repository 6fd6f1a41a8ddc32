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
    settings: dict[str, Any] = {
        "tokenizer_class": "CLIPTokenizer" if is_clips(content) else "PreTrainedTokenizerFast",
        "model_max_length": context_length,
        # No padding: id 0, which our batches have, is "!" in CLIP's vocabulary, and what is named here
        # is cut out of texts as a special token.
        **{kind: name for kind, name in special.items() if name is not None},
    }
    write_json(target / "tokenizer_config.json", settings)
    if model.get("type") == "BPE":
        write_json(target / "vocab.json", model["vocab"])
        lines = [m if isinstance(m, str) else " ".join(m) for m in model["merges"]]
        (target / "merges.txt").write_text("\n".join(["#version: 0.2", *lines]) + "\n")


def is_clips(content: str) -> bool:
    """Whether a `tokenizer.json` is of CLIP's vocabulary."""
    return "<|startoftext|>" in _token_names(json.loads(content)["model"]["vocab"])


def _token_names(vocabulary: Any) -> set[str]:
    """Of a table name -> id, or of Unigram's list of pairs."""
    return set(vocabulary) if isinstance(vocabulary, dict) else {name for name, _ in vocabulary}


def write_json(path: Path, content: Any) -> None:
    """As people read it: indented, and with letters as they are."""
    path.write_text(json.dumps(content, ensure_ascii=False, indent=1) + "\n")
