"""Reads pictures, brings them to the network's size, and encodes them."""

import dataclasses
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from refseg_jax.images import preprocess
from refseg_jax.images.decoding import MAX_PIXELS, Decoded
from refseg_jax.prediction.engines import Engine
from refseg_jax.prediction.pictures import PictureLike, read_picture, to_rgb


class Place(NamedTuple):
    """Where an image lies in the network's square: affine f32 `[2, 3]`, native height and width."""

    affine: np.ndarray
    size: tuple[int, int]


class Prepared(NamedTuple):
    """An image at the network's size, u8 `[S, S, 3]`, and its place there."""

    network: np.ndarray
    place: Place


@dataclasses.dataclass(frozen=True)
class EncodedImages:
    """Image features of an engine, and the place of each image.

    A predictor takes those of one image in place of it, so that it is encoded once for many questions.
    They belong to the predictor that made them.
    """

    features: Any
    places: tuple[Place, ...]


class ImageEncoder:
    """Encodes the images of a predictor."""

    def __init__(
        self, engine: Engine, resize: preprocess.Resize, max_pixels: int = MAX_PIXELS
    ) -> None:
        """Checks the way of resizing.

        Args:
            engine: encodes the images.
            resize: `config.data.resize` of the run.
            max_pixels: bound on height times width of a picture that is decoded.

        Raises:
            UserError: the way of resizing is unknown.
        """
        preprocess.check_resize(resize)
        self._engine = engine
        self._resize: preprocess.Resize = resize
        self._max_pixels = max_pixels

    def read(self, image: PictureLike) -> Decoded:
        """See `read_picture`."""
        return read_picture(image, max_pixels=self._max_pixels)

    def rgb(self, image: PictureLike) -> np.ndarray:
        """See `to_rgb`."""
        return to_rgb(image, max_pixels=self._max_pixels)

    def prepare(self, rgb: np.ndarray) -> Prepared:
        """Brings an image u8 `[H, W, 3]` to the network's size."""
        network, affine = preprocess.prepare_image(rgb, self._engine.image_size, self._resize)
        return Prepared(network, Place(affine, (rgb.shape[0], rgb.shape[1])))

    def encode_row(self, pictures: Sequence[np.ndarray]) -> EncodedImages:
        """Encodes the images of one row, u8 `[H, W, 3]` each: of a model of groups several, else one."""
        prepared = [self.prepare(rgb) for rgb in pictures]
        networks = np.stack([one.network for one in prepared])
        rows = networks if self._engine.group_size is None else networks[None]
        return EncodedImages(self._engine.encode_image(rows), tuple(one.place for one in prepared))
