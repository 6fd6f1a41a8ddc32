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
NESTED = "polygons inside another polygon of their region, which fills them (a hole needs RLE)"

#: Intersection over union below which two boxes are considered boxes of different things, and from
#: which on they fit each other.
_SAME_BOX, _FITS = 0.5, 0.8


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


def nested(segmentation: Any, height: int, width: int) -> dict[str, int]:
    """Notes the polygons of a region that lie inside another one of it, as other tools write holes.

    COCO's polygons are united, so that such a hole is filled.

    Args:
        segmentation, height, width: as in `encode_segmentation`, which has accepted them.

    Returns:
        `{NESTED: polygons}`, or an empty dict.
    """
    polygons = [] if isinstance(segmentation, Mapping) else segmentation
    polygons = [p for p in polygons if not isinstance(p, Mapping) and len(p) >= 6]
    if len(polygons) < 2:
        return {}
    rles: Any = [coco_mask.frPyObjects([p], height, width)[0] for p in polygons]
    # 1 marks a crowd: the intersection is then divided by the area of the inner region alone.
    share: Any = coco_mask.iou(rles, rles, [1] * len(rles))
    areas: Any = coco_mask.area(rles)
    inside = (share >= 1.0) & (areas[:, None] < areas[None])
    number = int(inside.any(1).sum())
    return {NESTED: number} if number else {}


def is_of_corners(rle: Any, box: Sequence[float]) -> bool:
    """Whether a region fits a stated box only if that is (left, top, right, bottom)."""
    left, top, right, bottom = box
    if right <= left or bottom <= top:
        return False
    stated = np.array([box, (left, top, right - left, bottom - top)], np.float64)
    overlap: Any = coco_mask.iou(cast(Any, coco_mask.toBbox(rle)[None]), cast(Any, stated), [0, 0])
    return overlap[0, 0] < _SAME_BOX and overlap[0, 1] >= _FITS


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
