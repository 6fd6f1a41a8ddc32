"""Flipped bits in files that carry checksums: found, or they change nothing."""

import gzip
import io
import lzma
import random
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from input_pipeline.formats.archives import ArchiveError, extract
from input_pipeline.formats.mask_files import read_mask
from refseg_jax.images.decoding import ImageError, decode_image
from tests.fuzz.values import flipped
from tests.input_pipeline.formats.archive_streams_test import SMALL
from tests.input_pipeline.formats.archives_test import files_of_tar, read_folder, write, zip_bytes

pytestmark = pytest.mark.slow

DISC = np.hypot(*(np.mgrid[:60, :80] - np.array([30, 40])[:, None, None])) < 20


def _bytes(image: Image.Image, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


PNGS = {
    "1": _bytes(Image.fromarray(DISC), "PNG"),
    "L": _bytes(Image.fromarray(np.uint8(255 * DISC)), "PNG"),
    "P": _bytes(Image.fromarray(np.uint8(255 * DISC)).convert("P"), "PNG"),
    "LA": _bytes(Image.fromarray(np.dstack([np.uint8(255 * DISC)] * 2), "LA"), "PNG"),
    "RGB": _bytes(Image.fromarray(np.dstack([np.uint8(255 * DISC)] * 3)), "PNG"),
}


@pytest.mark.parametrize("kind", PNGS)
def test_png(kind: str) -> None:
    data, rng = PNGS[kind], random.Random(5)
    image, mask = decode_image(data, name="a"), read_mask(data, name="a").region
    found = 0
    for _ in range(60_000):
        damaged = flipped(data, rng)
        try:
            np.testing.assert_array_equal(decode_image(damaged, name="a"), image)
            np.testing.assert_array_equal(read_mask(damaged, name="a").region, mask)
        except ImageError as error:
            assert "\n" not in str(error)
            found += 1
    assert found > 50_000


def test_tiff_of_zlib() -> None:
    """Its tags carry no checksum, its pixels do."""
    image = Image.fromarray(np.uint8(255 * DISC))
    data, rng = _bytes(image, "TIFF", compression="tiff_adobe_deflate"), random.Random(6)
    with Image.open(io.BytesIO(data)) as opened:
        tags = opened.tag_v2  # pyright: ignore[reportAttributeAccessIssue]
        (offset,), (size,) = tags[273], tags[279]
    pixels, found = decode_image(data, name="a"), 0
    for _ in range(60_000):
        damaged = bytearray(data)
        for _ in range(rng.randint(1, 3)):
            damaged[offset + rng.randrange(size)] ^= 1 << rng.randrange(8)
        try:
            np.testing.assert_array_equal(decode_image(bytes(damaged), name="a"), pixels)
        except ImageError:
            found += 1
    assert found > 50_000


ARCHIVES = {
    "stored.zip": zip_bytes(*SMALL.items(), method=0),
    "packed.zip": zip_bytes(*SMALL.items()),
    "a.tar.gz": gzip.compress(files_of_tar(SMALL)),
    "a.tar.xz": lzma.compress(files_of_tar(SMALL)),
}


@pytest.mark.parametrize("name", ARCHIVES)
def test_archives(name: str, tmp_path: Path) -> None:
    data, rng = ARCHIVES[name], random.Random(7)
    found = 0
    for _ in range(4000):
        damaged = bytearray(data)
        damaged[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        archive = write(tmp_path, name, bytes(damaged))
        try:
            extract(archive, tmp_path / "out")
        except ArchiveError as error:
            assert "\n" not in str(error)
            assert not list(tmp_path.glob("out*"))
            found += 1
        else:
            assert read_folder(tmp_path / "out") == SMALL
            shutil.rmtree(tmp_path / "out")
    assert found > 1500
