"""Turns pictures as a person sees them, by the orientation flag of EXIF.

Cameras store the pixels as the sensor has them and a flag (1 to 8) that tells viewers how to turn them.
The flag of EXIF counts, in every format; orientations in XMP or in text chunks do not, as in browsers.

Source: Exif 2.3 (JEITA CP-3451C), section 4.6.4, tag `Orientation`.
"""

import struct

import numpy as np

#: The tag, in EXIF and in TIFF.
TAG = 0x0112

#: Flag -> the flag that undoes it; the others undo themselves.
_INVERSE = {6: 8, 8: 6}

_HEADER = b"Exif\0\0"
_BYTE_ORDERS = {b"II*\0": "<", b"MM\0*": ">"}
#: Types of an EXIF value: 16 bits, 32 bits.
_SHORT, _LONG = 3, 4


def jpeg_orientation(data: bytes) -> int:
    """The flag of a JPEG, 1 to 8; 1 (as stored) if it has none or a damaged one."""
    at = 2
    while at + 4 <= len(data) and data[at] == 0xFF:
        marker = data[at + 1]
        if marker == 0xFF:  # Padding.
            at += 1
            continue
        if marker in (0xD9, 0xDA):  # The end, or the pixels.
            break
        length = int.from_bytes(data[at + 2 : at + 4], "big")
        body = data[at + 4 : at + 2 + length]
        if marker == 0xE1 and body.startswith(_HEADER):
            return exif_orientation(body)
        at += 2 + length
    return 1


def exif_orientation(exif: bytes) -> int:
    """The flag of an EXIF block, 1 to 8; 1 (as stored) if it has none or a damaged one."""
    block = exif.removeprefix(_HEADER)
    order = _BYTE_ORDERS.get(block[:4])
    if order is None:
        return 1
    try:
        (start,) = struct.unpack_from(f"{order}I", block, 4)
        (number,) = struct.unpack_from(f"{order}H", block, start)
        for entry in range(start + 2, start + 2 + 12 * number, 12):
            tag, kind = struct.unpack_from(f"{order}HH", block, entry)
            if tag == TAG:
                form = {_SHORT: "H", _LONG: "I"}[kind]
                (flag,) = struct.unpack_from(order + form, block, entry + 8)
                return flag if 1 <= flag <= 8 else 1
    except (struct.error, KeyError):
        pass
    return 1


def turned_size(height: int, width: int, flag: int) -> tuple[int, int]:
    """Height and width of a picture after it is turned."""
    return (width, height) if flag >= 5 else (height, width)


def is_followed(flag: int, stored: tuple[int, int], annotated: tuple[int, int] | None) -> bool:
    """Whether to turn a picture: always, unless its annotations fit the stored pixels alone.

    Many annotation tools and most public code read the stored pixels, so a published dataset may have
    masks of their size. Where both sizes are the same (a square, a mirror, half a turn), the size does
    not tell, and the picture is turned.

    Args:
        flag: 1 to 8.
        stored: height and width of the stored pixels.
        annotated: height and width of the masks; `None` if there are none.
    """
    return annotated != stored or annotated == turned_size(*stored, flag)


def turn(pixels: np.ndarray, flag: int) -> np.ndarray:
    """Turns stored pixels `[H, W, ...]` as a person sees them; the array is contiguous."""
    if flag == 1:
        return pixels
    if flag >= 5:
        pixels = pixels.swapaxes(0, 1)
    # 5 is the transposed picture, 6 a quarter turn to the right, 7 the picture transposed along the
    # other diagonal, 8 a quarter turn to the left.
    if flag in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    if flag in (3, 4, 7, 8):
        pixels = pixels[::-1]
    return np.ascontiguousarray(pixels)


def turn_back(pixels: np.ndarray, flag: int) -> np.ndarray:
    """The inverse of `turn`."""
    return turn(pixels, _INVERSE.get(flag, flag))
