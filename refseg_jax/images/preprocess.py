"""Prepares images and masks for the network; the input pipeline and the predictor share this code.

The coordinate of a pixel is its index. An affine map `[2, 3]` takes native pixels (x, y, 1) to
network pixels. Network pixel `p` lies at `g = (p + 0.5) / stride - 0.5` in cells of the mask.
"""

import contextlib
import io
from collections.abc import Iterator
from typing import Literal, TypeAlias, get_args

import cv2
import numpy as np
import simplejpeg
from PIL import Image, UnidentifiedImageError

from refseg_jax.errors import UserError
from refseg_jax.images.colours import CLIP_MEAN
from refseg_jax.naming import unknown

Resize: TypeAlias = Literal["letterbox", "stretch"]

#: What a mask cell holds of the warped mask, see `prepare_mask`.
MaskCells: TypeAlias = Literal["mean", "nearest"]

#: Bound on height times width: no dataset has larger images, and one such image takes 150 MB.
MAX_PIXELS = 50_000_000

#: Formats besides JPEG. Pillow reads more of them, and runs Ghostscript for one.
_FORMATS = ("PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM")

_BORDER = tuple(round(255 * value) for value in CLIP_MEAN)


class ImageError(UserError, ValueError):
    """An image that cannot be used."""


def decode_image(data: bytes, *, name: str, max_pixels: int = MAX_PIXELS) -> np.ndarray:
    """Decodes the bytes of an image file.

    The size is read from the header and checked before the pixels are decoded. Truncated files, PNGs
    with a wrong checksum and JPEGs whose damage the decoder notices are refused; a flipped bit that
    leaves the entropy code of a JPEG valid cannot be noticed. EXIF orientation is ignored, as in the
    annotations of COCO. Grey, palette, alpha (dropped) and 16-bit (scaled) images become RGB.

    Args:
        data: the bytes of a JPEG, PNG, WebP, BMP, GIF, TIFF or PPM file.
        name: the file or record, for the message.
        max_pixels: bound on height times width.

    Returns:
        u8 `[H, W, 3]`, RGB.

    Raises:
        ImageError: the image is damaged, too large or of another format; one line with the name, the
            reason and the cure.
    """
    with _one_line(name):
        if not data:
            raise ValueError("the file is empty")
        if data[:2] == b"\xff\xd8":
            height, width, _, _ = simplejpeg.decode_jpeg_header(data)
            _check_size(int(height), int(width), name, max_pixels)
            return simplejpeg.decode_jpeg(data, colorspace="RGB", strict=True)
        # `open` reads only the header.
        with Image.open(io.BytesIO(data), formats=_FORMATS) as image:
            return _to_rgb(image, name, max_pixels)


def pillow_to_rgb(
    image: Image.Image, *, name: str = "Pillow image", max_pixels: int = MAX_PIXELS
) -> np.ndarray:
    """The pixels of an opened Pillow image, equal to `decode_image` of its (lossless) file.

    Pillow reads lazily, so a damaged file may fail only here.

    Args:
        image: the opened image.
        name: the file or record, for the message.
        max_pixels: bound on height times width.

    Returns:
        u8 `[H, W, 3]`, RGB.

    Raises:
        ImageError: as in `decode_image`.
    """
    with _one_line(name):
        return _to_rgb(image, name, max_pixels)


def letterbox_affine(height: int, width: int, size: int) -> np.ndarray:
    """CRIS's centred letterbox, f32 `[2, 3]`: `x' = s x + b`, `s = min(size / height, size / width)`.

    Pixel indices are scaled without a half-pixel shift, as in CRIS's `getTransformMat`.
    """
    scale = min(size / height, size / width)
    offset_x, offset_y = (size - scale * width) / 2, (size - scale * height) / 2
    return np.array([[scale, 0, offset_x], [0, scale, offset_y]], np.float32)


def stretch_affine(height: int, width: int, size: int) -> np.ndarray:
    """The map that stretches each axis to `size`, f32 `[2, 3]`: `x' = (x + 0.5) s - 0.5`.

    Half-pixel centres; `s = size / width` for x, and `size / height` for y.
    """
    sx, sy = size / width, size / height
    return np.array([[sx, 0, 0.5 * sx - 0.5], [0, sy, 0.5 * sy - 0.5]], np.float32)


def check_resize(resize: str) -> None:
    """Checks the name of a way of resizing.

    Raises:
        UserError: the name is unknown; the message names the nearest.
    """
    ways = get_args(Resize)
    if resize not in ways:
        raise UserError(unknown("config.data.resize", str(resize), ways))


def check_mask_cells(mask_cells: str) -> None:
    """Checks the name of a way of filling mask cells.

    Raises:
        UserError: the name is unknown; the message names the nearest.
    """
    ways = get_args(MaskCells)
    if mask_cells not in ways:
        raise UserError(unknown("config.data.mask_cells", str(mask_cells), ways))


def make_affine(height: int, width: int, size: int, resize: Resize) -> np.ndarray:
    """The affine map f32 `[2, 3]` from native to network pixels, for either way of resizing.

    Args:
        height, width: native size of the image in pixels.
        size: side of the network's square input in pixels.
        resize: `letterbox` or `stretch`.

    Raises:
        ValueError: `resize` is neither of the two.
    """
    if resize == "letterbox":
        return letterbox_affine(height, width, size)
    if resize == "stretch":
        return stretch_affine(height, width, size)
    raise ValueError(f"resize {resize!r} is neither 'letterbox' nor 'stretch'")


def prepare_image(rgb: np.ndarray, size: int, resize: Resize) -> tuple[np.ndarray, np.ndarray]:
    """Resizes an image to the network's square input.

    Args:
        rgb: u8 `[H, W, 3]`.
        size: side of the network's square input in pixels.
        resize: `letterbox` (CRIS: OpenCV's bicubic warp, with CLIP's mean colour as border) or
            `stretch` (ReLA and LAVT: Pillow's bilinear resize, which antialiases when it shrinks).

    Returns:
        The resized image u8 `[size, size, 3]`, and the affine map f32 `[2, 3]` from native to network
        pixels.
    """
    affine = make_affine(rgb.shape[0], rgb.shape[1], size, resize)
    if _is_identity(affine, rgb.shape[:2], size):
        return rgb, affine
    if resize == "stretch":
        stretched = Image.fromarray(rgb).resize((size, size), Image.Resampling.BILINEAR)
        return np.array(stretched), affine
    warped = cv2.warpAffine(
        rgb,
        affine,
        (size, size),
        flags=cv2.INTER_CUBIC,
        borderMode=cv2.BORDER_CONSTANT,
        borderValue=_BORDER,
    )
    return warped, affine


def prepare_mask(
    mask: np.ndarray, affine: np.ndarray, size: int, stride: int, cells: MaskCells = "mean"
) -> np.ndarray:
    """The mask at the network's stride.

    Args:
        mask: u8 of 0/1 `[H, W]`, native size.
        affine: f32 `[2, 3]`, native pixels to network pixels.
        size: side of the network's square input in pixels.
        stride: network pixels per mask cell; divides `size`.
        cells: `mean`, the covered share of a cell: the mean over its `stride * stride` pixels; or
            `nearest`, its upper left pixel, which torch's `interpolate(mode="nearest")` takes in CRIS's
            `segmenter.py`.

    Returns:
        u8 `[size / stride, size / stride]` of the bilinearly warped mask, as 0..255.
    """
    full = mask * np.uint8(255)
    if not _is_identity(affine, mask.shape, size):
        full = cv2.warpAffine(full, affine, (size, size), flags=cv2.INTER_LINEAR)
    if cells == "nearest":
        return np.ascontiguousarray(full[::stride, ::stride])
    side = size // stride
    # INTER_AREA with a whole ratio is the mean over blocks.
    return cv2.resize(full, (side, side), interpolation=cv2.INTER_AREA)


def _is_identity(affine: np.ndarray, shape: tuple[int, ...], size: int) -> bool:
    return tuple(shape) == (size, size) and bool(np.array_equal(affine, np.eye(2, 3)))


def _check_size(height: int, width: int, name: str, max_pixels: int) -> None:
    if height * width > max_pixels:
        raise ImageError(
            f"{name}: {width} x {height} pixels are more than the allowed {max_pixels}; "
            "scale the image down"
        )


@contextlib.contextmanager
def _one_line(name: str) -> Iterator[None]:
    """Turns any exception of a decoder into an `ImageError` of one line."""
    try:
        yield
    except ImageError:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise ImageError(f"{name}: the image has too many pixels; scale it down") from None
    except Exception as error:  # Decoders raise exceptions of any type on damaged bytes.
        reason = " ".join(str(error).split())[:120]
        if isinstance(error, UnidentifiedImageError):
            reason = "no known format"
        raise ImageError(
            f"{name}: the image is damaged or no image ({reason}); replace the file"
        ) from None


def _to_rgb(image: Image.Image, name: str, max_pixels: int) -> np.ndarray:
    _check_size(image.height, image.width, name, max_pixels)
    if image.mode.startswith("I") or image.mode == "F":
        grey = np.asarray(image, np.float64)
        # Mode "I;16" is of 16 bits. "I" and "F" do not tell: values above 255 do.
        deep = image.mode.startswith("I;16") or grey.max(initial=0) > 255
        scaled = np.nan_to_num(grey * (255.0 / 65535.0 if deep else 1.0)).round().clip(0, 255)
        return np.repeat(scaled.astype(np.uint8)[:, :, None], 3, 2)
    if image.mode == "P" and "transparency" in image.info:
        # Pillow warns if such an image is converted to RGB directly.
        image = image.convert("RGBA")
    return np.asarray(image.convert("RGB"))
