"""Checks the checksums of PNG files, which Pillow reads over.

Pillow compares the CRC of the chunks before the pixels only. It skips those of the chunks with the
pixels (IDAT) and behind them, and stops to decompress before zlib's Adler-32. A flipped bit in a mask is
therefore often read as another mask.

Source: the PNG specification (W3C, third edition), sections 5.3 (CRC), 8.1 (interlacing) and 10
(compression).
"""

import struct
import zlib

_SIGNATURE = b"\x89PNG\r\n\x1a\n"

#: Bytes that are decompressed at a time. zlib makes at most 1032 times as many of them.
_PIECE = 1 << 12
#: Bytes that may follow the pixels in their stream. Decoders ignore them.
_EXCESS = 1 << 20

#: Colour type -> number of samples of a pixel.
_SAMPLES = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}
#: The passes of an interlaced image: first column and row, and steps across and down.
_ADAM7 = (
    (0, 0, 8, 8),
    (4, 0, 8, 8),
    (0, 4, 4, 8),
    (2, 0, 4, 4),
    (0, 2, 2, 4),
    (1, 0, 2, 2),
    (0, 1, 1, 2),
)


class PngError(ValueError):
    """The reason why a PNG is damaged."""


def check_png(data: bytes) -> None:
    """Checks the CRC of every chunk, and the length and the Adler-32 of the compressed pixels.

    The image is decompressed in pieces that are thrown away, so that no memory for its size is needed.
    It takes as long as its size needs: compare that with a bound first.

    Args:
        data: content of the file. Bytes behind the last chunk (IEND) are ignored. A file that does
            not begin like a PNG passes, so that the images of all formats can be given.

    Raises:
        PngError: a checksum is wrong, the file is truncated, or the compressed pixels are fewer or more
            than the size of the image needs.
    """
    if not data.startswith(_SIGNATURE):
        return
    view, at = memoryview(data), len(_SIGNATURE)
    wanted, pixels = -1, _Pixels()
    while True:
        if at + 12 > len(data):
            raise PngError("it is truncated")
        (length,) = struct.unpack_from(">I", data, at)
        kind, body = bytes(view[at + 4 : at + 8]), view[at + 8 : at + 8 + length]
        if at + 12 + length > len(data):
            raise PngError("it is truncated")
        (stated,) = struct.unpack_from(">I", data, at + 8 + length)
        if zlib.crc32(body, zlib.crc32(kind)) != stated:
            raise PngError(f"the checksum of its chunk {kind.decode('ascii', 'replace')} is wrong")
        if wanted < 0:
            wanted = _size_of_pixels(kind, body)
        if kind == b"IDAT":
            pixels.add(body, wanted)
        if kind == b"IEND":
            break
        at += 12 + length
    if not pixels.ended or pixels.size < wanted:
        raise PngError("its pixels are truncated")


class _Pixels:
    """Decompresses the pixels of a PNG and counts their bytes."""

    def __init__(self) -> None:
        self._machine = zlib.decompressobj()
        self.size = 0

    @property
    def ended(self) -> bool:
        """Whether the stream has ended; its Adler-32 was right then."""
        return self._machine.eof

    def add(self, body: memoryview, wanted: int) -> None:
        """Takes the content of an IDAT chunk; `wanted` is the number of bytes of the whole image."""
        for start in range(0, len(body), _PIECE):
            if self.ended:
                return
            try:
                self.size += len(self._machine.decompress(body[start : start + _PIECE]))
            except zlib.error as error:
                raise PngError(f"its compressed pixels are damaged: {error}") from None
            if self.size > wanted + _EXCESS:
                raise PngError("it has more pixels than its size")


def _size_of_pixels(kind: bytes, header: memoryview) -> int:
    """Number of bytes of the decompressed pixels: each row has a byte for its filter before it."""
    if kind != b"IHDR" or len(header) != 13:
        raise PngError("it does not begin with a header")
    width, height, bits, colour, _, _, interlaced = struct.unpack(">IIBBBBB", header)
    if colour not in _SAMPLES or bits not in (1, 2, 4, 8, 16):
        raise PngError(f"its header states colours of the type {colour} of {bits} bits")
    total = 0
    for left, top, across, down in _ADAM7 if interlaced else ((0, 0, 1, 1),):
        columns, rows = -(-(width - left) // across), -(-(height - top) // down)
        if columns > 0 and rows > 0:
            total += rows * (1 + -(-columns * _SAMPLES[colour] * bits // 8))
    return total
