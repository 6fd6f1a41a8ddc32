"""Checks the checksums of TIFF files, of which libtiff reads over those of zlib.

libtiff stops to decompress before the Adler-32 at the end of a strip or tile. TIFFs with another
compression have no checksums.

Source: TIFF 6.0, sections 3 (fill order, strips) and 15 (tiles); Adobe's TIFF Technical Note 1995-03-22
(Deflate).
"""

import zlib
from collections.abc import Sequence
from typing import Any

from PIL import Image

_COMPRESSION, _FILL_ORDER = 259, 266
#: Offsets and sizes of strips, and of tiles.
_PLACES = ((273, 279), (324, 325))
#: Values of `_COMPRESSION` that mean zlib.
_DEFLATE = (8, 32946)

#: Bytes that are decompressed at a time, and the most of them all: no sample has more than 8 bytes, and
#: tiles may be larger than a small image.
_PIECE, _MOST, _TILES = 1 << 12, 32, 1 << 26

#: Byte -> the byte of its bits in the opposite order.
_TURNED = bytes(int(f"{value:08b}"[::-1], 2) for value in range(256))


class TiffError(ValueError):
    """The reason why a TIFF is damaged."""


def check_tiff(image: Image.Image, data: bytes) -> None:
    """Checks the Adler-32 of each strip or tile of the first page.

    Args:
        image: the opened image, whose pixels need not be read yet. Other formats than TIFF, and TIFFs
            with another compression, pass.
        data: content of its file.

    Raises:
        TiffError: a checksum is wrong, or a strip or tile is truncated.
    """
    tags: Any = getattr(image, "tag_v2", None) if image.format == "TIFF" else None
    if tags is None or tags.get(_COMPRESSION) not in _DEFLATE:
        return
    left = _MOST * image.width * image.height + _TILES
    for offsets, sizes in _PLACES:
        both = zip(_numbers(tags.get(offsets)), _numbers(tags.get(sizes)), strict=False)
        for offset, size in both:
            part = data[offset : offset + size]
            if tags.get(_FILL_ORDER) == 2:
                part = part.translate(_TURNED)
            left = _inflate(memoryview(part), left)


def _inflate(part: memoryview, left: int) -> int:
    """Decompresses a strip; returns how many bytes all others may still have."""
    # A strip without bytes has no pixels, of which all are black.
    machine = zlib.decompressobj()
    for start in range(0, len(part), _PIECE):
        try:
            left -= len(machine.decompress(part[start : start + _PIECE]))
        except zlib.error as error:
            raise TiffError(f"its compressed pixels are damaged: {error}") from None
        if left < 0:
            raise TiffError("it has more pixels than its size")
        if machine.eof:
            return left
    if part:
        raise TiffError("its pixels are truncated")
    return left


def _numbers(value: Any) -> Sequence[int]:
    if value is None:
        return ()
    return value if isinstance(value, tuple) else (value,)
