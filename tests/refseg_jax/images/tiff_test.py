import io
import random
import zlib

import numpy as np
import pytest
from PIL import Image

from refseg_jax.images.tiff import TiffError, check_tiff

RNG = np.random.default_rng(0)
DISC = np.hypot(*(np.mgrid[:120, :160] - np.array([60, 80])[:, None, None])) < 40
KINDS = {
    "1": Image.fromarray(DISC),
    "L": Image.fromarray(np.uint8(255 * DISC)),
    "P": Image.fromarray(np.uint8(DISC), "P"),
    "RGB": Image.fromarray(RNG.integers(0, 256, (120, 160, 3), np.uint8)),
    "RGBA": Image.fromarray(RNG.integers(0, 256, (12, 16, 4), np.uint8)),
    "I;16": Image.fromarray(RNG.integers(0, 65536, (30, 40)).astype(np.uint16)),
    "F": Image.fromarray(RNG.random((30, 40)).astype(np.float32)),
    "large": Image.fromarray(RNG.integers(0, 9, (900, 1200), np.uint8)),
}


def tiff(image: Image.Image, compression: str | None = "tiff_adobe_deflate") -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "TIFF", compression=compression)
    return buffer.getvalue()


def check(data: bytes) -> None:
    with Image.open(io.BytesIO(data)) as image:
        check_tiff(image, data)


def strips(data: bytes) -> list[tuple[int, int]]:
    with Image.open(io.BytesIO(data)) as image:
        tags = image.tag_v2  # pyright: ignore[reportAttributeAccessIssue]
        return list(zip(tags[273], tags[279], strict=True))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "compression", ["tiff_adobe_deflate", "tiff_deflate", "tiff_lzw", "packbits", None]
)
def test_sound_files_pass(kind: str, compression: str | None):
    check(tiff(KINDS[kind], compression))


def test_other_formats_are_no_concern_of_it():
    for kind in ("PNG", "GIF", "JPEG"):
        buffer = io.BytesIO()
        KINDS["L"].save(buffer, kind)
        check(buffer.getvalue())


@pytest.mark.parametrize("kind", KINDS)
def test_every_flipped_bit_of_the_pixels_is_found(kind: str):
    data, draw = tiff(KINDS[kind]), random.Random(0)
    places = strips(data)
    assert kind != "large" or len(places) > 1
    unseen = 0
    for _ in range(200):
        offset, size = draw.choice(places)
        bit = draw.randrange(8 * size)
        damaged = bytearray(data)
        damaged[offset + bit // 8] ^= 1 << bit % 8
        try:
            check(bytes(damaged))
        except TiffError:
            continue
        # A bit between the last block and the checksum has no meaning.
        part = damaged[offset : offset + size]
        assert zlib.decompress(part) == zlib.decompress(data[offset : offset + size])
        unseen += 1
    assert unseen < 20


def test_a_truncated_strip():
    data = tiff(KINDS["L"])
    ((_, size),) = strips(data)
    field = size.to_bytes(4, "little")
    for less in (1, 4, 5, size - 1):
        damaged = data.replace(field, (size - less).to_bytes(4, "little"))
        assert damaged != data
        with pytest.raises(TiffError, match="truncated"):
            check(damaged)


def test_bits_in_the_opposite_order():
    data = bytearray(tiff(KINDS["1"]))
    ((offset, size),) = strips(bytes(data))
    turned = bytes(int(f"{value:08b}"[::-1], 2) for value in range(256))
    data[offset : offset + size] = data[offset : offset + size].translate(turned)
    with Image.open(io.BytesIO(bytes(data))) as image:
        image.tag_v2[266] = 2  # pyright: ignore[reportAttributeAccessIssue]
        check_tiff(image, bytes(data))
        data[offset + size - 1] ^= 1
        with pytest.raises(TiffError, match="incorrect data check"):
            check_tiff(image, bytes(data))


def test_more_pixels_than_its_size():
    data, bomb = tiff(KINDS["L"]), zlib.compress(bytes(100 << 20))
    with Image.open(io.BytesIO(data)) as image:
        tags = image.tag_v2  # pyright: ignore[reportAttributeAccessIssue]
        tags[273], tags[279] = (len(data),), (len(bomb),)
        with pytest.raises(TiffError, match="more pixels"):
            check_tiff(image, data + bomb)
