"""Prepares images and masks for the network; the input pipeline and the predictor share this code.

The coordinate of a pixel is its index. An affine map `[2, 3]` takes native pixels (x, y, 1) to
network pixels. Network pixel `p` lies at `g = (p + 0.5) / stride - 0.5` in cells of the mask.
"""

from typing import Literal, TypeAlias, get_args

import cv2
import numpy as np
from PIL import Image

from refseg_jax.errors import UserError
from refseg_jax.images.colours import CLIP_MEAN
from refseg_jax.naming import unknown

Resize: TypeAlias = Literal["letterbox", "stretch"]

#: What a mask cell holds of the warped mask, see `prepare_mask`.
MaskCells: TypeAlias = Literal["mean", "nearest"]

#: Colour around a letterboxed image, u8 RGB: CLIP's mean colour, which the towers see as 0.
BORDER = (round(255 * CLIP_MEAN[0]), round(255 * CLIP_MEAN[1]), round(255 * CLIP_MEAN[2]))


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
        borderValue=BORDER,
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
    # OpenCV reads rows. COCO's masks are stored by columns, and NumPy turns them slowly.
    rows = cv2.transpose(mask.T) if mask.flags.f_contiguous else mask
    full = rows * np.uint8(255)
    if not _is_identity(affine, mask.shape, size):
        full = cv2.warpAffine(full, affine, (size, size), flags=cv2.INTER_LINEAR)
    if cells == "nearest":
        return np.ascontiguousarray(full[::stride, ::stride])
    side = size // stride
    # INTER_AREA with a whole ratio is the mean over blocks.
    return cv2.resize(full, (side, side), interpolation=cv2.INTER_AREA)


def _is_identity(affine: np.ndarray, shape: tuple[int, ...], size: int) -> bool:
    return tuple(shape) == (size, size) and bool(np.array_equal(affine, np.eye(2, 3)))
