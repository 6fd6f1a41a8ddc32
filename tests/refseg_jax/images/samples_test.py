"""Pictures of more than 8 bits a sample show what a person would see."""

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from refseg_jax.images.decoding import ImageError, decode, decode_pillow
from refseg_jax.images.samples import BY_UNIT, UPPER_HALF, to_levels

RNG = np.random.default_rng(0)
GREY = RNG.integers(0, 256, (20, 30))
GREY[0, 0] = 255
COLOUR = RNG.integers(0, 256, (20, 30, 3))
COLOUR[0, 0] = 255


def _png(samples: np.ndarray, *chunks: tuple[bytes, bytes]) -> bytes:
    """A PNG of 16 bits a sample; Pillow writes none of colours."""
    height, width = samples.shape[:2]
    rows = samples.reshape(height, -1).astype(">u2")
    kind = {1: 0, 2: 4, 3: 2, 4: 6}[samples.size // (height * width)]
    parts = [
        (b"IHDR", struct.pack(">IIBBBBB", width, height, 16, kind, 0, 0, 0)),
        *chunks,
        (b"IDAT", zlib.compress(b"".join(b"\0" + row.tobytes() for row in rows))),
        (b"IEND", b""),
    ]
    body = [
        struct.pack(">I", len(d)) + k + d + struct.pack(">I", zlib.crc32(k + d)) for k, d in parts
    ]
    return b"\x89PNG\r\n\x1a\n" + b"".join(body)


def _tiff(samples: np.ndarray, **tags: float) -> bytes:
    info: dict[int, float] = {int(name[1:]): value for name, value in tags.items()}
    buffer = io.BytesIO()
    Image.fromarray(samples).save(buffer, "TIFF", tiffinfo=info)
    return buffer.getvalue()


def _ppm(samples: np.ndarray, most: int) -> bytes:
    kind = b"P6" if samples.ndim == 3 else b"P5"
    return kind + b"\n30 20\n%d\n" % most + samples.astype(">u2").tobytes()


def _of_bits(levels: np.ndarray, bits: int) -> np.ndarray:
    return np.round(levels * ((1 << bits) - 1) / 255).astype(np.uint16)


def _check(data: bytes, levels: np.ndarray, note: str) -> None:
    found = decode(data, name="x")
    shown = levels if levels.ndim == 3 else levels[..., None]
    assert np.abs(found.pixels.astype(int) - shown).max() <= 0
    assert (note in " ".join(found.notes)) if note else not found.notes


@pytest.mark.parametrize("bits", [8, 10, 12, 14, 16])
@pytest.mark.parametrize("levels", [GREY, COLOUR], ids=["grey", "colour"])
def test_without_a_declaration_the_largest_sample_tells(levels: np.ndarray, bits: int) -> None:
    note = f"as of {bits} bits" if bits < 16 else ""
    samples = _of_bits(levels, bits)
    _check(_png(samples), levels, note)
    _check(_ppm(samples, 65535), levels, note)
    opaque = np.full((*levels.shape[:2], 1), 65535)
    _check(_png(np.dstack([samples, opaque])), levels, note)
    if levels.ndim == 2:
        _check(_tiff(samples), levels, note)
        _check(_tiff(samples.astype(np.int32)), levels, note)
        _check(_tiff(samples.astype(np.float32)), levels, f"as of {bits} bits")


@pytest.mark.parametrize("bits", [10, 12, 14])
@pytest.mark.parametrize("levels", [GREY // 5, COLOUR // 5], ids=["grey", "colour"])
def test_a_declared_depth_holds_for_dark_pictures(levels: np.ndarray, bits: int) -> None:
    samples = _of_bits(levels, bits)
    sbit = (b"sBIT", bytes([bits] * (1 if levels.ndim == 2 else 3)))
    _check(_png(samples, sbit), levels, "")
    # As the PNG specification wants it: scaled up to 16 bits.
    bright = _of_bits(levels * 5, bits)
    _check(_png(bright << 16 - bits | bright >> 2 * bits - 16, sbit), levels * 5, "")
    _check(_ppm(samples, (1 << bits) - 1), levels, "")
    if levels.ndim == 2:
        # MaxSampleValue, which some programs take for the largest sample of the picture.
        for declared in ((1 << bits) - 1, (1 << bits - 1) + 3):
            _check(_tiff(samples, t281=declared), levels, "")
        _check(_tiff(samples.astype(np.float32), t341=float((1 << bits) - 1)), levels, "")


def test_a_declaration_of_all_16_bits_keeps_a_dark_picture_dark() -> None:
    samples = _of_bits(GREY // 20, 16)
    _check(_png(samples, (b"sBIT", b"\x10")), GREY // 20, "")
    _check(_tiff(samples, t281=65535), GREY // 20, "")


def test_fractions_are_0_to_1() -> None:
    fractions = (GREY / 255).astype(np.float32)
    _check(_tiff(fractions), GREY, BY_UNIT)
    overshot = fractions.copy()
    overshot[0, 0], overshot[0, 1] = 1.04, -0.01
    found = decode(_tiff(overshot), name="x").pixels
    assert found[0, 0, 0] == 255 and found[0, 1, 0] == 0
    np.testing.assert_array_equal(found[1:, :, 0], GREY[1:])


def test_white_is_zero_where_the_file_says_so() -> None:
    for samples in (_of_bits(GREY, 12), (GREY / 255).astype(np.float32)):
        found = decode(_tiff(samples, t262=0), name="x").pixels[..., 0]
        np.testing.assert_array_equal(found, 255 - GREY)


def test_what_is_no_number_is_black() -> None:
    values = np.array([[np.nan, 0.0, 1.0, 0.5]], np.float32)
    assert decode(_tiff(values), name="x").pixels[0, :, 0].tolist() == [0, 0, 255, 128]


@pytest.mark.parametrize(
    ("values", "range_"),
    [([-3.0, 1.0], "-3 to 1"), ([0.0, 1e6], "0 to 1e+06"), ([-500, 900], "-500 to 900")],
)
def test_a_range_that_cannot_be_told_is_one_line(values: list[float], range_: str) -> None:
    kind = np.float32 if isinstance(values[0], float) else np.int32
    with pytest.raises(ImageError) as caught:
        decode(_tiff(np.array([values], kind)), name="a.tif")
    assert str(caught.value) == f"a.tif: its samples are {range_}; save it with 8 bits"


def test_black_pictures_are_black() -> None:
    for data in (_png(GREY * 0), _png(COLOUR * 0), _tiff((GREY * 0).astype(np.float32))):
        found = decode(data, name="x")
        assert not found.pixels.any() and not found.notes


def test_dark_colours_of_16_bits_count_twice() -> None:
    data = _png(_of_bits(COLOUR, 12))
    assert decode(data, name="x", max_pixels=1200).pixels.max() == 255
    with pytest.raises(ImageError, match=r"x: 30 x 20 dark pixels of 16 bits a colour count twice"):
        decode(data, name="x", max_pixels=1199)


def test_an_opened_image_is_read_as_its_file() -> None:
    for data in (_png(_of_bits(COLOUR, 12)), _ppm(_of_bits(COLOUR // 9, 12), 4095)):
        with Image.open(io.BytesIO(data)) as image:
            found, expected = decode_pillow(image), decode(data, name="x")
        np.testing.assert_array_equal(found.pixels, expected.pixels)
        assert found.notes == expected.notes


def test_without_the_file_colours_have_lost_the_lower_bits() -> None:
    with Image.open(io.BytesIO(_png(_of_bits(COLOUR, 12)))) as image:
        assert to_levels(image, b"", 1000).note == UPPER_HALF


def test_a_kind_of_tiff_that_is_not_read_is_said() -> None:
    data = bytearray(_tiff(GREY.astype(np.float32)))
    place = data.find(struct.pack("<HHII", 262, 3, 1, 1))
    data[place + 8] = 2  # Colours of floats.
    with pytest.raises(
        ImageError, match=r"a\.tif: a damaged TIFF, or one of a kind that is not read"
    ):
        decode(bytes(data), name="a.tif")


def test_a_truncated_ppm_is_refused() -> None:
    with pytest.raises(ImageError, match="truncated"):
        decode(_ppm(_of_bits(COLOUR, 12), 4095)[:-1], name="x")
