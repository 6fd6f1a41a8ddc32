"""CLIP's vocabulary as a `tokenizer.json`, got out of the wheel that only encodes and decodes.

The wheel names neither tokens nor merges. Both follow from what it does: the first 512 ids are the
bytes (once more with `</w>`, the end of a word) in the order of GPT-2's byte table, and every later
id is the merge of two earlier ones, in the order in which they were learnt. So a token's bytes are
what it decodes to, and its two parts are what the earlier merges make of these bytes.
"""

import functools
import itertools
import json
from collections.abc import Callable, Sequence

#: End of a word.
_END = "</w>"
_BYTES = 256
_SPECIAL = ("<|startoftext|>", "<|endoftext|>")
#: How CLIP cuts a cleaned text into words.
_WORDS = r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"

#: What makes a whole character of the last bytes of one, and of the first bytes of one.
_BEFORE = (b"", b"\xc3", b"\xe1", b"\xe1\x80", b"\xf1", b"\xf1\x80", b"\xf1\x80\x80")
_BEHIND = (b"", b"\x80", b"\x80\x80", b"\x80\x80\x80", b"\xa0\x80", b"\x90\x80\x80")

Decode = Callable[[Sequence[int]], str]


@functools.cache
def byte_characters() -> dict[int, str]:
    """GPT-2's printable character of each byte, in the order of their ids."""
    shown = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    hidden = [b for b in range(_BYTES) if b not in shown]
    return {
        **{b: chr(b) for b in shown},
        **{b: chr(_BYTES + place) for place, b in enumerate(hidden)},
    }


def tokens(decode: Decode, size: int) -> list[str]:
    """The tokens of a vocabulary, in the order of their ids, the two special ones last.

    Args:
        decode: ids to text, undecodable bytes as U+FFFD, the end of a word as a blank.
        size: of the vocabulary.
    """
    letters = byte_characters()
    known = [*letters.values(), *(letter + _END for letter in letters.values())]
    merged = [
        _shown(*_bytes_of(decode, number)) for number in range(len(known), size - len(_SPECIAL))
    ]
    return [*known, *merged, *_SPECIAL]


def merges(names: Sequence[str]) -> list[tuple[str, str]]:
    """The merges behind the tokens that `tokens` gives, in order.

    Raises:
        ValueError: a token is no merge of two earlier ones.
    """
    ranks: dict[tuple[str, str], int] = {}
    for name in names[2 * _BYTES : -len(_SPECIAL)]:
        ending = _END if name.endswith(_END) else ""
        letters = list(name.removesuffix(_END))
        parts = _merge([*letters[:-1], letters[-1] + ending], ranks)
        if len(parts) != 2:
            raise ValueError(f"token {name!r} is no merge of two earlier ones")
        ranks[parts[0], parts[1]] = len(ranks)
    return list(ranks)


@functools.cache
def tokenizer_json(decode: Decode, size: int) -> str:
    """The vocabulary in the format of the `tokenizers` library; arguments as of `tokens`."""
    names = tokens(decode, size)
    first, last = size - 2, size - 1
    content = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            {
                "id": number,
                "content": name,
                "single_word": False,
                "lstrip": False,
                "rstrip": False,
                "normalized": False,
                "special": True,
            }
            for number, name in zip((first, last), _SPECIAL, strict=True)
        ],
        "normalizer": {
            "type": "Sequence",
            "normalizers": [
                {"type": "NFC"},
                {"type": "Replace", "pattern": {"Regex": r"\s+"}, "content": " "},
                {"type": "Lowercase"},
            ],
        },
        "pre_tokenizer": {
            "type": "Sequence",
            "pretokenizers": [
                {
                    "type": "Split",
                    "pattern": {"Regex": _WORDS},
                    "behavior": "Removed",
                    "invert": True,
                },
                {
                    "type": "ByteLevel",
                    "add_prefix_space": False,
                    "trim_offsets": True,
                    "use_regex": False,
                },
            ],
        },
        "post_processor": {
            "type": "RobertaProcessing",
            "sep": [_SPECIAL[1], last],
            "cls": [_SPECIAL[0], first],
            "trim_offsets": False,
            "add_prefix_space": False,
        },
        "decoder": {
            "type": "ByteLevel",
            "add_prefix_space": True,
            "trim_offsets": True,
            "use_regex": True,
        },
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": _SPECIAL[1],
            "continuing_subword_prefix": "",
            "end_of_word_suffix": _END,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": False,
            "vocab": {name: number for number, name in enumerate(names)},
            "merges": [list(pair) for pair in merges(names)],
        },
    }
    return json.dumps(content, ensure_ascii=False)


def _bytes_of(decode: Decode, number: int) -> tuple[bytes, bool]:
    """A token's bytes, and whether it ends a word.

    Where it begins or ends within a character, bytes that complete it are put around it.
    """
    ids = {byte: place for place, byte in enumerate(byte_characters())}
    for behind, before in itertools.product(_BEHIND, _BEFORE):
        text = decode([*(ids[b] for b in before), number, *(ids[b] for b in behind)])
        if "\ufffd" not in text:
            ends = text.endswith(" ")
            raw = text.removesuffix(" ").encode()
            return raw[len(before) : len(raw) - len(behind)], ends
    # U+FFFD itself, as the web is full of it.
    text = decode([number])
    return text.removesuffix(" ").encode(), text.endswith(" ")


def _shown(raw: bytes, ends: bool) -> str:
    return "".join(byte_characters()[b] for b in raw) + (_END if ends else "")


def _merge(parts: list[str], ranks: dict[tuple[str, str], int]) -> list[str]:
    """Byte-pair encoding: the earliest merge first, everywhere from left to right."""
    while len(parts) > 2:
        pairs = [pair for pair in itertools.pairwise(parts) if pair in ranks]
        if not pairs:
            break
        chosen = min(pairs, key=ranks.__getitem__)
        joined: list[str] = []
        for part in parts:
            if joined and (joined[-1], part) == chosen:
                joined[-1] += part
            else:
                joined.append(part)
        parts = joined
    return parts
