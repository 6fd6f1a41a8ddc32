"""Cleans expressions, and decides whether they have a word: the one definition of the code base.

A text has a word if a character remains that can be seen, after it was cleaned as CLIP cleans it. These
cannot: blanks, control and format characters (zero-width space, soft hyphen, byte order mark), marks
without a letter, private characters, blank letters (Hangul filler, empty Braille pattern), and U+FFFD,
which stands for lost bytes. BERT's vocabulary gives none of them a token; CLIP's gives some of them
tokens that mean nothing.

Punctuation alone ("...") and an emoji alone are words: both vocabularies have tokens for them, and
published datasets score such expressions.
"""

import html
import importlib
import unicodedata

from refseg_jax.errors import UserError

#: Longer expressions are cut before they are cleaned: no context has room for so many words.
_MAX_CHARACTERS = 2000
#: Categories of Unicode that show nothing on their own. Unassigned characters are not among them: they
#: are assigned in a later version of Unicode than Python's, most often to emoji.
_INVISIBLE = frozenset({"Cc", "Cf", "Co", "Cs", "Mc", "Me", "Mn", "Zl", "Zp", "Zs"})
#: Letters and symbols that are blank, and the sign of lost bytes.
_BLANK = frozenset("\u115f\u1160\u2800\u3164\uffa0\ufffd")


class ExpressionError(UserError, ValueError):
    """An expression has no word, or is not text."""


def clean(text: str | bytes) -> str:
    """Cleans a text as CLIP does: repairs mojibake, unescapes HTML twice, folds blanks and case.

    Raises:
        ExpressionError: no word is left, or the bytes are not UTF-8.
    """
    words = _decode(text).lstrip()[:_MAX_CHARACTERS]
    # ftfy does not change printable ASCII (except HTML, see below), and importing it is slow.
    if not (words.isascii() and words.isprintable()):
        words = importlib.import_module("ftfy").fix_text(words)
    cleaned = " ".join(html.unescape(html.unescape(words)).split()).lower()
    if not any(_is_visible(character) for character in cleaned):
        raise ExpressionError("an expression has no word or is empty; say what to look for")
    return cleaned


def has_word(text: str | bytes) -> bool:
    """Whether a text has a word, see above; one that is not UTF-8 has none."""
    try:
        clean(text)
    except ExpressionError:
        return False
    return True


def _is_visible(character: str) -> bool:
    return unicodedata.category(character) not in _INVISIBLE and character not in _BLANK


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
