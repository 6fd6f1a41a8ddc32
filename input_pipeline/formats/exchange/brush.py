"""Decodes the masks of Label Studio's brush.

They are four channels of 8 bits in rows, packed by thi.ng/rle-pack: a stream of bits, the highest of a
byte first. It has the number of words (32 bits), the bits of a word less 1 (5 bits), and four sizes less
1 (4 bits each). Then come blocks: a bit that tells a run from a list, two bits that choose one of the
sizes, the number of words less 1 in so many bits, and the word of the run or the words of the list
(`label_studio_converter/brush.py` of HumanSignal/label-studio-converter). The last channel is the mask.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np


class BrushError(ValueError):
    """A mask of the brush is malformed."""


def decode_brush(packed: Any, height: int, width: int) -> np.ndarray:
    """Decodes a mask.

    Args:
        packed: the bytes as a list of integers, `value.rle`.
        height, width: size of the picture in pixels, `original_height` and `original_width`.

    Returns:
        The mask, bool `[height, width]`: where the last channel is not 0.

    Raises:
        BrushError: the bytes are no such stream, or of a picture of another size.
    """
    sound = isinstance(packed, Sequence) and not isinstance(packed, str)
    if not sound or not all(type(byte) is int and 0 <= byte <= 255 for byte in packed):
        raise BrushError("the mask is no list of bytes")
    stream = _Stream(bytes(packed))
    number = stream.take(32)
    if number != 4 * height * width:
        raise BrushError(
            f"the mask has {number} values, and a picture of {width} x {height} pixels has "
            f"{4 * height * width}"
        )
    bits = stream.take(5) + 1
    sizes = [stream.take(4) + 1 for _ in range(4)]
    values = np.empty(number, np.uint32)
    at = 0
    while at < number:
        is_run = stream.take(1)
        end = at + 1 + stream.take(sizes[stream.take(2)])
        if end > number:
            raise BrushError("the mask has more values than its picture")
        values[at:end] = stream.take(bits) if is_run else stream.words(end - at, bits)
        at = end
    return values.reshape(height, width, 4)[..., 3] > 0


class _Stream:
    def __init__(self, data: bytes) -> None:
        self._bits = np.unpackbits(np.frombuffer(data, np.uint8))
        # A stream has thousands of small numbers: Python reads one in less time than numpy.
        self._digits = (self._bits + ord("0")).tobytes().decode("ascii")
        self._at = 0

    def take(self, number: int) -> int:
        """The next bits as a number."""
        return int(self._digits[self._passed(number) : self._at], 2)

    def words(self, count: int, bits: int) -> np.ndarray:
        """The next numbers of `bits` bits each, i64 `[count]`."""
        parts = self._bits[self._passed(count * bits) : self._at].reshape(count, bits)
        return parts @ (1 << np.arange(bits - 1, -1, -1, dtype=np.int64))

    def _passed(self, number: int) -> int:
        """Passes over some bits; returns where they begin."""
        start = self._at
        self._at += number
        if self._at > len(self._digits):
            raise BrushError("the mask is cut off")
        return start
