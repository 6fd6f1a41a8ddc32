"""CLIP's vocabulary as a `tokenizer.json`, recovered from a wheel that only encodes and decodes.

The `instant-clip-tokenizer` wheel exposes neither tokens nor merges, but both can be derived. The
first 256 ids are the bytes in the order of GPT-2's byte table, and the next 256 are the same bytes
at the end of a word (`</w>`). Every later id merges two earlier tokens, in the order in which the
merges were learnt. Decoding an id therefore gives the bytes of its token, and applying all earlier
merges to these bytes gives the two tokens that it merges.
"""

import functools
import itertools
import json
from collections.abc import Callable, Sequence

#: Marks a token at the end of a word.
_END = "</w>"
_BYTES = 256
_SPECIAL = ("<|startoftext|>", "<|endoftext|>")
#: CLIP's regular expression that cuts a cleaned text into words.
_WORDS = r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"

#: Bytes that complete a token of partial UTF-8: they go before a token of the last bytes of a
#: character, and after a token of the first bytes.
_BEFORE = (b"", b"\xc3", b"\xe1", b"\xe1\x80", b"\xf1", b"\xf1\x80", b"\xf1\x80\x80")
_BEHIND = (b"", b"\x80", b"\x80\x80", b"\x80\x80\x80", b"\xa0\x80", b"\x90\x80\x80")

Decode = Callable[[Sequence[int]], str]


@functools.cache
def byte_characters() -> dict[int, str]:
    """Byte -> GPT-2's printable character for it, in the order of the token ids."""
    shown = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    hidden = [b for b in range(_BYTES) if b not in shown]
    return {
        **{b: chr(b) for b in shown},
        **{b: chr(_BYTES + place) for place, b in enumerate(hidden)},
    }


def tokens(decode: Decode, size: int) -> list[str]:
    """The tokens of a vocabulary in the order of their ids; the two special tokens are last.

    Args:
        decode: turns ids into text, with undecodable bytes as U+FFFD and the end of a word as a blank.
        size: number of tokens in the vocabulary.
    """
    letters = byte_characters()
    known = [*letters.values(), *(letter + _END for letter in letters.values())]
    merged = [
        _shown(*_bytes_of(decode, number)) for number in range(len(known), size - len(_SPECIAL))
    ]
    return [*known, *merged, *_SPECIAL]


def merges(names: Sequence[str]) -> list[tuple[str, str]]:
    """The pairs of tokens that are merged, in the order in which they were learnt.

    Args:
        names: all tokens, as `tokens` returns them.

    Raises:
        ValueError: a token does not merge two earlier ones.
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
    """The vocabulary in the JSON format of the `tokenizers` library; arguments as in `tokens`."""
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
    """The bytes of a token, and whether it ends a word.

    A token may begin or end within a UTF-8 character: it is then decoded between tokens of bytes that
    complete the character.
    """
    ids = {byte: place for place, byte in enumerate(byte_characters())}
    for behind, before in itertools.product(_BEHIND, _BEFORE):
        text = decode([*(ids[b] for b in before), number, *(ids[b] for b in behind)])
        if "\ufffd" not in text:
            ends = text.endswith(" ")
            raw = text.removesuffix(" ").encode()
            return raw[len(before) : len(raw) - len(behind)], ends
    # The token is U+FFFD itself, which is frequent on the web.
    text = decode([number])
    return text.removesuffix(" ").encode(), text.endswith(" ")


def _shown(raw: bytes, ends: bool) -> str:
    return "".join(byte_characters()[b] for b in raw) + (_END if ends else "")


def _merge(parts: list[str], ranks: dict[tuple[str, str], int]) -> list[str]:
    """Byte-pair encoding: applies the earliest learnt merge first, at every place from left to right."""
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
