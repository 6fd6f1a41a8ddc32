"""Counts the tokens of texts: those longer than the context are cut, and lose their last words."""

import dataclasses
from collections import Counter
from collections.abc import Sequence

from refseg_jax.text.cleaning import ExpressionError, has_word
from refseg_jax.text.tokenizers import Tokenizer

#: Context lengths in use: UniRES and CRIS (17), ReLA and LAVT (20), all positions of CLIP (77).
USUAL = (17, 20, 77)
#: A cleaned text has fewer tokens: at most four for each of its characters.
_LONGEST = 8192
#: Characters of a text that are shown.
_SHOWN = 120


def count_tokens(tokenizer: Tokenizer, text: str | bytes) -> int:
    """Number of tokens that a text takes when nothing is cut, SOS and EOS included.

    0 if it has no word, or none that the vocabulary has a token for.
    """
    try:
        _, valid = tokenizer([text], _LONGEST)
    except ExpressionError:
        return 0
    number = int(valid.sum())
    return number if number > 2 else 0


@dataclasses.dataclass
class Lengths:
    """How many texts take how many tokens; the lengths of parts of a dataset can be merged.

    Attributes:
        counts: number of tokens, as `count_tokens` counts them -> number of texts.
        longest: a text of the most tokens.
    """

    counts: Counter[int] = dataclasses.field(default_factory=Counter)
    longest: str = ""

    def add(self, text: str, tokens: int) -> None:
        """Adds a text."""
        if tokens > max(self.counts, default=0):
            self.longest = text
        self.counts[tokens] += 1

    def merge(self, other: "Lengths") -> None:
        """Adds the texts of another part."""
        if max(other.counts, default=0) > max(self.counts, default=0):
            self.longest = other.longest
        self.counts += other.counts

    def longer_than(self, length: int) -> int:
        """Number of texts of which a context of `length` tokens cuts the last words."""
        return sum(number for tokens, number in self.counts.items() if tokens > length)

    def line(self, where: str, tokenizer: str, lengths: Sequence[int], prefix: int = 0) -> str:
        """A line of a report, `""` if no text is cut.

        Args:
            where: what the texts are of, e.g. the split.
            tokenizer: its name.
            lengths: context lengths, rising.
            prefix: tokens that an anti-expression has beside those of its text.
        """
        cut = [self.longer_than(length - prefix) for length in lengths]
        if not any(cut):
            return ""
        first, *rest = (
            f"{format(number, ',') if number else 'none'} more than {length}"
            for length, number in zip(lengths, cut, strict=True)
        )
        others = "".join(f", {told}" for told in rest)
        texts = "texts with the prefix of anti-expressions" if prefix else "texts"
        take = first.replace("more", "take more")
        return (
            f"{where}: of {self.counts.total():,} {texts}, {take} tokens of {tokenizer}{others}; a "
            "model of that context_length does not read their last words; the longest takes "
            f"{max(self.counts) + prefix}: {quoted(self.longest)}"
        )


def quoted(text: str) -> str:
    """The beginning of a text in quotes, on one line and with what cannot be seen as escapes."""
    if len(text) > _SHOWN:
        text = f"{text[:_SHOWN]}..."
    return repr(text) if text.isprintable() and has_word(text) else ascii(text)
