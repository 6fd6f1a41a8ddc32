"""Formats by content, and what is said of those that are not read here."""

import io
import sys

import numpy as np
import pytest
from PIL import Image, features

from refseg_jax.images import orientation
from refseg_jax.images.decoding import (
    ImageError,
    UnreadError,
    decode,
    decode_image,
    image_notes,
    seen_size,
)
from refseg_jax.images.kinds import HEAD, has_suffix, kind_of

PIXELS = np.zeros((32, 48, 3), np.uint8)
PIXELS[:16, :24] = (255, 0, 0)
PIXELS[16:, 24:] = (0, 0, 255)

#: Beginnings of real files.
UNREAD = {
    "JPEG 2000": b"\0\0\0\x0cjP  \r\n\x87\n\0\0\0\x14ftypjp2 ",
    "JPEG XL": b"\0\0\0\x0cJXL \r\n\x87\n",
    "a Photoshop file": b"8BPS\0\x01",
    "a GIMP file": b"gimp xcf v011",
    "an icon": b"\0\0\1\0\2\0\x10\x10",
    "QOI": b"qoif\0\0\0\x01",
    "DDS": b"DDS \x7c\0\0\0",
    "OpenEXR": b"\x76\x2f\x31\x01\2\0\0\0",
    "Radiance HDR": b"#?RADIANCE\n",
    "DICOM": bytes(128) + b"DICM",
    "FITS": b"SIMPLE  =                    T",
    "PostScript": b"%!PS-Adobe-3.0 EPSF-3.0",
    "SVG": b'<?xml version="1.0"?>\n<!-- drawn -->\n<svg xmlns="x">',
    "a camera's raw file": b"II*\0\x10\0\0\0CR\2\0",
    "HEIF of another codec than HEVC and AV1": b"\0\0\0\x14ftypmif1\0\0\0\0jpeg",
}


def _encoded(kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(PIXELS).save(buffer, kind, **options)
    return buffer.getvalue()


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM"])
def test_what_is_read_is_told_by_its_beginning(kind: str) -> None:
    data = _encoded(kind)
    found = kind_of(data[:HEAD])
    assert found is not None and found.reader == kind
    assert decode_image(data, name="x").shape == PIXELS.shape


@pytest.mark.parametrize(("name", "data"), UNREAD.items())
def test_what_is_not_read_is_not_called_damaged(name: str, data: bytes) -> None:
    for read in (lambda: decode_image(data + bytes(500), name="a.jpg"), lambda: seen_size(data)):
        with pytest.raises(UnreadError) as error:
            read()
        said = str(error.value)
        assert f"{name} is not read here; save it as PNG or JPEG" in said
        assert "damaged" not in said and "\n" not in said


@pytest.mark.parametrize(
    "data",
    [b"", b"BMW and other cars", b"P5 pages of notes", b"GIF89", b"{}", bytes(64), b"SIMPLE words"],
)
def test_other_files_are_of_no_kind(data: bytes) -> None:
    assert kind_of(data) is None


@pytest.mark.parametrize(
    ("kind", "brand", "module", "cure"),
    [
        ("HEIC", b"heic", "pillow_heif", "pip install 'refseg_jax[heif]', or save it as JPEG"),
        ("AVIF", b"avif", "PIL.AvifImagePlugin", "install Pillow 11.3 or newer"),
    ],
)
def test_where_the_reader_is_not_installed_the_cure_is_named(
    kind: str, brand: bytes, module: str, cure: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    for brands in (brand + bytes(4), b"mif1" + bytes(4) + b"mif1" + brand):
        data = (len(brands) + 8).to_bytes(4, "big") + b"ftyp" + brands + bytes(200)
        with pytest.raises(UnreadError, match=f"^a.jpg: {kind} is not read here; ") as error:
            decode_image(data, name="a.jpg")
        assert cure in str(error.value)


@pytest.mark.parametrize("kind", ["AVIF", "HEIF"])
def test_pictures_of_phones_are_read_as_they_are_seen(kind: str) -> None:
    if kind == "HEIF":
        pytest.importorskip("pillow_heif").register_heif_opener()
    elif "avif" not in features.modules or not features.check("avif"):
        pytest.skip("this Pillow reads no AVIF")
    for flag in range(1, 9):
        exif = Image.Exif()
        exif[orientation.TAG] = flag
        data = _encoded(kind, exif=exif.tobytes(), quality=95)
        seen = orientation.turn(PIXELS, flag)
        found = decode(data, name="x")
        assert found.pixels.shape == seen.shape
        # A picture that is turned wrongly differs by 85; encoders blur the colours at the edges.
        assert np.abs(found.pixels.astype(int) - seen).mean() < 20
        assert seen_size(data) == seen.shape[:2]
        assert not image_notes(data, annotated=seen.shape[:2], name="x")[found.turned :]
    # Without EXIF.
    assert decode_image(_encoded(kind, quality=95), name="x").shape == PIXELS.shape
    with pytest.raises(ImageError, match=r"a damaged .*, or one of a kind that is not read"):
        decode_image(data[:200], name="x")


def test_a_tiff_that_begins_with_a_preview_is_not_read_as_the_preview() -> None:
    data = _encoded("TIFF", tiffinfo={254: 1})
    with pytest.raises(UnreadError, match=r"begins with a preview of 48 x 32 is not read here"):
        decode_image(data, name="a.dng")
    assert decode_image(_encoded("TIFF", tiffinfo={254: 0}), name="x").shape == PIXELS.shape


def test_suffixes_of_pictures() -> None:
    assert all(
        map(has_suffix, ["a.jpg", "b/A.JPEG", "c.jfif", "d.HEIC", "e.tiff", "f.pgm", "g.jpe"])
    )
    assert not any(map(has_suffix, ["jpg", ".jpg", "a.jpg.txt", "a.json", "a.pdf", "a"]))
