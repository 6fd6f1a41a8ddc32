"""What a stranger may ask of the server."""

import dataclasses
from collections.abc import Sequence

from refseg_jax.errors import UserError, shown
from refseg_jax.images.decoding import seen_size


class TooLargeError(UserError):
    """A request beyond a limit of size."""


@dataclasses.dataclass(frozen=True)
class Limits:
    """Bounds of one request, which together bound the memory of the server.

    Attributes:
        megabytes: of the file of a picture, in 2^20 bytes.
        pixels: height times width of a picture; read from its header, before it is decoded.
        expressions: of a request.
        characters: of an expression.
        pictures: of a group.
        waiting: requests that are read or wait for the model at a time; others are sent away.
        cached_megabytes: pictures, features and probabilities that all users of the page together keep
            for their next question; those of the user who was not there for longest go first.
    """

    megabytes: int = 10
    pixels: int = 16_000_000
    expressions: int = 32
    characters: int = 300
    pictures: int = 16
    waiting: int = 64
    cached_megabytes: int = 1024

    def __post_init__(self) -> None:
        """Checks the range.

        Raises:
            UserError: a bound is less than 1.
        """
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if value < 1:
                raise UserError(f"limits: {field.name}={value}: give at least 1")

    @property
    def file_bytes(self) -> int:
        """Of a picture."""
        return self.megabytes * 2**20

    @property
    def body_bytes(self) -> int:
        """Of a request: a picture in base64, and the rest."""
        text = 6 * self.expressions * self.characters
        return -(-self.file_bytes // 3) * 4 + text + 2**16

    def check_picture(self, data: bytes, name: str) -> None:
        """Checks an encoded picture without decoding it.

        Raises:
            TooLargeError: it has too many bytes or pixels.
        """
        if len(data) > self.file_bytes:
            raise TooLargeError(
                f"{shown(name)}: {len(data):,} bytes are more than the allowed {self.megabytes} MB; "
                "scale the picture down"
            )
        try:
            height, width = seen_size(data)
        except Exception:
            # The decoder says what is wrong with it.
            return
        if height * width > self.pixels:
            raise TooLargeError(
                f"{shown(name)}: {width} x {height} pixels are more than the allowed "
                f"{self.pixels:,}; scale the picture down"
            )

    def check_expressions(self, texts: Sequence[str], most: int | None = None) -> None:
        """Checks the expressions of a request.

        Args:
            texts: the expressions.
            most: how many, if fewer than `expressions`.

        Raises:
            UserError: there is none, one is empty, there are too many, or one is too long.
        """
        bound = min(most or self.expressions, self.expressions)
        if not texts:
            raise UserError("expressions: there is none; give at least one")
        if len(texts) > bound:
            raise UserError(f"expressions: {len(texts)} are more than the allowed {bound}")
        for number, text in enumerate(texts):
            if not text.strip():
                raise UserError(f"expressions[{number}]: is empty")
            if len(text) > self.characters:
                raise UserError(
                    f"expressions[{number}]: {len(text)} characters are more than the allowed "
                    f"{self.characters}"
                )
            if not is_text(text):
                raise UserError(f"expressions[{number}]: has half a character (a lone surrogate)")


def is_text(text: str) -> bool:
    """Whether a text can be sent: JSON may name halves of characters."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
