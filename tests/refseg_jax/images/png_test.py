import io
import random
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, PngImagePlugin

from input_pipeline.formats.mask_files import read_mask
from refseg_jax.images.decoding import ImageError, decode_image, decode_pillow
from refseg_jax.images.png import PngError, check_png

RNG = np.random.default_rng(0)


#: The pass of each pixel of a square of 8 x 8 (section 8.1 of the specification).
ADAM7 = (
    *("16462646", "77777777", "56565656", "77777777"),
    *("36463646", "77777777", "56565656", "77777777"),
)


def png(pixels: np.ndarray | Image.Image, **options: Any) -> bytes:
    image = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)
    buffer = io.BytesIO()
    image.save(buffer, "PNG", **options)
    return buffer.getvalue()


def chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def by_hand(
    width: int, height: int, raw: bytes, *, bits: int = 8, colour: int = 0, interlaced: int = 0
) -> bytes:
    """A PNG of filtered rows."""
    header = struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, interlaced)
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(raw)), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(kind, body) for kind, body in chunks)


DISC = np.hypot(*(np.mgrid[:60, :80] - np.array([30, 40])[:, None, None])) < 20
TEXT = PngImagePlugin.PngInfo()
TEXT.add(b"tEXt", b"Author\0nobody", after_idat=True)
SOUND = {
    "1": png(Image.fromarray(DISC)),
    "L": png(np.uint8(255 * DISC)),
    "P": png(Image.fromarray(np.uint8(DISC), "L").convert("P")),
    "P1": png(Image.fromarray(np.uint8(DISC), "P"), bits=1),
    "LA": png(Image.fromarray(RNG.integers(0, 256, (7, 5, 2), np.uint8), "LA")),
    "RGB": png(RNG.integers(0, 256, (50, 33, 3), np.uint8)),
    "RGBA": png(RNG.integers(0, 256, (50, 33, 4), np.uint8)),
    "I;16": png(RNG.integers(0, 65536, (9, 11)).astype(np.uint16)),
    "text behind": png(np.uint8(DISC), pnginfo=TEXT),
    "several IDAT": png(RNG.integers(0, 256, (300, 300, 3), np.uint8)),
    "animated": png(
        Image.new("L", (5, 5), 1),
        save_all=True,
        append_images=[Image.new("L", (5, 5), 9)],
    ),
    "one pixel": png(np.zeros((1, 1), np.uint8)),
}


@pytest.mark.parametrize("kind", SOUND)
def test_sound_files_pass(kind: str):
    check_png(SOUND[kind])
    check_png(SOUND[kind] + b"bytes behind the end")


def test_other_formats_are_no_concern_of_it():
    for data in (b"", b"\xff\xd8\xff\xe0", b"GIF89a", b"\x89PN"):
        check_png(data)


@pytest.mark.parametrize("size", [(1, 1), (3, 2), (4, 5), (8, 8), (17, 9), (5, 1)])
@pytest.mark.parametrize(("colour", "bits"), [(0, 1), (0, 8), (2, 16), (3, 2)])
def test_interlaced_files_are_measured_as_pillow_reads_them(
    size: tuple[int, int], colour: int, bits: int
):
    width, height = size
    samples = {0: 1, 2: 3, 3: 1}[colour]
    raw = b""
    for number in "1234567":
        for y in range(height):
            across = sum(ADAM7[y % 8][x % 8] == number for x in range(width))
            raw += bytes((across > 0) + -(-across * samples * bits // 8))
    data = by_hand(width, height, raw, colour=colour, bits=bits, interlaced=1)
    if colour == 3:
        end = data.index(b"IDAT") - 4
        data = data[:end] + chunk(b"PLTE", bytes(12)) + data[end:]
    check_png(data)
    with Image.open(io.BytesIO(data)) as image:
        image.load()
    lacking = by_hand(width, height, raw[:-1], colour=colour, bits=bits, interlaced=1)
    with pytest.raises(PngError, match="truncated"):
        check_png(lacking)


@pytest.mark.parametrize("kind", SOUND)
def test_every_flipped_bit_and_every_cut_is_found(kind: str):
    data, rng = SOUND[kind], random.Random(0)
    # The first 8 bytes are what makes it a PNG, and Pillow refuses it without them.
    bits = range(64, 8 * len(data))
    for bit in rng.sample(bits, min(len(bits), 1500)):
        damaged = bytearray(data)
        damaged[bit // 8] ^= 1 << (bit % 8)
        with pytest.raises(PngError):
            check_png(bytes(damaged))
    for end in rng.sample(range(8, len(data)), min(len(data) - 8, 200)):
        with pytest.raises(PngError):
            check_png(data[:end])


def test_chunks_whose_checksums_are_right_around_damaged_pixels():
    raw = bytes(6 * (1 + 4))
    sound, packed = by_hand(4, 6, raw), zlib.compress(raw)
    check_png(sound)
    for damaged in (
        packed[:-1],
        packed[:-4] + b"abcd",
        packed[:4],
        zlib.compress(raw[:-1]),
        zlib.compress(raw + bytes(2 << 20)),
        b"",
    ):
        with pytest.raises(PngError, match="pixels"):
            check_png(sound.replace(chunk(b"IDAT", packed), chunk(b"IDAT", damaged)))
    excess = zlib.compress(raw + b"more") + b"and more"
    check_png(sound.replace(chunk(b"IDAT", packed), chunk(b"IDAT", excess)))


@pytest.mark.parametrize(
    "header",
    [
        b"",
        struct.pack(">IIBBBBB", 4, 6, 8, 5, 0, 0, 0),
        struct.pack(">IIBBBBB", 4, 6, 9, 0, 0, 0, 0),
    ],
)
def test_a_header_that_no_png_has(header: bytes):
    with pytest.raises(PngError, match="header"):
        check_png(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IEND", b""))


def test_an_image_of_no_pixels_is_not_inflated_beyond_its_size():
    bomb = by_hand(4, 6, bytes(100 << 20))
    assert len(bomb) < 1 << 18
    with pytest.raises(PngError, match="more pixels"):
        check_png(bomb)


@pytest.mark.parametrize("name", ["pngflip-mask.png", "pngflip-mask1bit.png"])
def test_the_masks_that_were_read_as_other_masks(name: str, shared_data: Path):
    data = (shared_data / "damaged_files" / name).read_bytes()
    with Image.open(io.BytesIO(data)) as image:
        image.load()
    with pytest.raises(PngError):
        check_png(data)


def test_every_sound_png_of_the_samples_passes(shared_data: Path):
    files = [path for path in shared_data.rglob("*.png") if path.parent.name != "damaged_files"]
    files = [path for path in files if not path.name.startswith("._")]
    assert len(files) > 50
    for path in files:
        check_png(path.read_bytes())


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_flipped_pixels_are_found_by_all_readers(kind: str):
    options = {"compression": "tiff_adobe_deflate"} if kind == "TIFF" else {}
    buffer = io.BytesIO()
    Image.fromarray(np.uint8(255 * DISC)).save(buffer, kind, **options)
    sound = buffer.getvalue()
    start, draw, silent = sound.index(b"\x78\x9c"), random.Random(0), 0
    for _ in range(60):
        data = bytearray(sound)
        data[start + 2 + draw.randrange(80)] ^= 1 << draw.randrange(8)
        try:
            silent += bool((np.asarray(Image.open(io.BytesIO(data))) != 255 * DISC).any())
        except Exception:  # Pillow refuses some of them.
            continue
        with pytest.raises(ImageError, match=r"a\.x: the image is damaged"):
            decode_image(bytes(data), name="a.x")
        with pytest.raises(ImageError, match=r"a\.x: the image is damaged"):
            decode_pillow(Image.open(io.BytesIO(data)), name="a.x")
        with pytest.raises(ImageError, match=r"a\.x: the mask is damaged"):
            read_mask(bytes(data), name="a.x")
    assert silent > 2


def test_an_opened_image_is_read_from_where_pillow_is(tmp_path: Path):
    for kind in ("PNG", "TIFF", "GIF"):
        path = tmp_path / f"a.{kind.lower()}"
        Image.fromarray(np.uint8(255 * DISC)).save(path)
        with Image.open(path) as image:
            first = decode_pillow(image).pixels
            again = decode_pillow(image).pixels
        np.testing.assert_array_equal(first, np.repeat(np.uint8(255 * DISC)[..., None], 3, 2))
        np.testing.assert_array_equal(again, first)
