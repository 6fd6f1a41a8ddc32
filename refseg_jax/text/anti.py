"""Anti-expressions: an expression behind a token that negates it (GRSer, section 3.1)."""

import numpy as np

from refseg_jax.errors import UserError


def anti_text(text: np.ndarray, text_valid: np.ndarray, prefix: int) -> np.ndarray:
    """The token ids of anti-expressions: those of the expressions, with a prefix behind the first token.

    Of a text that fills all L positions, the last word is cut: the first and the last token (SOS and
    EOS, or CLS and SEP) stay. So an anti-expression is valid at one position more than its expression,
    but at most at all L. An empty text has an empty anti-expression.

    Args:
        text: i32 `[..., L]`, ids as a `Tokenizer` gives them, zero-padded.
        text_valid: bool `[..., L]`, true from the first to the last token.
        prefix: id of the prefix, see `refseg_jax.text.tokenizers.prefix_id`.

    Returns:
        i32 `[..., L]`, zero-padded.

    Raises:
        UserError: L is less than 3, which has no room for the prefix.
    """
    length = text.shape[-1]
    check_anti_length(length)
    count = text_valid.sum(-1, keepdims=True)
    end = np.take_along_axis(text, np.maximum(count - 1, 0), -1)
    prefixes = np.full_like(text[..., :1], prefix)
    shifted = np.concatenate([text[..., :1], prefixes, text[..., 1:-1]], -1)
    place, last = np.arange(length), np.minimum(count, length - 1)
    found = np.where(place == last, end, np.where(place < last, shifted, 0))
    return np.where(count > 0, found, 0).astype(np.int32)


def check_anti_length(context_length: int) -> None:
    """Checks that a text has room for its first token, a prefix and its last token.

    Raises:
        UserError: `context_length` is less than 3.
    """
    if context_length < 3:
        raise UserError(
            f"config.data.context_length={context_length} has no room for the prefix of "
            "anti-expressions; set it to 4 or more"
        )
