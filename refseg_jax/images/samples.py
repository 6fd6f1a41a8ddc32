"""Samples of any depth become 8 bits: what an opened picture shows.

Cameras, scanners and microscopes store 8, 10, 12 or 14 bits in samples of 16, and tools store floats of
0 to 1. Divided by the largest number that their samples can hold, such pictures are black. The white of
a picture is therefore what the file declares (`declared_white`). Without a declaration, its depth is the
smallest of 8, 10, 12, 14 and 16 bits that has room for its largest sample, and a note says so.
"""

import struct
from collections.abc import Iterator
from typing import Any, NamedTuple

import cv2
import numpy as np
from PIL import Image

#: Depths that a picture without a declaration can have.
_BITS = (8, 10, 12, 14, 16)
#: The largest sample of a float picture of 0 to 1; resampling overshoots a little.
_UNIT = 1.5
#: A sample may lie this share of the range below zero, as resampling makes them.
_BELOW = 0.02

#: Pixels that are converted at a time, so that no second copy of a large picture is needed.
_STRIP = 1 << 20

#: Tags of TIFF.
_BITS_PER_SAMPLE, _PHOTOMETRIC, _MAX_SAMPLE, _SMAX_SAMPLE = 258, 262, 281, 341

#: Notes about a picture.
_BY_RANGE = "pictures of more than 8 bits a sample, read as of {} bits by their largest sample"
BY_UNIT = "pictures of floats, read as 0 to 1 by their largest sample"
UPPER_HALF = "dark pictures of 16 bits a colour, of which Pillow keeps 8; give the files"


class DepthError(ValueError):
    """Samples whose range cannot be told; the message has the reason and the cure."""


class Levels(NamedTuple):
    """What a picture shows.

    Attributes:
        pixels: u8 `[H, W]` (grey) or `[H, W, 3]` (RGB).
        note: how its depth was found, for a report; `""` where nothing had to be guessed.
    """

    pixels: np.ndarray
    note: str


def is_deep(image: Image.Image) -> bool:
    """Whether a grey picture has samples of 16 bits, of 32 bits or floats."""
    return image.mode.startswith("I") or image.mode == "F"


def is_inverted(image: Image.Image) -> bool:
    """Whether the samples of a deep picture are white at zero, which Pillow does not undo."""
    return is_deep(image) and _tags(image).get(_PHOTOMETRIC) == 0


def to_levels(image: Image.Image, data: bytes, max_pixels: int) -> Levels:
    """The 8-bit levels of a picture; alpha is dropped.

    Args:
        image: the opened image, before its pixels are loaded.
        data: content of its file, or `b""`.
        max_pixels: bound on height times width. Dark colours of 16 bits count twice.

    Raises:
        DepthError: the range of its samples cannot be told.
    """
    white = declared_white(image, data)
    tile = _tile(image)
    if data and tile is not None and tile[0] == "ppm":
        return _ppm(data, tile, image.mode)
    if is_deep(image):
        return _grey(image, white)
    # Pillow forgets the stored form when it loads the pixels.
    colours_of_16_bits = _has_colours_of_16_bits(image)
    pixels = _rgb(image)
    if colours_of_16_bits and pixels.max(initial=0) < 1 << 6:
        # Pillow keeps the upper 8 bits, which do not suffice where at most 14 are used.
        return _dark_colours(pixels, data, white, max_pixels)
    return Levels(pixels, "")


def declared_white(image: Image.Image, data: bytes) -> float | None:
    """The sample that a file declares to be white, for samples of more than 8 bits.

    These count: the chunk sBIT of a PNG; the tags BitsPerSample (9 to 15), MaxSampleValue and
    SMaxSampleValue of a TIFF; the largest value of a PPM, to which Pillow scales it (see `_ppm`).

    Args:
        image: the opened image, before its pixels are loaded.
        data: content of its file, or `b""`.

    Returns:
        The declared sample, or `None`.
    """
    if image.format == "PNG":
        bits = _significant_bits(data)
        return None if bits is None else float((1 << bits) - 1)
    if image.format == "PPM":
        settings = _settings(image)
        return 65535.0 if len(settings) == 2 and settings[1] < 65535 else None
    tags = _tags(image)
    stored = _largest(tags.get(_BITS_PER_SAMPLE))
    if 8 < stored < 16:
        return float((1 << int(stored)) - 1)
    most = _largest(tags.get(_SMAX_SAMPLE if image.mode == "F" else _MAX_SAMPLE))
    if stored < 16 or not 0 < most < 1 << 32:
        return None
    # Some programs declare the largest sample of the picture itself, hence whole bits.
    bits = min(max(int(most).bit_length(), 8), int(stored))
    return 1.0 if most <= _UNIT else float((1 << bits) - 1)


def strips(image: Image.Image) -> Iterator[tuple[int, Image.Image]]:
    """Yields (first row, strip) of an image, each of a million pixels or one row."""
    rows = max(_STRIP // image.width, 1)
    if rows >= image.height:
        yield 0, image
        return
    for top in range(0, image.height, rows):
        yield top, image.crop((0, top, image.width, min(top + rows, image.height)))


def _rgb(image: Image.Image) -> np.ndarray:
    pixels = np.empty((image.height, image.width, 3), np.uint8)
    for top, strip in strips(image):
        # Pillow warns if a palette with transparency is converted to RGB directly.
        clear = strip.mode == "P" and "transparency" in strip.info
        part = strip.convert("RGBA").convert("RGB") if clear else strip.convert("RGB")
        pixels[top : top + strip.height] = np.asarray(part)
    return pixels


def _grey(image: Image.Image, declared: float | None) -> Levels:
    inverted = is_inverted(image)
    low, high = _extremes(image)
    white, note = _white_of(low, high, declared, floats=image.mode == "F")
    table = _scaled(np.arange(1 << 16), white) if image.mode.startswith("I;16") else None
    pixels = np.empty((image.height, image.width), np.uint8)
    for top, strip in strips(image):
        samples = np.asarray(strip)
        levels = _scaled(samples, white) if table is None else table[samples]
        pixels[top : top + strip.height] = 255 - levels if inverted else levels
    return Levels(pixels, note)


def _scaled(samples: np.ndarray, white: float) -> np.ndarray:
    """Samples of 0 to `white` as u8; others are clipped, and what is no number is 0."""
    levels = np.nan_to_num(samples * (255.0 / np.float64(white)), copy=False, posinf=255.0)
    return levels.round(out=levels).clip(0, 255).astype(np.uint8)


def _extremes(image: Image.Image) -> tuple[float, float]:
    """The smallest and the largest sample; those that are no number do not count."""
    found = [0.0]
    for _, strip in strips(image):
        samples = np.asarray(strip)
        finite = samples[np.isfinite(samples)] if samples.dtype.kind == "f" else samples
        if finite.size:
            found += [float(finite.min()), float(finite.max())]
    return min(found), max(found)


def _white_of(low: float, high: float, declared: float | None, floats: bool) -> tuple[float, str]:
    """The sample that is white, and a note; `low` and `high` are the extremes (0 included)."""
    if declared is not None:
        # The PNG specification wants fewer bits to be scaled up to 16. Not all writers do it.
        white, note = declared if high <= declared or floats else 65535.0, ""
    elif floats and high <= _UNIT:
        white, note = 1.0, BY_UNIT
    else:
        bits = next((bits for bits in _BITS if high < 1 << bits), 16)
        white, note = float((1 << bits) - 1), _BY_RANGE.format(bits)
        if bits == 16 and not floats:
            note = ""
    if low < -_BELOW * white or high > max(white, 65535.0):
        raise DepthError(f"its samples are {low:g} to {high:g}; save it with 8 bits")
    return white, note if high > 0 else ""


def _dark_colours(
    upper: np.ndarray, data: bytes, declared: float | None, max_pixels: int
) -> Levels:
    """Colours of 16 bits that use at most 14; `upper` has their upper 8 bits, u8 `[H, W, 3]`."""
    height, width, _ = upper.shape
    if not data:
        return Levels(upper, UPPER_HALF)
    if 2 * height * width > max_pixels:
        raise DepthError(
            f"{width} x {height} dark pixels of 16 bits a colour count twice, and {max_pixels} are "
            "allowed; save it with 8 bits"
        )
    read: Any = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    if read is None or read.dtype != np.uint16 or read.shape[:2] != (height, width):
        raise DepthError("its colours of 16 bits cannot be read; save it with 8 bits")
    samples = read[..., 2::-1]
    white, note = _white_of(0.0, float(samples.max()), declared, floats=False)
    table = _scaled(np.arange(1 << 16), white)
    # Rows replace those of `upper`, after a check that both decoders read the same picture.
    for row, levels in zip(samples, upper, strict=True):
        if not np.array_equal(row >> 8, levels):
            raise DepthError("its colours of 16 bits cannot be read; save it with 8 bits")
        levels[:] = table[row]
    return Levels(upper, note)


def _ppm(data: bytes, tile: Any, mode: str) -> Levels:
    """A PPM whose largest value is not that of its samples, which Pillow reads value by value."""
    (_, _, width, height), offset, (_, most) = tile[1:]
    shape = (height, width, 3 if mode == "RGB" else 1)
    kind = np.dtype(">u2" if most > 255 else np.uint8)
    number = shape[0] * shape[1] * shape[2]
    if len(data) - offset < number * kind.itemsize:
        raise ValueError("it is truncated")
    samples = np.frombuffer(data, kind, number, offset).reshape(shape)
    declared = None if most == 65535 else float(most)
    white, note = _white_of(0.0, float(samples.max(initial=0)), declared, floats=False)
    table = _scaled(np.arange(1 << 16), white)
    pixels = np.empty(shape, np.uint8)
    for row, levels in zip(samples, pixels, strict=True):
        levels[:] = table[row]
    return Levels(pixels[..., 0] if shape[2] == 1 else pixels, note)


def _has_colours_of_16_bits(image: Image.Image) -> bool:
    settings = _settings(image)
    return bool(settings) and ";16" in str(settings[0])


def _settings(image: Image.Image) -> tuple[Any, ...]:
    """The settings of Pillow's decoder; first the form of the samples. Empty once they are loaded."""
    tile = _tile(image)
    found = () if tile is None else tile[3]
    return found if isinstance(found, tuple) else (found,)


def _tile(image: Image.Image) -> Any:
    """Pillow's (decoder, box, offset, settings) of pixels that are not loaded yet, else `None`."""
    tiles: Any = getattr(image, "tile", None)
    return tiles[0] if tiles else None


def _tags(image: Image.Image) -> Any:
    return getattr(image, "tag_v2", {}) if image.format == "TIFF" else {}


def _largest(value: Any) -> float:
    """The largest number of a tag; 0 for what is none."""
    numbers = value if isinstance(value, tuple) else (value,)
    return max((float(n) for n in numbers if isinstance(n, int | float)), default=0.0)


def _significant_bits(data: bytes) -> int | None:
    """The depth of grey or of the colours in the chunk sBIT of a PNG of 16 bits."""
    at = 8
    while at + 12 <= len(data):
        (length,) = struct.unpack_from(">I", data, at)
        kind, body = data[at + 4 : at + 8], data[at + 8 : at + 8 + length]
        if kind == b"IDAT" or (kind == b"IHDR" and body[8:9] != b"\x10"):
            break
        if kind == b"sBIT" and body:
            # Grey and RGB may have alpha behind them.
            return min(max(8, *body[: 3 if length > 2 else 1]), 16)
        at += 12 + length
    return None
