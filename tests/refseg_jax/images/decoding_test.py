"""Decoding of good, bad and turned files."""

import io
import struct
import zlib
from collections.abc import Callable

import numpy as np
import pytest
from PIL import Image, ImageOps

from input_pipeline.schema import Record
from input_pipeline.transforms import Decode, Example, Frame
from refseg_jax.images.decoding import (
    AS_STORED,
    FIRST,
    TURNED,
    ImageError,
    decode,
    decode_image,
    decode_pillow,
    image_notes,
)

RNG = np.random.default_rng(0)
NOISE = RNG.integers(0, 256, (40, 60, 3), np.uint8)


def _encode(pixels: np.ndarray | Image.Image, kind: str, **options: object) -> bytes:
    image = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def _smooth() -> np.ndarray:
    y, x = np.mgrid[:48, :64]
    return np.stack([2 * x + y, 3 * y, 255 - 2 * x - 2 * y], -1).clip(0, 255).astype(np.uint8)


def _png_header(width: int, height: int) -> bytes:
    """A sound PNG header and no pixels: whoever decodes before checking the size fails otherwise."""

    def chunk(name: bytes, body: bytes) -> bytes:
        return (
            struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))
        )

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", b"") + chunk(b"IEND", b"")


def _jpeg_claiming(width: int, height: int) -> bytes:
    data = bytearray(_encode(NOISE, "JPEG"))
    frame = data.index(b"\xff\xc0")
    data[frame + 5 : frame + 9] = struct.pack(">HH", height, width)
    return bytes(data)


def _refusal(data: bytes, **options: int) -> str:
    """The message; it must be one line that begins with the name."""
    with pytest.raises(ImageError) as caught:
        decode_image(data, name="cats/7.jpg", **options)
    message = str(caught.value)
    assert message.startswith("cats/7.jpg: ")
    assert "\n" not in message
    return message


@pytest.mark.parametrize("kind", ["PNG", "BMP", "WEBP", "TIFF"])
def test_lossless_files_give_their_pixels(kind: str) -> None:
    options = {"lossless": True} if kind == "WEBP" else {}
    np.testing.assert_array_equal(decode_image(_encode(NOISE, kind, **options), name=kind), NOISE)


def test_a_jpeg_is_rgb_and_close_to_its_original() -> None:
    found = decode_image(_encode(_smooth(), "JPEG", quality=95), name="x")
    assert found.dtype == np.uint8
    assert np.abs(found.astype(int) - _smooth()).mean() < 3


def test_other_modes_become_rgb() -> None:
    grey = NOISE[..., 0]
    expected = np.repeat(grey[..., None], 3, 2)
    alpha = np.dstack([NOISE, RNG.integers(0, 256, grey.shape, np.uint8)])
    palette = Image.fromarray(grey // 4, "L").convert("P")
    for found, wanted in [
        (_encode(grey, "PNG"), expected),
        (_encode(np.dstack([grey, alpha[..., 3]]), "PNG"), expected),
        (_encode(alpha, "PNG"), NOISE),
        (_encode(palette, "PNG"), expected // 4),
        (_encode(palette, "PNG", transparency=bytes(range(64))), expected // 4),
        (_encode(Image.fromarray(grey > 127), "PNG"), (expected > 127) * np.uint8(255)),
    ]:
        np.testing.assert_array_equal(decode_image(found, name="x"), wanted)
    for mode in ("L", "CMYK"):
        image = Image.fromarray(_smooth()).convert(mode)
        found = decode_image(_encode(image, "JPEG", quality=95), name="x").astype(int)
        assert np.abs(found - np.asarray(image.convert("RGB"))).mean() < 3


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "BMP", "GIF", "WEBP"])
@pytest.mark.parametrize("share", [0.1, 0.5, 0.95])
def test_a_truncated_file_is_refused(kind: str, share: float) -> None:
    data = _encode(NOISE, kind)
    assert "replace the file" in _refusal(data[: int(share * len(data))])


def test_a_jpeg_without_its_last_two_bytes_is_refused() -> None:
    assert "replace" in _refusal(_encode(NOISE, "JPEG")[:-2])


@pytest.mark.parametrize("seed", range(10))
def test_a_jpeg_with_rotten_bits_is_refused(seed: int) -> None:
    data = bytearray(_encode(NOISE, "JPEG"))
    rng = np.random.default_rng(seed)
    for place in rng.integers(data.index(b"\xff\xda") + 14, len(data) - 2, 30):
        data[place] ^= 1 << int(rng.integers(8))
    assert "damaged" in _refusal(bytes(data))


def test_any_single_flipped_bit_of_a_jpeg_gives_pixels_or_a_refusal() -> None:
    data = _encode(_smooth(), "JPEG")
    refused = 0
    for place in range(0, 8 * len(data), 37):
        rotten = bytearray(data)
        rotten[place // 8] ^= 1 << place % 8
        try:
            found = decode_image(bytes(rotten), name="x")
        except ImageError:
            refused += 1
        else:
            assert (found.dtype, found.ndim, found.shape[2]) == (np.uint8, 3, 3)
    assert refused


def test_any_single_flipped_bit_of_png_pixels_is_noticed() -> None:
    data = _encode(NOISE, "PNG")
    body = data.index(b"IDAT") + 4
    for place in range(8 * body, 8 * (len(data) - 16), 5003):
        rotten = bytearray(data)
        rotten[place // 8] ^= 1 << place % 8
        _refusal(bytes(rotten))


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "the file is empty"),
        (b"hello, world", "no known format"),
        (b"<html><body>404</body></html>", "a web page is not read here; download the picture"),
        (b"\xff\xd8", "damaged"),
        (b"\xff\xd8\xff" + bytes(1000), "damaged"),
        (_png_header(0, 5), "damaged"),
    ],
)
def test_what_is_no_image_is_refused(data: bytes, reason: str) -> None:
    assert reason in _refusal(data)


@pytest.mark.parametrize(
    ("make", "side"),
    [
        (_png_header, 7_500),
        (_png_header, 10_000),  # Pillow warns.
        (_png_header, 50_000),  # Pillow raises.
        (_jpeg_claiming, 60_000),
    ],
)
def test_a_bomb_is_known_by_its_header(make: Callable[[int, int], bytes], side: int) -> None:
    message = _refusal(make(side, side))
    assert "pixels" in message
    assert message.endswith("scale the image down") or message.endswith("scale it down")


def test_the_bound_of_pixels_is_inclusive() -> None:
    for kind in ("PNG", "JPEG"):
        data = _encode(NOISE, kind)
        assert decode_image(data, name="x", max_pixels=2400).shape == (40, 60, 3)
        assert "60 x 40 pixels" in _refusal(data, max_pixels=2399)


def test_an_image_of_another_size_than_its_masks_is_refused() -> None:
    record = Record(_encode(NOISE, "PNG"), "7", "7.png", 60, 40, "pool/a", (), ())
    example = Example("0", (Frame(record, ()),), ())
    with pytest.raises(ImageError, match=r"7\.png.*60 x 40, its masks are 40 x 60") as caught:
        Decode()(example, np.random.default_rng(0))
    assert "\n" not in str(caught.value)


def test_a_format_that_runs_programs_is_not_opened():
    buffer = io.BytesIO()
    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(buffer, "EPS")
    with pytest.raises(ImageError, match=r"x\.eps: PostScript is not read here"):
        decode_image(buffer.getvalue(), name="x.eps")


def _flagged(kind: str, flag: int) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = flag
    options = {"JPEG": {"quality": 95}, "WEBP": {"lossless": True}}.get(kind, {})
    return _encode(_smooth(), kind, exif=exif, **options)


@pytest.mark.parametrize("flag", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_a_picture_is_turned_as_a_person_sees_it(kind: str, flag: int) -> None:
    data = _flagged(kind, flag)
    with Image.open(io.BytesIO(data)) as image:
        seen = np.asarray(ImageOps.exif_transpose(image).convert("RGB")).astype(int)
    found = decode(data, name="x")
    assert found.pixels.flags["C_CONTIGUOUS"]
    assert found.pixels.shape == seen.shape
    assert np.abs(found.pixels - seen).max() <= (3 if kind == "JPEG" else 0)
    assert found.turned == (flag > 1)
    assert image_notes(data, annotated=seen.shape[:2], name="x") == (TURNED,) * (flag > 1)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("flag", [3, 6])
def test_the_size_of_the_masks_decides_where_it_tells(kind: str, flag: int) -> None:
    stored, data = decode_image(_flagged(kind, 1), name="x"), _flagged(kind, flag)
    found = decode(data, name="x", annotated=(48, 64))
    notes = image_notes(data, annotated=(48, 64), name="x")
    if flag == 6:
        np.testing.assert_array_equal(found.pixels, stored)
        assert not found.turned
        assert notes == found.notes == (AS_STORED,)
        stored = np.rot90(stored, -1)
    else:
        stored = np.rot90(stored, 2)
        assert notes == (TURNED,)
    for annotated in (None, stored.shape[:2], (7, 7)):
        np.testing.assert_array_equal(decode_image(data, name="x", annotated=annotated), stored)


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "TIFF"])
def test_an_opened_image_is_turned_once(kind: str) -> None:
    data = _flagged(kind, 6)
    seen = np.rot90(_smooth(), -1)
    image = Image.open(io.BytesIO(data))
    opened = [image, image.convert("RGB"), ImageOps.exif_transpose(image), Image.fromarray(seen)]
    for turn in opened:
        np.testing.assert_array_equal(decode_pillow(turn).pixels, seen)


@pytest.mark.parametrize(
    "exif",
    [
        b"",
        b"II*\0\xff\xff\xff\xff",
        b"MM\0*\0\0\0\x08\xff\xff\x01\x12\0\x07",
        b"II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0\x09\0\0\0",
        b"x" * 40,
    ],
)
def test_damaged_exif_is_no_flag(exif: bytes) -> None:
    body = b"Exif\0\0" + exif
    marker = b"\xff\xe1" + struct.pack(">H", len(body) + 2) + body
    data = _encode(_smooth(), "JPEG", quality=95)
    damaged = data[:2] + marker + data[2:]
    np.testing.assert_array_equal(decode_image(damaged, name="x"), decode_image(data, name="x"))
    assert image_notes(damaged, annotated=(48, 64), name="x") == ()


def test_the_training_decodes_an_image_in_the_place_of_its_masks() -> None:
    data = _flagged("JPEG", 6)
    for size in ((48, 64), (64, 48)):
        record = Record(data, "7", "7.jpg", *size, "pool/a", (), ())
        example = Decode()(Example("0", (Frame(record, ()),), ()), np.random.default_rng(0))
        image = example.frames[0].image
        assert image is not None and image.shape[:2] == size


@pytest.mark.parametrize("kind", ["GIF", "TIFF", "PNG", "WEBP"])
def test_of_several_frames_the_first_is_read_and_that_is_told(kind: str) -> None:
    frames = [Image.fromarray(NOISE // 128 * 255), Image.fromarray(255 - NOISE // 128 * 255)]
    options = {"lossless": True} if kind == "WEBP" else {}
    data = _encode(frames[0], kind, save_all=True, append_images=frames[1:], **options)
    found = decode(data, name="x")
    np.testing.assert_array_equal(found.pixels, NOISE // 128 * 255)
    assert found.notes == image_notes(data, annotated=(40, 60), name="x") == (FIRST,)
    alone = _encode(frames[0], kind, **options)
    assert decode(alone, name="x").notes == image_notes(alone, annotated=(40, 60), name="x") == ()
