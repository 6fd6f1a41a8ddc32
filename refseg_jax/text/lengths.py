"""Counts the tokens of texts: those longer than the context are cut, and lose their last words."""

from refseg_jax.text.cleaning import ExpressionError
from refseg_jax.text.tokenizers import Tokenizer

#: Context lengths in use: UniRES and CRIS (17), ReLA and LAVT (20), all positions of CLIP (77).
USUAL = (17, 20, 77)
#: A cleaned text has fewer tokens: at most four for each of its characters.
_LONGEST = 8192


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
