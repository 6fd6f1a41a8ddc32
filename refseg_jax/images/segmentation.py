"""COCO segmentations of every kind (polygons, RLE, uncompressed RLE) as one compressed RLE."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, cast

import numpy as np
from pycocotools import mask as coco_mask

#: Notes of a conversion.
LEAVES = "polygons that leave the image, cut at its border"
AWAY = "masks away from their box"

#: Pixels, and share of the image's longer side, by which a polygon of one's own may leave the image:
#: a hand that draws along the border slips by a few pixels, and tools that round or scale add some
#: (COCO's polygons end at the border, others' leave it by single pixels); coordinates of another
#: image, of another size of it or in another order are far beyond.
_SLACK, _SLACK_SHARE = 5, 0.02

#: Two boxes of the same thing have at least this intersection over union.
_SAME_BOX = 0.5


class SegmentationError(ValueError):
    """A segmentation that describes no region of the image."""


class EmptyRegion(SegmentationError):
    """Well-formed parts that cover no pixel."""


class Encoded(NamedTuple):
    """A region.

    Attributes:
        counts: compressed COCO RLE counts.
        tiny: polygons of fewer than three points that were left out.
    """

    counts: bytes
    tiny: int


def encode_segmentation(segmentation: Any, height: int, width: int) -> Encoded:
    """The union of all parts of a segmentation.

    A union, since the polygons of an object may overlap: the sum of the parts, which other readers
    take, is 2 there and is lost when it is compared with 1.

    Args:
        segmentation: a list of polygons `[x0, y0, x1, y1, ...]` in pixels, an RLE dict
            `{"size": [h, w], "counts": ...}` (counts compressed, or a list of run lengths), or a
            list of such dicts (RefClef).
        height, width: size of the image in pixels.

    Returns:
        The union's RLE at the image's size.

    Raises:
        SegmentationError: nothing is left, a polygon or an RLE is malformed, or the RLE's size is
            not the image's; an `EmptyRegion` where the parts are in order and cover no pixel.
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
    """What is odd about where a region lies, as notes of a conversion.

    A polygon leaves the image by more than a pixel. A region is away from its box where their
    intersection over union, with `B` the region's own bounding box and `S` the stated one, is small:
    `|B & S| / |B | S| < 0.5`.

    Args:
        segmentation: as `encode_segmentation` took it.
        counts: what it made of it.
        box: (x, y, width, height) as the dataset states it; empty where it does not.
        height, width: size of the image in pixels.

    Returns:
        `{LEAVES: polygons}`, `{AWAY: 1}`, both or nothing.
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
    """Looks whether polygons are of this image; of other segmentations, `encode_segmentation` says it.

    Published datasets have polygons of all kinds, which are cut at the border and noted
    (`misplaced`); in one's own they are a mistake that a person can mend.

    Args:
        segmentation: as `encode_segmentation` takes it.
        height, width: size of the image in pixels.

    Raises:
        SegmentationError: a polygon is malformed, lies outside of the image, or leaves it by more
            than 5 pixels and 2 % of its longer side.
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
    """A `bbox` of COCO's form, as (x, y, width, height); empty for anything else."""
    sound = isinstance(box, Sequence) and len(box) == 4
    sound = sound and all(type(v) in (int, float) and abs(v) < 1e9 for v in box)
    return tuple(float(v) for v in box) if sound and min(box[2:]) >= 0 else ()


def _leaves(polygon: Sequence[float], height: int, width: int) -> bool:
    across, down = polygon[::2], polygon[1::2]
    outside = bool(polygon) and (min(across) < -1 or max(across) > width + 1)
    return outside or (bool(polygon) and (min(down) < -1 or max(down) > height + 1))


def _compress(objects: Any, height: int, width: int) -> Any:
    """`frPyObjects`, whose type stubs know a part of what it takes."""
    return coco_mask.frPyObjects(objects, height, width)


def _checked_polygon(polygon: Any, height: int, width: int) -> list[float]:
    """A polygon that pycocotools can draw: finite, and not far outside of the image.

    pycocotools walks along every edge, so that one coordinate of 1e12 would fill the memory.
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
    """An RLE whose runs fill the image exactly.

    pycocotools writes past the end of others, or unites them with another RLE for ever.

    Raises:
        SegmentationError: it is none.
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
    """The mask of compressed counts, u8 `[height, width]` of 0/1 with contiguous columns.

    Raises:
        SegmentationError: their runs do not fill the image exactly.
    """
    runs = _runs(counts)
    _check_runs(runs, height, width)
    values = (np.arange(len(runs)) % 2).astype(np.uint8)
    return np.repeat(values, runs).reshape(width, height).T


def are_plain(counts: Sequence[bytes], pixels: Sequence[int]) -> bool:
    """Whether pycocotools can unite and measure all of these compressed counts as they are.

    That is, `checked_rle` would pass each of them, and no run but the first is empty. Many are
    looked at at once, because numpy takes as long for one.

    Args:
        counts: compressed counts, at least one.
        pixels: what the runs of each have to fill.
    """
    try:
        values, numbers = _differences(counts)
    except SegmentationError:
        return False
    heads = np.cumsum(numbers) - numbers
    # Room for an even number of runs each, so that a stride of two is one chain of differences.
    room = numbers + (numbers & 1)
    starts = np.cumsum(room) - room
    place = np.arange(len(values)) + np.repeat(starts - heads, numbers)
    padded = np.zeros(room.sum(), np.int64)
    padded[place] = values
    chains, begin = padded.reshape(-1, 2), starts // 2
    # The first run is in no chain, and each RLE takes back where the one before it ended.
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
    """Run lengths of compressed counts, i64: from the third on, COCO writes the difference to the
    run two before it."""
    runs, _ = _differences([counts])
    for first in (1, 2):
        runs[first::2] = np.cumsum(runs[first::2])
    return runs


def _differences(counts: Sequence[bytes]) -> tuple[np.ndarray, np.ndarray]:
    """The numbers that compressed counts spell, i64, and how many each of them has.

    COCO's code: characters carry 5 bits each (from 48 on, bit 5 says that more follow, the last
    one's bit 4 is the sign).
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
