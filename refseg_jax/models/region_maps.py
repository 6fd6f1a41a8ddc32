"""The minimap and the region masks of ReLA for an expression, for drawing them over the picture."""

import dataclasses
from typing import NamedTuple

import numpy as np

from refseg_jax.batch import Array


class RegionMaps(NamedTuple):
    """The minimaps and region masks of a batch, as in Figure 7 of the ReLA paper.

    Attributes:
        minimap: f32 `[B, N, K, side, side]` in [0, 1], the probability that a region contains targets.
        region_masks: f32 `[B, N, K, side * side, h, w]` in [0, 1], at stride 4.
        present: f32 `[B, N, K]` in [0, 1], the probability that the image contains a target.
    """

    minimap: Array
    region_masks: Array
    present: Array


@dataclasses.dataclass(frozen=True)
class RegionMap:
    """The minimap and the masks of some regions for one pair of image and expression.

    The maps cover the square input of the network; `refseg_jax.reporting.pictures.lay_over` lays them
    over the picture.

    Attributes:
        minimap: f32 `[side, side]` in [0, 1], the probability that a region contains targets.
        regions: integers `[n]`, the cells of the minimap (numbered row by row) with the highest
            probabilities, the highest first.
        masks: f32 `[n, h, w]` in [0, 1], the masks of these regions, at stride 4.
        present: the probability that the image contains a target, in [0, 1].
        affine: f32 `[2, 3]`, native to network pixels.
        image_size: side of the network's square input in pixels.
        size: native height and width of the picture in pixels.
    """

    minimap: np.ndarray
    regions: np.ndarray
    masks: np.ndarray
    present: float
    affine: np.ndarray
    image_size: int
    size: tuple[int, int]


def highest_regions(
    maps: RegionMaps, count: int, affine: np.ndarray, image_size: int, size: tuple[int, int]
) -> list[RegionMap]:
    """The region maps of each expression of an image, with the `count` most probable regions.

    Args:
        maps: the maps of one image and its k expressions, f32 `[k, ...]` each.
        count: number of regions; all regions if there are fewer.
        affine, image_size, size: see `RegionMap`.
    """
    found = []
    for minimap, masks, present in zip(*map(np.asarray, maps), strict=True):
        highest = np.argsort(-minimap.ravel(), kind="stable")[:count]
        found.append(
            RegionMap(minimap, highest, masks[highest], float(present), affine, image_size, size)
        )
    return found
