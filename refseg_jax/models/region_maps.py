"""What a model of regions says of one expression, to be drawn over the picture."""

import dataclasses
from typing import NamedTuple

import numpy as np

from refseg_jax.batch import Array


class RegionMaps(NamedTuple):
    """What the paper's Figure 7 shows.

    Attributes:
        minimap: f32 `[B, N, K, side, side]` in [0, 1], the probability that a region holds targets.
        region_masks: f32 `[B, N, K, side * side, h, w]` in [0, 1], at stride 4.
        present: f32 `[B, N, K]` in [0, 1], the probability that anything matches.
    """

    minimap: Array
    region_masks: Array
    present: Array


@dataclasses.dataclass(frozen=True)
class RegionMap:
    """One pair of an image and an expression: ReLA's Figure 7.

    Maps are of the network's square; `pictures.lay_over` lays them over the picture.

    Attributes:
        minimap: f32 `[side, side]` in [0, 1], the probability that a region holds targets.
        regions: i32 `[n]`, numbers of cells of the minimap, row by row, with the highest first.
        masks: f32 `[n, h, w]` in [0, 1], the masks of these regions, at stride 4.
        present: the probability that anything matches.
        affine: f32 `[2, 3]`, native to network pixels.
        image_size: side of the network's square in pixels.
        size: height and width of the picture.
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
    """Of each expression, with the `count` regions of the highest minimap.

    Args:
        maps: f32 `[k, ...]`, of one image and its expressions.
        count: at most as many as there are regions are given.
        affine, image_size, size: see `RegionMap`.
    """
    found = []
    for minimap, masks, present in zip(*map(np.asarray, maps), strict=True):
        highest = np.argsort(-minimap.ravel(), kind="stable")[:count]
        found.append(
            RegionMap(minimap, highest, masks[highest], float(present), affine, image_size, size)
        )
    return found
