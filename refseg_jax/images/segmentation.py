"""Converts COCO segmentations of every kind (polygons, RLE, uncompressed RLE) to compressed RLE."""

import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, cast

import numpy as np
from pycocotools import mask as coco_mask

from refseg_jax.images.units import Bounds, find_other_unit, fits_only

#: The forms that are read, for messages.
_POLYGONS = "write a list of polygons in pixels, [[x0, y0, x1, y1, ...], ...]"
_RLE = (
    'write {"size": [height, width], "counts": ...} with COCO\'s compressed text or a list of whole '
    "run lengths down the columns"
)


class SegmentationError(ValueError):
    """A segmentation is malformed, or describes no region of the image."""

    def __init__(self, reason: str, cure: str = "") -> None:
        """Joins the reason and, where it follows from the reason, the cure."""
        super().__init__(f"{reason}; {cure}" if cure else reason)
        self._has_cure = bool(cure)

    def with_cure(self, otherwise: str) -> str:
        """The reason with its cure, or with the given one if it has none."""
        return str(self) if self._has_cure else f"{self}; {otherwise}"


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


def encode_segmentation(
    segmentation: Any, height: int, width: int, box: Sequence[float] = ()
) -> Encoded:
    """Encodes the union of all parts of a segmentation.

    The polygons of an object may overlap. Readers that add the parts up get 2 there, and lose these
    pixels when they compare the sum with 1.

    Args:
        segmentation: a list of polygons `[x0, y0, x1, y1, ...]` in pixels, an RLE dict
            `{"size": [h, w], "counts": ...}` (counts compressed, or a list of run lengths), or a
            list of such dicts (RefClef).
        height, width: size of the image in pixels.
        box: (x, y, width, height) as stated beside the segmentation, a hint at the unit of its
            coordinates; `()` if there is none.

    Returns:
        The RLE of the union at the size of the image. No run except the first is empty.

    Raises:
        SegmentationError: the segmentation has another form or other units, no polygon has three
            points, a polygon or an RLE is malformed, or the size of an RLE is not that of the image.
        EmptyRegion: the parts are well-formed, but cover no pixel.
    """
    if isinstance(segmentation, Mapping):
        segmentation = [segmentation]
    check_form(segmentation)
    if segmentation and all(isinstance(part, Mapping) for part in segmentation):
        rles: Any = [checked_rle(part, height, width) for part in segmentation]
        tiny = 0
    else:
        polygons = [checked_polygon(part, height, width) for part in segmentation]
        if other := find_other_unit(polygons, height, width, box):
            raise SegmentationError(*other)
        whole = [polygon for polygon in polygons if len(polygon) >= 6]
        tiny = len(polygons) - len(whole)
        if not whole:
            raise SegmentationError("no polygon has three points")
        rles = _compress(whole, height, width)
    merged: Any = coco_mask.merge(rles)
    if not coco_mask.area(merged):
        raise EmptyRegion("the region covers no pixel")
    if box and isinstance(segmentation[0], Mapping) and _runs_along_rows(merged, box):
        raise SegmentationError("the RLE's runs go along the rows of the image", _RLE)
    return Encoded(merged["counts"], tiny)


def _runs_along_rows(rle: Any, box: Sequence[float]) -> bool:
    """Whether a region is away from its box, and fits it if its runs are taken along the rows."""
    height, width = rle["size"]

    def bounds(counts: bytes, size: tuple[int, int]) -> Bounds:
        x, y, wide, high = coco_mask.toBbox(cast(Any, {"size": list(size), "counts": counts}))
        return x, y, x + wide, y + high

    # Columns of the turned image are the rows.
    left, top, right, bottom = bounds(rle["counts"], (width, height))
    return fits_only((top, left, bottom, right), bounds(rle["counts"], (height, width)), box)


def check_form(segmentation: Any) -> None:
    """Checks that a segmentation is an RLE, or a list of flat polygons or of RLEs.

    Raises:
        SegmentationError: it has another form; the message tells which, and the form that is wanted.
    """
    if isinstance(segmentation, Mapping):
        return
    if not isinstance(segmentation, Sequence) or isinstance(segmentation, str | bytes):
        kind = "text" if isinstance(segmentation, str) else type(segmentation).__name__
        raise SegmentationError(f"the segmentation is a {kind}", f"{_POLYGONS}, or an RLE")
    if segmentation and all(isinstance(part, int | float) for part in segmentation):
        box = ' (a box goes to "box")' if len(segmentation) == 4 else ""
        raise SegmentationError(f"the segmentation is a flat list of numbers{box}", _POLYGONS)
    if len(segmentation) > 2 and all(_is_point(part) for part in segmentation):
        raise SegmentationError("the segmentation is a list of points [x, y]", _POLYGONS)
    for part in segmentation:
        if isinstance(part, str):
            raise SegmentationError("a polygon is a text", _POLYGONS)
        if isinstance(part, Sequence) and any(_is_point(value) for value in part):
            raise SegmentationError("a polygon is a list of points [x, y]", _POLYGONS)
        if part and isinstance(part, Sequence) and all(isinstance(v, list | tuple) for v in part):
            raise SegmentationError("its lists are nested more deeply than polygons are", _POLYGONS)


def _is_point(value: Any) -> bool:
    return isinstance(value, list | tuple) and len(value) == 2


def _compress(objects: Any, height: int, width: int) -> Any:
    """`frPyObjects`, whose type stubs list only some of the types that it accepts."""
    return coco_mask.frPyObjects(objects, height, width)


def checked_polygon(polygon: Any, height: int, width: int) -> list[float]:
    """Checks that pycocotools can draw a polygon: finite, and not far outside the image.

    pycocotools stores every point along each edge, so one coordinate of 1e12 would fill the memory.

    Raises:
        SegmentationError: the polygon is malformed.
    """
    if not isinstance(polygon, Sequence) or isinstance(polygon, str | bytes):
        raise SegmentationError(f"a polygon is a {type(polygon).__name__}", _POLYGONS)
    if len(polygon) % 2:
        raise SegmentationError(f"a polygon has an odd number of coordinates ({len(polygon)})")
    bound = 4 * max(height, width)
    for value in polygon:
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise SegmentationError(f"a polygon has the coordinate {_shown(value)}", _POLYGONS)
        # Integers are compared first: those beyond 1.8e308 cannot become floats.
        if not -bound <= value <= bound:
            raise SegmentationError(
                f"a polygon has the coordinate {_shown(value)}, outside of the image"
            )
    return [float(value) for value in polygon]


def _shown(value: Any) -> str:
    try:
        return f"{value:g}" if isinstance(value, float) else f"{value!r:.40}"
    except ValueError:  # Python does not print integers of more than 4,300 digits.
        return "of thousands of digits"


def checked_rle(rle: Mapping[str, Any], height: int, width: int) -> dict[str, Any]:
    """Checks that the runs of an RLE fill the image exactly, and compresses its counts.

    pycocotools writes past the end of its memory for other RLEs, or merges them in an endless loop.
    Empty runs, except for the first, are joined with their neighbours: if both masks of a union have an
    empty run at the same pixel, `merge` of pycocotools ends there, and `toBbox` gives another box.

    Args:
        rle: `{"size": [h, w], "counts": ...}`, counts compressed or a list of run lengths.
        height, width: size of the image in pixels.

    Raises:
        SegmentationError: the RLE is malformed, or its size is not that of the image.
    """
    size, counts = rle.get("size"), rle.get("counts")
    if size is None and counts is None:
        fields = ", ".join(map(repr, list(rle)[:4]))
        # GeoJSON, VIA and labelme have polygons in objects.
        raise SegmentationError(
            f"an object with the fields {fields:.60} is no RLE",
            f'{_POLYGONS}, or an RLE {{"size": [height, width], "counts": ...}}',
        )
    if not isinstance(size, Sequence) or list(size) != [height, width]:
        turned = isinstance(size, Sequence) and list(size) == [width, height]
        what = f"the RLE's size is {_shown(size)}, the image's [{height}, {width}]"
        raise SegmentationError(*((f"{what}: it is [width, height]", _RLE) if turned else (what,)))
    if isinstance(counts, str):
        _check_text(counts)
        counts = counts.encode("ascii", "replace")
    if isinstance(counts, bytes):
        runs = _runs(counts)
    elif isinstance(counts, Sequence) and all(type(run) is int for run in counts):
        # Objects, because an integer of any size may be among them.
        runs = np.array(counts, object)
    else:
        what = f"a {type(counts).__name__}"
        if isinstance(counts, list | tuple) and any(type(run) is float for run in counts):
            what = "numbers with a decimal point"
        elif isinstance(counts, list | tuple) and any(isinstance(run, str) for run in counts):
            what = "a list of texts"
        raise SegmentationError(f"the RLE's counts are {what}", _RLE)
    _check_runs(runs, height, width)
    if (runs[1:] == 0).any():
        counts = _without_empty_runs(runs.astype(np.int64))
    if isinstance(counts, bytes):
        return {"size": [height, width], "counts": counts}
    return _compress({"size": [height, width], "counts": list(counts)}, height, width)


def _check_text(counts: str) -> None:
    """Tells texts that other programs make of counts."""
    if re.match(r"""b['"]""", counts):
        raise SegmentationError(
            "the RLE's counts are Python's way of printing bytes, b'...'",
            'write what counts.decode("ascii") gives',
        )
    if re.fullmatch(r"[\[\s]*\d+([\s,]+\d+)+[\]\s]*", counts):
        raise SegmentationError("the RLE's counts are numbers in a text", _RLE)


def _without_empty_runs(runs: np.ndarray) -> list[int]:
    """Joins the neighbours of each empty run; only the first run may be empty."""
    values = np.flatnonzero(runs) % 2
    runs = runs[runs > 0]
    starts = np.flatnonzero(np.diff(values, prepend=2))
    joined = np.add.reduceat(runs, starts).tolist()
    return [0, *joined] if values[0] else joined


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
