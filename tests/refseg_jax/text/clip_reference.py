"""A slow and plain version of CLIP's tokenizer, `clip/simple_tokenizer.py` (OpenAI, MIT)."""

import gzip
import html
import itertools
from pathlib import Path

import ftfy
import regex

_WORDS = regex.compile(
    r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+",
    regex.IGNORECASE,
)


def byte_letters() -> dict[int, str]:
    """Byte -> printable letter; the bytes that are printable themselves come first."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    return {b: chr(b) for b in printable} | {b: chr(256 + n) for n, b in enumerate(others)}


def read_merges(path: Path) -> list[tuple[str, str]]:
    """The first 48,894 merges of the file, which are those that CLIP uses."""
    lines = gzip.decompress(path.read_bytes()).decode().split("\n")[1 : 49152 - 256 - 2 + 1]
    pairs = [line.split() for line in lines]
    return [(left, right) for left, right in pairs]


def vocabulary(merges: list[tuple[str, str]]) -> dict[str, int]:
    """Token -> id."""
    letters = list(byte_letters().values())
    joined = ["".join(pair) for pair in merges]
    special = ["<|startoftext|>", "<|endoftext|>"]
    tokens = [*letters, *(letter + "</w>" for letter in letters), *joined, *special]
    return {token: number for number, token in enumerate(tokens)}


class SlowClip:
    """Encodes text as ids, without SOS and EOS."""

    def __init__(self, merges: list[tuple[str, str]]) -> None:
        self._ranks = {pair: rank for rank, pair in enumerate(merges)}
        self._ids = vocabulary(merges)
        self._letters = byte_letters()
        self._known: dict[str, list[int]] = {}

    def encode(self, text: str) -> list[int]:
        """Ids of a text, as from `SimpleTokenizer.encode`."""
        text = html.unescape(html.unescape(ftfy.fix_text(text))).strip()
        text = regex.sub(r"\s+", " ", text).strip().lower()
        return [number for word in _WORDS.findall(text) for number in self._word(word)]

    def _word(self, word: str) -> list[int]:
        if word not in self._known:
            letters = [self._letters[byte] for byte in word.encode()]
            self._known[word] = [self._ids[part] for part in self._merge(letters)]
        return self._known[word]

    def _merge(self, word: list[str]) -> list[str]:
        parts = [*word[:-1], word[-1] + "</w>"]
        while len(parts) > 1:
            pairs = [(self._ranks.get(pair), pair) for pair in itertools.pairwise(parts)]
            known = [(rank, pair) for rank, pair in pairs if rank is not None]
            if not known:
                break
            best, joined, place = min(known)[1], [], 0
            while place < len(parts):
                together = tuple(parts[place : place + 2]) == best
                joined.append("".join(best) if together else parts[place])
                place += 2 if together else 1
            parts = joined
        return parts
