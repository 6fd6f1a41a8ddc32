"""Decodes pictures: the bytes of a file to the pixels that a person sees.

Formats besides JPEG are read by Pillow in strips. A picture takes 3 bytes a pixel. While it is decoded,
it takes at most 8 besides its file, and in a few forms up to 16: WebP, AVIF, HEIC, a TIFF that a flag
turns, dark colours of 16 bits (of which half as many pixels are allowed).
"""

import contextlib
import io
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import simplejpeg
from PIL import Image, UnidentifiedImageError

from refseg_jax.errors import UserError
from refseg_jax.images import orientation
from refseg_jax.images.kinds import kind_of
from refseg_jax.images.png import check_png
from refseg_jax.images.samples import DepthError, to_levels
from refseg_jax.images.tiff import check_tiff

#: Bound on height times width: no dataset has larger images. One such image takes 150 MB, and up to
#: 400 MB (in a few forms 800 MB) while it is decoded.
MAX_PIXELS = 50_000_000

#: Formats besides JPEG, and those that only some environments read. Pillow reads more of them, and runs
#: Ghostscript for one.
_FORMATS = ("PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM")
_OPTIONAL = ("AVIF", "HEIF")

#: Tag of TIFF: bit 0 says that the page is a reduced copy (TIFF 6.0, section 8, `NewSubfileType`).
_SUBFILE = 254

#: Notes about an image.
TURNED = "pictures that an EXIF flag turns, read as a person sees them"
CLEAR = "pictures with transparent pixels, read in the colours that are stored there"
FIRST = "pictures of several frames or pages, of which the first is read"
AS_STORED = (
    "pictures with masks of their stored size alone, read as stored in spite of an EXIF flag"
)


class ImageError(UserError, ValueError):
    """An image that cannot be used."""


class ImageWarning(UserWarning):
    """An image whose pixels had to be guessed, in a way that the message names."""


class UnreadError(ImageError):
    """An image of a known format that is not read here; it need not be damaged."""


class Decoded(NamedTuple):
    """A decoded image.

    Attributes:
        pixels: u8 `[H, W, 3]`, RGB.
        turned: whether an EXIF flag has turned it.
        notes: what a report should say: a depth that was guessed, a flag that is not followed, frames
            that are not read.
    """

    pixels: np.ndarray
    turned: bool
    notes: tuple[str, ...]


def decode_image(
    data: bytes,
    *,
    name: str,
    max_pixels: int = MAX_PIXELS,
    annotated: tuple[int, int] | None = None,
) -> np.ndarray:
    """Decodes the bytes of an image file, as a person sees it.

    The size is read from the header and checked before the pixels are decoded. Truncated files, PNGs
    and TIFFs with a wrong checksum, and JPEGs whose damage the decoder notices are refused; a flipped
    bit that leaves the entropy code of a JPEG valid cannot be noticed.

    The orientation flag of EXIF is followed, in every format. Grey and palette images become RGB, alpha
    is dropped, and samples of more than 8 bits are scaled by their depth
    (`refseg_jax.images.samples`).

    Args:
        data: the bytes of a JPEG, PNG, WebP, BMP, GIF, TIFF or PPM file; of an AVIF or HEIC if this
            environment reads them (`refseg_jax.images.kinds`).
        name: the file or record, for the message.
        max_pixels: bound on height times width.
        annotated: height and width of the image's masks. If only the stored pixels are of this size,
            the flag is not followed (`orientation.is_followed`): masks and pixels belong together.

    Returns:
        u8 `[H, W, 3]`, RGB.

    Raises:
        ImageError: the image is damaged, too large or of another format (`UnreadError`, where that is
            known); one line with the name, the reason and the cure.
    """
    return decode(data, name=name, max_pixels=max_pixels, annotated=annotated).pixels


def decode(
    data: bytes,
    *,
    name: str,
    max_pixels: int = MAX_PIXELS,
    annotated: tuple[int, int] | None = None,
) -> Decoded:
    """As `decode_image`, with notes about the image."""
    with _one_line(name, data):
        if not data:
            raise ValueError("the file is empty")
        if data[:2] == b"\xff\xd8":
            height, width, _, _ = simplejpeg.decode_jpeg_header(data)
            _check_size(int(height), int(width), name, max_pixels)
            pixels = simplejpeg.decode_jpeg(data, colorspace="RGB", strict=True)
            return _seen(pixels, orientation.jpeg_orientation(data), (), annotated)
        # `open` reads only the header.
        with Image.open(io.BytesIO(data), formats=_formats(data, name)) as image:
            _check_size(image.height, image.width, name, max_pixels)
            _check_preview(image, name)
            check_png(data)
            check_tiff(image, data)
            stored = _stored(image, data, max_pixels)
        # Frees Pillow's copy of the pixels.
        del image
        return _seen(*stored, annotated)


def decode_pillow(
    image: Image.Image, *, name: str = "Pillow image", max_pixels: int = MAX_PIXELS
) -> Decoded:
    """The pixels of an opened Pillow image, equal to `decode` of its (lossless) file.

    An EXIF flag that the image still has is followed, also after `convert` or `resize`.
    `ImageOps.exif_transpose` turns an image and removes the flag. Pillow reads lazily, so a damaged file
    may fail only here.

    Args:
        image: the opened image.
        name: the file or record, for the message.
        max_pixels: bound on height times width.

    Raises:
        ImageError: as in `decode_image`.
    """
    with _one_line(name):
        _check_size(image.height, image.width, name, max_pixels)
        return _seen(*_stored(image, _unread(image), max_pixels), None)


def _unread(image: Image.Image) -> bytes:
    """The file of an opened image whose pixels Pillow has not read yet, with sound checksums.

    `b""` if there is none, or if another frame than the first is chosen.
    """
    file: Any = getattr(image, "fp", None)
    if image.format not in ("PNG", "TIFF", "PPM") or file is None or not file.seekable():
        return b""
    at = file.tell()
    file.seek(0)
    data = file.read()
    # Pillow goes on from where it was.
    file.seek(at)
    check_png(data)
    check_tiff(image, data)
    return b"" if image.tell() else data


def seen_size(data: bytes) -> tuple[int, int]:
    """Height and width of an image as a person sees it, from its header.

    Raises:
        Exception: a decoder cannot read the header; of any type.
    """
    if data[:2] == b"\xff\xd8":
        height, width, _, _ = simplejpeg.decode_jpeg_header(data)
        flag = orientation.jpeg_orientation(data)
        return orientation.turned_size(int(height), int(width), flag)
    with Image.open(io.BytesIO(data), formats=_formats(data, "image")) as image:
        size = (image.height, image.width)
        # Pillow states the turned size of a TIFF.
        flag = orientation.exif_orientation(image.info.get("exif") or b"")
        return size if image.format == "TIFF" else orientation.turned_size(*size, flag)


def image_notes(data: bytes, *, annotated: tuple[int, int], name: str) -> tuple[str, ...]:
    """What the report of a build should say about a sound image: its flag, and its guessed depth.

    A JPEG, or a PNG of 8 bits without EXIF and alpha and with one frame, is not decoded again.

    Args:
        data: the bytes of the image file.
        annotated: height and width of its masks.
        name: the file or record, for errors.
    """
    if data[:2] == b"\xff\xd8":
        flag = orientation.jpeg_orientation(data)
        if flag == 1:
            return ()
        height, width, _, _ = simplejpeg.decode_jpeg_header(data)
        stored = (int(height), int(width))
        return (TURNED if orientation.is_followed(flag, stored, annotated) else AS_STORED,)
    # Depth, and the kinds of colour that have no alpha.
    plain = (
        data[:4] == b"\x89PNG" and data[24:25] != b"\x10" and data[25:26] in (b"\0", b"\2", b"\3")
    )
    if plain and not any(chunk in data for chunk in (b"eXIf", b"acTL", b"tRNS")):
        return ()
    found = decode(data, name=name, annotated=annotated)
    return (*(TURNED for _ in range(found.turned)), *found.notes)


def _formats(data: bytes, name: str) -> tuple[str, ...]:
    """The formats as which Pillow may open an image; raises an `UnreadError` if none is read here."""
    kind = kind_of(data)
    if kind is None or kind.reader not in ("", *_OPTIONAL):
        return _FORMATS
    if not kind.reader:
        raise UnreadError(f"{name}: {kind.unread}")
    return (kind.reader,)


def _check_size(height: int, width: int, name: str, max_pixels: int) -> None:
    if height * width > max_pixels:
        raise ImageError(
            f"{name}: {width} x {height} pixels are more than the allowed {max_pixels}; "
            "scale the image down"
        )


def _check_preview(image: Image.Image, name: str) -> None:
    """Refuses a TIFF whose first page is a reduced copy of another one, as in raw files of cameras."""
    tags: Any = getattr(image, "tag_v2", {}) if image.format == "TIFF" else {}
    if int(tags.get(_SUBFILE, 0)) & 1:
        raise UnreadError(
            f"{name}: a raw file or a TIFF that begins with a preview of {image.width} x "
            f"{image.height} is not read here; save it as PNG or JPEG"
        )


@contextlib.contextmanager
def _one_line(name: str, data: bytes = b"") -> Iterator[None]:
    """Turns any exception of a decoder into an `ImageError` of one line."""
    try:
        yield
    except ImageError:
        raise
    except DepthError as error:
        raise ImageError(f"{name}: {error}") from None
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise ImageError(f"{name}: the image has too many pixels; scale it down") from None
    except Exception as error:  # Decoders raise exceptions of any type on damaged bytes.
        reason = " ".join(str(error).split())[:120]
        if isinstance(error, UnidentifiedImageError):
            kind = kind_of(data)
            if kind is not None and kind.reader in ("TIFF", *_OPTIONAL):
                example = " (colours of floats, for example)" * (kind.reader == "TIFF")
                raise ImageError(
                    f"{name}: a damaged {kind.name}, or one of a kind that is not read{example}; "
                    "save it as PNG or JPEG"
                ) from None
            reason = "no known format"
        raise ImageError(
            f"{name}: the image is damaged or no image ({reason}); replace the file"
        ) from None


def _stored(
    image: Image.Image, data: bytes, max_pixels: int
) -> tuple[np.ndarray, int, tuple[str, ...]]:
    """The stored pixels u8 `[H, W]` or `[H, W, 3]`, the EXIF flag, and notes about the pixels."""
    several = getattr(image, "is_animated", False) and image.tell() == 0
    tags: Any = getattr(image, "tag_v2", {}) if image.format == "TIFF" else {}
    flag = int(tags.get(orientation.TAG, 1))
    levels, note = to_levels(image, data, max_pixels)
    notes = (*(FIRST,) * several, *(note,) * bool(note), *(CLEAR,) * _has_clear_pixels(image))
    if image.format != "TIFF":
        return levels, orientation.exif_orientation(image.info.get("exif") or b""), notes
    if orientation.TAG not in tags:
        # Pillow has turned the pixels and removed the tag.
        levels = orientation.turn_back(levels, flag)
    return levels, flag, notes


def _has_clear_pixels(image: Image.Image) -> bool:
    """Whether a loaded image has pixels that a person does not see; they have colours all the same."""
    if image.mode in ("RGBA", "LA", "PA", "RGBa", "La"):
        lowest: Any = image.getextrema()[-1]
        return lowest[0] < 255
    clear: Any = image.info.get("transparency")
    if image.mode not in ("L", "P") or clear is None:
        return False
    used = image.histogram()
    alpha = {clear: 0} if isinstance(clear, int) else dict(enumerate(clear))
    return any(used[number] for number, level in alpha.items() if level < 255 and number < 256)


def _seen(
    stored: np.ndarray, flag: int, notes: tuple[str, ...], annotated: tuple[int, int] | None
) -> Decoded:
    """Turns stored pixels by the flag, unless the masks are of the stored size alone."""
    if stored.ndim == 2:
        stored = np.repeat(stored[:, :, None], 3, 2)
    if flag == 1:
        return Decoded(stored, False, notes)
    if not orientation.is_followed(flag, stored.shape[:2], annotated):
        return Decoded(stored, False, (AS_STORED, *notes))
    return Decoded(orientation.turn(stored, flag), True, notes)
