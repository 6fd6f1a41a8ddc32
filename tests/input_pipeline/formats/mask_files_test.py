"""Masks are read as they look, whatever numbers their files store."""

import io
import struct
import zlib
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from PIL import Image

from input_pipeline.formats.mask_files import CORNERS, EVERYTHING, read_mask
from refseg_jax.images.decoding import ImageError

SIZE = (64, 96)
BOX = np.zeros(SIZE, bool)
BOX[14:50, 20:60] = True
HOLE = np.zeros(SIZE, bool)
HOLE[30:40, 30:40] = True


def _file(image: Image.Image | np.ndarray, kind: str = "PNG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    opened = image if isinstance(image, Image.Image) else Image.fromarray(image)
    opened.save(buffer, kind, **options)
    return buffer.getvalue()


def _levels(high: int = 255, low: int = 0, kind: Any = np.uint8) -> np.ndarray:
    return np.where(BOX, high, low).astype(kind)


def _indexed(inside: int, *colours: tuple[int, int, int]) -> Image.Image:
    """An indexed image whose region has the index `inside`, and the rest 1 - `inside`."""
    image = Image.fromarray(np.where(BOX, inside, 1 - inside).astype(np.uint8), "P")
    image.putpalette([value for colour in colours for value in colour])
    return image


def _coloured(inside: tuple[int, int, int], outside: tuple[int, int, int]) -> np.ndarray:
    return np.where(BOX[..., None], inside, outside).astype(np.uint8)


def _cut_out(shown: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    shown = np.repeat(shown[..., None], 3, 2) if shown.ndim == 2 else shown
    return np.dstack([shown, alpha]).astype(np.uint8)


def _photo() -> np.ndarray:
    return np.random.default_rng(0).integers(1, 256, (*SIZE, 3), np.uint8)


def _photo_hole() -> np.ndarray:
    return _cut_out(_photo(), _levels(0, 255))


def _deep_colours(values: np.ndarray) -> bytes:
    rows = np.repeat(values[..., None], 3, 2).reshape(SIZE[0], -1).astype(">u2")
    parts = [
        (b"IHDR", struct.pack(">IIBBBBB", SIZE[1], SIZE[0], 16, 2, 0, 0, 0)),
        (b"IDAT", zlib.compress(b"".join(b"\0" + row.tobytes() for row in rows))),
        (b"IEND", b""),
    ]
    body = [
        struct.pack(">I", len(d)) + k + d + struct.pack(">I", zlib.crc32(k + d)) for k, d in parts
    ]
    return b"\x89PNG\r\n\x1a\n" + b"".join(body)


def _turned() -> bytes:
    exif = Image.Exif()
    exif[0x0112] = 8
    return _file(np.rot90(_levels(), -1).copy(), exif=exif)


WHITE, BLACK = (255, 255, 255), (0, 0, 0)

#: Files of which a person says: the white box, or the thing that was cut out.
LOOKS: dict[str, Callable[[], bytes]] = {
    "0 and 255": lambda: _file(_levels()),
    "0 and 1": lambda: _file(_levels(1)),
    "254 and 255": lambda: _file(_levels(255, 254)),
    "8 and 237": lambda: _file(_levels(237, 8)),
    "one bit": lambda: _file(BOX),
    "bmp": lambda: _file(_levels(), "BMP"),
    "bmp of one bit": lambda: _file(BOX, "BMP"),
    "gif": lambda: _file(_levels(), "GIF"),
    "tiff": lambda: _file(_levels(), "TIFF"),
    "tiff of one bit": lambda: _file(BOX, "TIFF"),
    "tiff that is white at zero": lambda: _file(_levels(), "TIFF", tiffinfo={262: 0}),
    "palette, white is 0": lambda: _file(_indexed(0, WHITE, BLACK)),
    "palette, white is 1": lambda: _file(_indexed(1, BLACK, WHITE)),
    "palette of a gif, white is 0": lambda: _file(_indexed(0, WHITE, BLACK), "GIF"),
    "palette of a tiff, white is 0": lambda: _file(_indexed(0, WHITE, BLACK), "TIFF"),
    "palette of a bmp, white is 0": lambda: _file(_indexed(0, WHITE, BLACK), "BMP"),
    "palette of VOC": lambda: _file(_indexed(1, BLACK, (128, 0, 0))),
    "palette that shows nothing": lambda: _file(_indexed(1, BLACK, BLACK)),
    "colour on black": lambda: _file(_coloured((0, 0, 200), BLACK)),
    "viridis": lambda: _file(_coloured((253, 231, 37), (68, 1, 84))),
    "colours of white": lambda: _file(_coloured(WHITE, BLACK)),
    "rgba, opaque": lambda: _file(_cut_out(_levels(), np.full(SIZE, 255))),
    "cut-out of a photo": lambda: _file(_cut_out(_photo(), _levels())),
    "cut-out of white": lambda: _file(_cut_out(np.full(SIZE, 255), _levels())),
    "cut-out of black": lambda: _file(_cut_out(np.zeros(SIZE), _levels())),
    "cut-out of black on hidden white": lambda: _file(_cut_out(_levels(0, 255), _levels())),
    "cut-out on half transparent": lambda: _file(_cut_out(_photo(), _levels(255, 90))),
    "alpha of 0 and 1": lambda: _file(_cut_out(_photo(), _levels(1))),
    "alpha beside brightness": lambda: _file(_cut_out(_levels(), _levels(255, 10))),
    "almost opaque": lambda: _file(_cut_out(_levels(), np.where(HOLE, 253, 255))),
    "grey and alpha": lambda: _file(
        Image.fromarray(np.dstack([np.full(SIZE, 255, np.uint8), _levels()]), "LA")
    ),
    "transparent index": lambda: _file(_indexed(1, WHITE, WHITE), transparency=0),
    "transparent level": lambda: _file(_levels(200, 7), transparency=7),
    "transparent index of a gif": lambda: _file(
        _indexed(1, (9, 9, 9), WHITE), "GIF", transparency=0
    ),
    "16 bits": lambda: _file(_levels(65535, 0, np.uint16)),
    "1 in 16 bits": lambda: _file(_levels(1, 0, np.uint16)),
    "neighbours in 16 bits": lambda: _file(_levels(1001, 1000, np.uint16)),
    "1 in colours of 16 bits": lambda: _deep_colours(_levels(1, 0, np.uint16)),
    "255 in colours of 16 bits": lambda: _deep_colours(_levels(255, 0, np.uint16)),
    "32 bits": lambda: _file(_levels(7, 2, np.int32), "TIFF"),
    "floats": lambda: _file(_levels(1, 0, np.float32), "TIFF"),
    "small floats": lambda: _file((BOX * 1e-3).astype(np.float32), "TIFF"),
    "16 bits that are white at zero": lambda: _file(
        _levels(0, 65535, np.uint16), "TIFF", tiffinfo={262: 0}
    ),
    "turned by a flag": _turned,
}


@pytest.mark.parametrize("look", LOOKS)
def test_a_mask_is_read_as_it_looks(look: str):
    mask = read_mask(LOOKS[look](), name="m.png")
    np.testing.assert_array_equal(mask.region, BOX)
    assert mask.region.dtype == bool
    assert not mask.notes


def _soft() -> np.ndarray:
    return np.where(HOLE, 90, _levels())


#: Files whose region cannot be told, and what is said.
UNCLEAR: dict[str, tuple[Callable[[], bytes], str]] = {
    "three levels": (
        lambda: _file(_soft()),
        "m.png: shows 3 levels, a mask two; save it black and white, or say from which level on (1 to "
        '255) it counts: --mask_threshold=128 or "threshold": 128 in its line. Of several objects, '
        "write a mask each",
    ),
    "soft alpha": (lambda: _file(_cut_out(_photo(), _soft())), "shows 3 levels, a mask two"),
    "floats": (lambda: _file((_soft() / 255).astype(np.float32), "TIFF"), "shows 3 levels"),
    "objects": (
        lambda: _file(np.dstack([_levels(), _levels(), HOLE * np.uint8(255)])),
        "shows 3 colours, a mask two; save it white on black. Of several objects, write a mask each",
    ),
    "red on white": (
        lambda: _file(_coloured((255, 0, 0), WHITE)),
        "shows two colours, and not which of them is the background; save it white on black",
    ),
    "blue on white": (lambda: _file(_coloured((0, 0, 255), WHITE)), "shows two colours, and not"),
    "red on blue": (lambda: _file(_coloured((180, 4, 38), (59, 76, 192))), "shows two colours"),
    "a rotated mask": (
        lambda: _file(_cut_out(_levels(), np.where(np.eye(*SIZE, 90), 0, 255))),
        "its alpha shows one region and its colours another; save it white on black, without alpha",
    ),
    "below zero": (lambda: _file(_levels(0, -1, np.int32), "TIFF"), "has values below zero"),
    "no number": (
        lambda: _file(np.where(BOX, 1, np.nan).astype(np.float32), "TIFF"),
        "has values below zero or none at all (NaN); save it black and white",
    ),
    "several pictures": (
        lambda: _file(
            Image.fromarray(_levels()),
            "TIFF",
            save_all=True,
            append_images=[Image.fromarray(_levels(0, 255))],
        ),
        "has 2 pictures, a mask is one; save it alone",
    ),
    "jpeg": (lambda: _file(_levels(), "JPEG"), "a JPEG keeps no exact mask; save it as PNG"),
    "jpeg in a tiff": (
        lambda: _file(_levels(), "TIFF", compression="jpeg"),
        "a JPEG keeps no exact mask; save it as PNG",
    ),
    "webp": (
        lambda: _file(_levels(), "WEBP", lossless=True),
        "is WebP, no PNG, BMP, GIF, TIFF, which",
    ),
    "heic": (lambda: b"\0\0\0\x18ftypheic" + bytes(99), "is HEIC, no PNG, BMP, GIF, TIFF, which"),
    "svg": (lambda: b"<svg xmlns='x'></svg>", "is SVG, no PNG, BMP, GIF, TIFF, which keep masks"),
    "empty": (lambda: b"", "damaged, or no PNG"),
    "truncated": (lambda: _file(_photo())[:500], "the mask is damaged ("),
}


@pytest.mark.parametrize("form", UNCLEAR)
def test_what_cannot_be_told_is_one_line(form: str):
    make, said = UNCLEAR[form]
    with pytest.raises(ImageError) as caught:
        read_mask(make(), name="m.png")
    assert said in str(caught.value)
    assert str(caught.value).startswith("m.png: ")
    assert "\n" not in str(caught.value)


def test_a_flipped_bit_is_noticed():
    data = bytearray(_file(_levels()))
    for place in range(data.index(b"IDAT") + 4, len(data) - 16):
        data[place] ^= 4
        with pytest.raises(ImageError, match="the mask is damaged"):
            read_mask(bytes(data), name="m.png")
        data[place] ^= 4


@pytest.mark.parametrize("kind", [np.uint8, np.uint16, np.float32])
@pytest.mark.parametrize("level", [0, 1, 200])
def test_a_mask_of_one_level_is_empty_at_zero_else_everything(level: int, kind: type):
    data = _file(np.full(SIZE, level, kind), "TIFF")
    mask = read_mask(data, name="m.tif")
    assert mask.region.all() == bool(level) == mask.region.any()
    assert mask.notes == ((EVERYTHING,) if level else ())


def test_what_covers_all_corners_is_told():
    for mask in (
        read_mask(_file(_levels(0, 255)), name="m"),
        read_mask(_file(_photo_hole()), name="m"),
    ):
        assert mask.region[0, 0] and not mask.region.all()
        assert mask.notes == (CORNERS,)


def test_of_one_level_white_is_zero_where_the_file_says_so():
    for level, everything in ((0, True), (65535, False)):
        data = _file(np.full(SIZE, level, np.uint16), "TIFF", tiffinfo={262: 0})
        assert read_mask(data, name="m.tif").region.all() == everything


def test_a_depth_that_is_guessed_for_a_threshold_is_told():
    twelve = np.round(_soft() * (4095 / 255)).astype(np.uint16)
    mask = read_mask(_file(twelve), name="m", threshold=90)
    np.testing.assert_array_equal(mask.region, BOX)
    (note,) = mask.notes
    assert "read as of 12 bits by their largest sample" in note


def test_what_is_all_transparent_shows_nothing():
    data = _file(_cut_out(_levels(), np.zeros(SIZE)))
    assert not read_mask(data, name="m.png").region.any()


def test_a_threshold_cuts_what_is_soft():
    for data in (
        _file(_soft()),
        _file(_soft() * np.uint16(257)),
        _file((_soft() / 255).astype(np.float32), "TIFF"),
        _file(_cut_out(_photo(), _soft())),
        _deep_colours(_soft().astype(np.uint16) * 257),
    ):
        low = read_mask(data, name="m.png", threshold=90)
        np.testing.assert_array_equal(low.region, BOX)
        assert low.levels == (0, 90, 255)
        high = read_mask(data, name="m.png", threshold=91)
        np.testing.assert_array_equal(high.region, BOX & ~HOLE)


def test_a_threshold_reads_a_jpeg():
    data = _file(_levels(), "JPEG", quality=95)
    np.testing.assert_array_equal(read_mask(data, name="m", threshold=128).region, BOX)
    with pytest.raises(ImageError, match="a JPEG keeps no exact mask"):
        read_mask(data, name="m", threshold=1)


def test_a_threshold_that_does_not_fit_is_said():
    with pytest.raises(ImageError, match=r"m: holds 0 and 1 instead of 0\.\.255; leave the thr"):
        read_mask(_file(_levels(1)), name="m", threshold=128)
    with pytest.raises(ImageError, match="m: is in colour, such a map is grey; get it"):
        read_mask(_file(_photo()), name="m", threshold=128, cure="get it")


def test_what_is_not_zero():
    for data in (_file(_levels(1)), _file(_coloured((0, 0, 1), BLACK)), _file(_levels(254))):
        mask = read_mask(data, name="m", threshold=1, brightness=True)
        np.testing.assert_array_equal(mask.region, BOX)


def test_of_a_map_of_brightness_alpha_counts_where_brightness_says_nothing():
    grey = np.arange(12, dtype=np.uint8).reshape(3, 4) * 20
    soft = _file(_cut_out(grey, grey // 2))
    assert read_mask(soft, name="m", threshold=1, brightness=True).levels == tuple(grey.ravel())
    for shown in (np.full(SIZE, 255), _photo()):
        data = _file(_cut_out(shown, _levels()))
        mask = read_mask(data, name="m", threshold=128, brightness=True)
        np.testing.assert_array_equal(mask.region, BOX)
