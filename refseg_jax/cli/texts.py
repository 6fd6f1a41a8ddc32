"""The texts of a command line, and what is said of them."""

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from refseg_jax.errors import UserError, escaped
from refseg_jax.images.files import read_file
from refseg_jax.text.cleaning import has_word
from refseg_jax.text.encoding import EncodingError, check_start, is_blank, json_of, lines_of_any


def read_texts(file: Path) -> list[str]:
    """The texts of a file, one a line; a warning names the first line without a word.

    Raises:
        UserError: the file cannot be read, or no line has a word.
    """
    try:
        lines = lines_of_any(read_file(file))
    except OSError as error:
        raise UserError(f"{file}: {error.strerror}; check --expressions") from None
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


def read_pairs(file: Path) -> dict[str, list[str]]:
    """The pairs of a file of JSON lines: name of a picture -> its expressions, each once, in order.

    A line is an object with `image` and `expression`. Other fields are not read: a dataset of one's own
    or a `predictions.jsonl` will do.

    Raises:
        UserError: the file cannot be read, or a line is no pair.
    """
    found: dict[str, list[str]] = {}
    for number, image, text in _pairs_of(file):
        if not has_word(text):
            raise UserError(f"{file}:{number}: 'expression' has no word; leave the line out")
        of_image = found.setdefault(image, [])
        if text not in of_image:
            of_image.append(text)
    if not found:
        raise UserError(f"{file}: has no line; write one pair of image and expression a line")
    return found


def _pairs_of(file: Path) -> Iterator[tuple[int, str, str]]:
    try:
        data = read_file(file)
        check_start(data)
    except OSError as error:
        raise UserError(f"{file}: {error.strerror}; check --expressions") from None
    except EncodingError as error:
        raise UserError(f"{file}: {error}") from None
    for number, line in enumerate(data.split(b"\n"), 1):
        if is_blank(line):
            continue
        try:
            fields = json_of(line)
            image, text = fields["image"], fields["expression"]
            if not (isinstance(image, str) and isinstance(text, str)):
                raise TypeError
        except (ValueError, KeyError, TypeError, RecursionError):
            raise UserError(
                f'{file}:{number}: not {{"image": NAME, "expression": TEXT}}; write one pair a line'
            ) from None
        yield number, image, text.strip()


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
