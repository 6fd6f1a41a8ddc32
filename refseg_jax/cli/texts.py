"""The texts of a command line, and what is said of them."""

import sys
from collections.abc import Sequence
from pathlib import Path

from refseg_jax.errors import UserError, escaped
from refseg_jax.images.files import read_file
from refseg_jax.text.cleaning import has_word
from refseg_jax.text.encoding import EncodingError, lines_of_any


def read_texts(file: Path) -> list[str]:
    """The texts of a file, one a line; a warning names the first line without a word.

    Raises:
        UserError: the file cannot be read, or no line has a word.
    """
    try:
        lines = lines_of_any(read_file(file))
    except OSError as error:
        raise UserError(f"{file}: {error.strerror}; check --texts") from None
    except EncodingError as error:
        raise UserError(f"{file}: {error}") from None
    blank = [number for number, line in enumerate(lines, 1) if not has_word(line)]
    skipped = set(blank)
    texts = [line.strip() for number, line in enumerate(lines, 1) if number not in skipped]
    if not texts:
        raise UserError(f"{file}: no line has a word; write one text a line")
    if blank:
        more = f" and {len(blank) - 1} more" if len(blank) > 1 else ""
        print(f"warning: {escaped(str(file))}:{blank[0]}{more}: no word, skipped", file=sys.stderr)
    return texts


def warn_of_cut(texts: Sequence[str]) -> None:
    """Prints a warning if there are texts that are longer than what the model reads."""
    if texts:
        more = f" and {len(texts) - 1} more" if len(texts) > 1 else ""
        are = "are longer than what the model reads" if more else "is longer than what it reads"
        print(
            f"warning: --text={texts[0][:60]!r} ...{more} {are} (config.data.context_length); the end "
            "is left out",
            file=sys.stderr,
        )
