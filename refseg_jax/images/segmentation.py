"""Converts COCO segmentations of every kind (polygons, RLE, uncompressed RLE) to compressed RLE."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, cast

import numpy as np
from pycocotools import mask as coco_mask

#: Notes in the report of a conversion, see `misplaced`.
LEAVES = "polygons that leave the image, cut at its border"
AWAY = "masks away from their box"

#: A polygon of the user's own data may leave the image by the larger of 5 pixels and 2 % of the longer
#: side. People who draw along the border slip by a few pixels, and tools that round or scale add some.
#: Coordinates of another image, of another size or in another order are much further away.
_SLACK, _SLACK_SHARE = 5, 0.02

#: Intersection over union below which two boxes are considered boxes of different things.
_SAME_BOX = 0.5


class SegmentationError(ValueError):
    """A segmentation is malformed, or describes no region of the image."""


class EmptyRegion(SegmentationError):
    """The parts of a segmentation are well-formed, but cover no pixel."""


class Encoded(NamedTuple):
    """An encoded region.

    Attributes:
        counts: compressed COCO RLE counts.
        tiny: number of polygons that were left out because they have fewer than three points.
    """

    counts: bytes
    tiny: int


def encode_segmentation(segmentation: Any, height: int, width: int) -> Encoded:
    """Encodes the union of all parts of a segmentation.

    The polygons of an object may overlap. Readers that add the parts up get 2 there, and lose these
    pixels when they compare the sum with 1.

    Args:
        segmentation: a list of polygons `[x0, y0, x1, y1, ...]` in pixels, an RLE dict
            `{"size": [h, w], "counts": ...}` (counts compressed, or a list of run lengths), or a
            list of such dicts (RefClef).
        height, width: size of the image in pixels.

    Returns:
        The RLE of the union at the size of the image.

    Raises:
        SegmentationError: no polygon has three points, a polygon or an RLE is malformed, or the size
            of an RLE is not that of the image.
        EmptyRegion: the parts are well-formed, but cover no pixel.
    """
    if isinstance(segmentation, Mapping):
        segmentation = [segmentation]
    if not isinstance(segmentation, Sequence) or isinstance(segmentation, str | bytes):
        raise SegmentationError(f"the segmentation is a {type(segmentation).__name__}")
    if segmentation and all(isinstance(part, Mapping) for part in segmentation):
        rles: Any = [checked_rle(part, height, width) for part in segmentation]
        tiny = 0
    else:
        polygons = [_checked_polygon(part, height, width) for part in segmentation]
        whole = [polygon for polygon in polygons if len(polygon) >= 6]
        tiny = len(polygons) - len(whole)
        if not whole:
            raise SegmentationError("no polygon has three points")
        rles = _compress(whole, height, width)
    merged: Any = coco_mask.merge(rles)
    if not coco_mask.area(merged):
        raise EmptyRegion("the region covers no pixel")
    return Encoded(merged["counts"], tiny)


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
    slack = max(_SLACK, _SLACK_SHARE * max(height, width))
    for part in segmentation:
        polygon = [] if isinstance(part, Mapping) else _checked_polygon(part, height, width)
        if not polygon:
            continue
        left, right = min(polygon[::2]), max(polygon[::2])
        top, bottom = min(polygon[1::2]), max(polygon[1::2])
        beside = right <= 0 or left >= width or bottom <= 0 or top >= height
        if beside or max(-left, -top, right - width, bottom - height) > slack:
            raise SegmentationError(
                f"a region from ({left:g}, {top:g}) to ({right:g}, {bottom:g}) leaves the image of "
                f"{width} x {height} pixels"
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


def _compress(objects: Any, height: int, width: int) -> Any:
    """`frPyObjects`, whose type stubs list only some of the types that it accepts."""
    return coco_mask.frPyObjects(objects, height, width)


def _checked_polygon(polygon: Any, height: int, width: int) -> list[float]:
    """Checks that pycocotools can draw a polygon: finite, and not far outside the image.

    pycocotools stores every point along each edge, so one coordinate of 1e12 would fill the memory.
    """
    if not isinstance(polygon, Sequence) or isinstance(polygon, str | bytes):
        raise SegmentationError(f"a polygon is a {type(polygon).__name__}")
    if len(polygon) % 2:
        raise SegmentationError(f"a polygon has an odd number of coordinates ({len(polygon)})")
    bound = 4 * max(height, width)
    for value in polygon:
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise SegmentationError(f"a polygon has the coordinate {value!r:.40}")
        if not math.isfinite(value) or abs(value) > bound:
            raise SegmentationError(f"a polygon has the coordinate {value:g}, outside of the image")
    return [float(value) for value in polygon]


def checked_rle(rle: Mapping[str, Any], height: int, width: int) -> dict[str, Any]:
    """Checks that the runs of an RLE fill the image exactly, and compresses its counts.

    pycocotools writes past the end of its memory for other RLEs, or merges them in an endless loop.

    Args:
        rle: `{"size": [h, w], "counts": ...}`, counts compressed or a list of run lengths.
        height, width: size of the image in pixels.

    Raises:
        SegmentationError: the RLE is malformed, or its size is not that of the image.
    """
    size, counts = rle.get("size"), rle.get("counts")
    if not isinstance(size, Sequence) or list(size) != [height, width]:
        raise SegmentationError(f"the RLE's size is {size!r:.40}, the image's [{height}, {width}]")
    if isinstance(counts, str):
        counts = counts.encode("ascii", "replace")
    if isinstance(counts, bytes):
        runs: Any = _runs(counts)
    elif isinstance(counts, Sequence) and all(type(run) is int for run in counts):
        runs = np.array(counts, object)
    else:
        raise SegmentationError(f"the RLE's counts are a {type(counts).__name__}")
    _check_runs(runs, height, width)
    if isinstance(counts, bytes):
        return {"size": [height, width], "counts": counts}
    return _compress({"size": [height, width], "counts": list(counts)}, height, width)


def decode_counts(counts: bytes, height: int, width: int) -> np.ndarray:
    """Decodes compressed counts to a mask u8 `[height, width]` of 0/1 with contiguous columns.

    Raises:
        SegmentationError: the counts are damaged, or their runs do not fill the image exactly.
    """
    runs = _runs(counts)
    _check_runs(runs, height, width)
    values = (np.arange(len(runs)) % 2).astype(np.uint8)
    return np.repeat(values, runs).reshape(width, height).T


def are_plain(counts: Sequence[bytes], pixels: Sequence[int]) -> bool:
    """Whether pycocotools can merge and measure all of these compressed counts as they are.

    This holds if `checked_rle` accepts each of them, and no run except the first is empty. Call it
    with many counts at a time: numpy takes as long for one as for many.

    Args:
        counts: compressed counts, at least one.
        pixels: number of pixels of each one's image, which its runs must fill.
    """
    try:
        values, numbers = _differences(counts)
    except SegmentationError:
        return False
    heads = np.cumsum(numbers) - numbers
    # Each RLE gets room for an even number of runs: then the runs at even places, and those at odd
    # places, are one chain of differences each, through all RLEs.
    room = numbers + (numbers & 1)
    starts = np.cumsum(room) - room
    place = np.arange(len(values)) + np.repeat(starts - heads, numbers)
    padded = np.zeros(room.sum(), np.int64)
    padded[place] = values
    chains, begin = padded.reshape(-1, 2), starts // 2
    # The first run of an RLE is in no chain. At its start, each RLE subtracts the sums with which the
    # one before it ended.
    chains[begin, 0] = 0
    chains[begin[1:]] -= np.add.reduceat(chains, begin)[:-1]
    np.cumsum(chains, 0, out=chains)
    runs = padded[place]
    runs[heads] = values[heads]
    filled = np.add.reduceat(runs, heads)
    runs[heads] += 1
    return bool(runs.min() > 0 and (filled == pixels).all())


def _check_runs(runs: np.ndarray, height: int, width: int) -> None:
    pixels = height * width
    if ((runs < 0) | (runs > pixels)).any() or runs.sum() != pixels:
        raise SegmentationError(f"the RLE's runs do not fill {height} x {width} pixels")


def _runs(counts: bytes) -> np.ndarray:
    """The run lengths of compressed counts, i64.

    From the fourth run on, COCO stores the difference to the run two before it.
    """
    runs, _ = _differences([counts])
    for first in (1, 2):
        runs[first::2] = np.cumsum(runs[first::2])
    return runs


def _differences(counts: Sequence[bytes]) -> tuple[np.ndarray, np.ndarray]:
    """The numbers in compressed counts, i64, and how many of them each RLE has.

    COCO encodes a number in characters of 5 bits each, the lowest bits first. Of a character's code
    minus 48, bit 5 tells that another character follows; bit 4 of the last one is the sign.
    """
    code = np.frombuffer(b"".join(counts), np.uint8) - np.uint8(48)
    stops = np.cumsum([len(text) for text in counts])
    last = code < 32
    ends = np.flatnonzero(last)
    lengths = np.diff(ends, prepend=-1)
    if (code >= 64).any() or lengths.max(initial=0) > 7:
        raise SegmentationError("the RLE's counts are damaged")
    if not all(counts) or not last[stops - 1].all():
        raise SegmentationError("the RLE's counts are truncated")
    values = (code[ends].astype(np.int64) ^ 16) - 16
    longer = np.flatnonzero(lengths > 1)
    for place in range(1, 7):
        if not len(longer):
            break
        values[longer] = values[longer] << 5 | code[ends[longer] - place] & 31
        longer = longer[lengths[longer] > place + 1]
    return values, np.diff(np.searchsorted(ends, stops), prepend=0)
