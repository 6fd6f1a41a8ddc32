"""Checks whether regions lie where they should: inside their image, and in their box."""

from collections.abc import Mapping, Sequence
from typing import Any, cast

import numpy as np
from pycocotools import mask as coco_mask

from refseg_jax.images.segmentation import SegmentationError, check_form, checked_polygon
from refseg_jax.images.units import bounds_of, leaves

#: Notes in the report of a conversion, see `misplaced`.
LEAVES = "polygons that leave the image, cut at its border"
AWAY = "masks away from their box"

#: Intersection over union below which two boxes are considered boxes of different things.
_SAME_BOX = 0.5


def misplaced(
    segmentation: Any, counts: bytes, box: Sequence[float], height: int, width: int
) -> dict[str, int]:
    """Checks the place of a region, and returns notes for the report of a conversion.

    `LEAVES` counts the polygons that leave the image by more than a pixel. `AWAY` is noted if the
    bounding box of the region and the box in the dataset have an intersection over union below 0.5.

    Args:
        segmentation: the input of `encode_segmentation`.
        counts: the compressed counts that it returned.
        box: (x, y, width, height) in pixels as the dataset states it; empty if it states none.
        height, width: size of the image in pixels.

    Returns:
        `{LEAVES: polygons}`, `{AWAY: 1}`, both, or an empty dict.
    """
    notes = {}
    polygons = [] if isinstance(segmentation, Mapping) else segmentation
    leaving = sum(_leaves(p, height, width) for p in polygons if not isinstance(p, Mapping))
    if leaving:
        notes[LEAVES] = leaving
    if box:
        rle: Any = {"size": [height, width], "counts": counts}
        own, stated = coco_mask.toBbox(rle)[None], np.array([box], np.float64)
        overlap: Any = coco_mask.iou(cast(Any, own), cast(Any, stated), [0])
        if overlap.item() < _SAME_BOX:
            notes[AWAY] = 1
    return notes


def check_inside(segmentation: Any, height: int, width: int) -> None:
    """Checks that the polygons of the user's own data lie within the image.

    A polygon outside the image is a mistake that its author can fix. In published datasets nobody
    can: there it is cut at the border and noted (see `misplaced`). RLEs are not checked here, because
    `encode_segmentation` compares their size with that of the image.

    Args:
        segmentation: as in `encode_segmentation`.
        height, width: size of the image in pixels.

    Raises:
        SegmentationError: a polygon is malformed, lies outside the image, or leaves it by more than
            both 5 pixels and 2 % of the longer side.
    """
    if not isinstance(segmentation, list):
        return
    check_form(segmentation)
    for part in segmentation:
        polygon = [] if isinstance(part, Mapping) else checked_polygon(part, height, width)
        bounds = bounds_of([polygon])
        if bounds is None:
            continue
        left, top, right, bottom = bounds
        beside = right <= 0 or left >= width or bottom <= 0 or top >= height
        if beside or leaves(bounds, height, width):
            cure = ""
            if min(bounds) >= 0 and max(bounds) <= 100:
                factors = f"x by {width / 100:g} and y by {height / 100:g}"
                cure = f"correct it, or, if it is in per cent, multiply {factors}"
            raise SegmentationError(
                f"a region from ({left:g}, {top:g}) to ({right:g}, {bottom:g}) leaves the image of "
                f"{width} x {height} pixels",
                cure,
            )


def stated_box(box: Any) -> tuple[float, ...]:
    """A COCO `bbox` as (x, y, width, height) in pixels; `()` if it is malformed."""
    sound = isinstance(box, Sequence) and len(box) == 4
    sound = sound and all(type(v) in (int, float) and abs(v) < 1e9 for v in box)
    return tuple(float(v) for v in box) if sound and min(box[2:]) >= 0 else ()


def _leaves(polygon: Sequence[float], height: int, width: int) -> bool:
    across, down = polygon[::2], polygon[1::2]
    outside = bool(polygon) and (min(across) < -1 or max(across) > width + 1)
    return outside or (bool(polygon) and (min(down) < -1 or max(down) > height + 1))
