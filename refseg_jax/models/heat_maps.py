"""The heatmaps of GRSer's Figure 4: where the words and each image of a group say that a target is."""

import dataclasses
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from refseg_jax.batch import Array


class HeatMaps(NamedTuple):
    """The heatmaps of a batch, cosines in [-1, 1], at stride 4.

    The last two fields are the same for all images of a row.

    Attributes:
        language: f32 `[B, N, K, h, w]`: where in image n the words of expression k are.
        vision: f32 `[B, N, K, h, w, G]`: where in image n is what an image of its row shows of the
            expression. G channels, in the order in which the mask predictor reads them.
        shown: i32 `[B, G, K]`: the image of each channel, as an index of the axis N.
        order: i32 `[B, N, K]`: all images of the row, from the most to the least trusted.
    """

    language: Array
    vision: Array
    shown: Array
    order: Array

    @classmethod
    def of(cls, aux: Mapping[str, Any]) -> "HeatMaps":
        """The heatmaps in the `aux` of a `SegOutput` of a `refseg_jax.batch.GroupModel`."""
        names = ("language_heatmap", "vision_heatmaps", "channel_images", "expert_order")
        return cls(*(aux[name] for name in names))


@dataclasses.dataclass(frozen=True)
class HeatMap:
    """The heatmaps of one image of a row for one expression.

    The maps cover the square input of the network; `refseg_jax.reporting.pictures.lay_over` lays them
    over the picture.

    Attributes:
        language: f32 `[h, w]`, the cosine of each cell and the words.
        vision: f32 `[n, h, w]`, the cosine of each cell and the prototype of each image of the row, in
            the order of the row.
        order: i32 `[n]`, the images of the row from the most to the least trusted.
        affine: f32 `[2, 3]`, native to network pixels.
        image_size: side of the network's square input in pixels.
        size: native height and width of the picture in pixels.
    """

    language: np.ndarray
    vision: np.ndarray
    order: np.ndarray
    affine: np.ndarray
    image_size: int
    size: tuple[int, int]


def heat_map(
    maps: HeatMaps,
    place: tuple[int, int],
    image_size: int,
    affine: np.ndarray,
    size: tuple[int, int],
) -> HeatMap:
    """The heatmaps of one image and one expression.

    Args:
        maps: the maps of one row: arrays without the axis B, on the host.
        place: the image on the axis N, the expression on the axis K.
        image_size, affine, size: see `HeatMap`.

    Raises:
        ValueError: the row has more images than the mask predictor has channels.
    """
    n, k = place
    shown, order = np.asarray(maps.shown)[:, k], np.asarray(maps.order)[:, k]
    if set(order.tolist()) != set(shown.tolist()):
        raise ValueError(f"{len(order)} images of a row do not fit {len(shown)} channels")
    channels = [int(np.argmax(shown == image)) for image in range(len(order))]
    vision = np.moveaxis(np.asarray(maps.vision)[n, k][..., channels], -1, 0)
    return HeatMap(np.asarray(maps.language)[n, k], vision, order, affine, image_size, size)
