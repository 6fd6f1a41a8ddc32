"""Reads the pictures that a predictor takes: paths, encoded bytes, Pillow images, arrays."""

import collections
import hashlib
import os
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TypeAlias

import numpy as np
from PIL import Image

from refseg_jax.errors import UserError, shown
from refseg_jax.images.decoding import (
    MAX_PIXELS,
    Decoded,
    ImageError,
    ImageWarning,
    decode,
    decode_pillow,
)
from refseg_jax.images.files import read_file

#: Path of a file, encoded bytes, an array u8 RGB `[H, W, 3]`, or a Pillow image.
PictureLike: TypeAlias = str | Path | bytes | np.ndarray | Image.Image


def to_rgb(image: PictureLike, *, max_pixels: int = MAX_PIXELS) -> np.ndarray:
    """The u8 RGB pixels `[H, W, 3]` of `read_picture`, with an `ImageWarning` for each of its notes."""
    picture = read_picture(image, max_pixels=max_pixels)
    for note in picture.notes:
        # Python shows equal warnings of a line once.
        warnings.warn(note, ImageWarning, stacklevel=4)
    return picture.pixels


def read_picture(image: PictureLike, *, max_pixels: int = MAX_PIXELS) -> Decoded:
    """Reads any image that `Predictor.predict` takes, as a person sees it.

    The orientation flag of EXIF is followed (for an array, which has none, nothing is turned), and
    samples of more than 8 bits are read by their depth; a note tells where that was guessed.

    Args:
        image: a path, encoded bytes, a Pillow image or an array.
        max_pixels: bound on height times width of what has to be decoded; an array is decoded already.

    Raises:
        ImageError: the file cannot be read or is not an image, or the array has another dtype or
            shape.
    """
    if isinstance(image, str | Path):
        try:
            return decode(read_file(image), name=str(image), max_pixels=max_pixels)
        except OSError as error:
            raise ImageError(f"{image}: {error.strerror}; name an image file") from None
    if isinstance(image, bytes):
        return decode(image, name=f"image of {len(image)} bytes", max_pixels=max_pixels)
    if isinstance(image, Image.Image):
        return decode_pillow(image, max_pixels=max_pixels)
    if isinstance(image, np.ndarray):
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or not image.size:
            raise ImageError(
                f"array of {image.dtype} {list(image.shape)}: an image is uint8 [H, W, 3], RGB"
            )
        return Decoded(image, False, ())
    raise ImageError(f"{type(image).__name__}: give a path, bytes, a Pillow image or an array")


def unusable(name: object, error: Exception) -> ImageError:
    """The error of a picture with which decoding, warping or the model failed in a way of its own.

    Raises:
        Exception: `error`, where the environment has `REFSEG_TRACEBACK`.
    """
    if os.environ.get("REFSEG_TRACEBACK"):
        raise error
    reason = " ".join(f"{type(error).__name__}: {error}".split())[:160]
    return ImageError(f"{name}: cannot be predicted ({reason}); scale it down or replace it")


def names_of(images: Sequence[PictureLike], names: Sequence[str] | None = None) -> list[str]:
    """Names that tell the images of a group apart and order them.

    Args:
        images: at least one.
        names: a name for each image. `None`: paths as they are given, and for other images a digest of
            their pixels, so that they have one order however they are given. (Those of equal pixels are
            told apart by their positions.)

    Raises:
        ImageError: an image without a name cannot be used.
        UserError: there is no image, the number of names is another one, or two images share a name.
    """
    if isinstance(images, str | Path | bytes) or not len(images):
        raise UserError("images: give a list of one or more")
    if names is None:
        told = [
            str(image) if isinstance(image, str | Path) else f"{_digest(image)}-{position:06d}"
            for position, image in enumerate(images)
        ]
    else:
        told = list(names)
    if len(told) != len(images):
        raise UserError(f"names: there are {len(told)} for {len(images)} images; give one for each")
    name, times = collections.Counter(told).most_common(1)[0]
    if times > 1:
        raise UserError(f"{shown(name)}: {times} images have this name; give each one of its own")
    return told


def _digest(image: PictureLike) -> str:
    """32 digits that follow from size and pixels, whatever form they are given in."""
    pixels = read_picture(image).pixels
    found = hashlib.blake2b(repr(pixels.shape).encode(), digest_size=16)
    found.update(np.ascontiguousarray(pixels))
    return found.hexdigest()
