"""Finds coordinates that are no pixels: shares of the picture (0..1) and per cent (0..100).

Other tools write polygons and boxes in these units. Drawn as pixels, a region in shares is one pixel in
the corner of the picture, and a region in per cent lies at another place.

A region seldom tells its unit alone, because a real one may lie in the corner. `find_other_unit` judges
a region by what no region in pixels shows, and by the box that is stated beside it. `Evidence` judges
all regions of a file together.
"""

import dataclasses
import itertools
from collections.abc import Callable, Hashable, Sequence
from typing import Any

#: Left, top, right and bottom.
Bounds = tuple[float, float, float, float]

#: Intersections over union: below the first a region is away from its box, from the second on it fits.
_AWAY, _FITS = 0.5, 0.8

#: A region may leave its picture by the larger of these pixels and this share of the longer side.
_SLACK, _SLACK_SHARE = 5, 0.02

#: So many different regions in so many pictures that all lie within 0..100, and in every half of that
#: range, are in per cent if the sides of the pictures have at least so many pixels.
_REGIONS, _PICTURES, _LARGE = 8, 4, 200

#: A region from exactly 0 to exactly 100 is in per cent if the sides have at least so many pixels.
_MEDIUM = 106

#: Decimals that people and annotation tools write of pixels; shares that were multiplied have more.
_DECIMALS = 3


@dataclasses.dataclass(frozen=True)
class _Unit:
    name: str
    whole: int

    def holds(self, bounds: Bounds) -> bool:
        """Whether a region is in the range of the unit; people draw over the border by a little."""
        slip = self.whole / 20
        return min(bounds) >= -slip and max(bounds) <= self.whole + slip

    @property
    def reason(self) -> str:
        return f"its coordinates are {self.name}, not pixels"


_SHARES = _Unit("shares of the picture (0..1)", 1)
_PER_CENT = _Unit("per cent (0..100)", 100)


def bounds_of(segmentation: Any) -> Bounds | None:
    """The bounds of all polygons of a segmentation; `None` if it is an RLE, empty or malformed."""
    try:
        points = _coordinates(segmentation)
        across, down = points[::2], points[1::2]
        return min(across) + 0.0, min(down) + 0.0, max(across) + 0.0, max(down) + 0.0
    except (TypeError, ValueError, OverflowError):
        return None


def leaves(bounds: Bounds, height: int, width: int) -> bool:
    """Whether a region leaves its picture by more than both 5 pixels and 2 % of the longer side."""
    slack = max(_SLACK, _SLACK_SHARE * max(height, width))
    left, top, right, bottom = bounds
    return max(-left, -top, right - width, bottom - height) > slack


def find_other_unit(
    segmentation: Any, height: int, width: int, box: Sequence[float] = ()
) -> tuple[str, str] | None:
    """Finds coordinates of a region that are evidently no pixels, or stand in another order.

    - Coordinates within 0..1 are shares, unless all of them are whole or half. Nobody draws a region of
      less than a pixel, and programs that trace one pixel write halves.
    - They are shares or per cent if the region fits the stated box only after it is scaled.
    - Coordinates within 0..100 that are not all whole and leave the picture are per cent.
    - x and y are swapped if the region fits the stated box only after they are swapped back.

    Args:
        segmentation: polygons; an RLE tells nothing.
        height, width: size of the picture in pixels.
        box: (x, y, width, height) as stated beside the region; `()` if there is none.

    Returns:
        The reason and the cure, or `None`.
    """
    bounds = bounds_of(segmentation)
    if bounds is None or max(height, width) == 1:
        return None
    shares = _SHARES.holds(bounds) and not _are_multiples(segmentation, 0.5)
    per_cent = _PER_CENT.holds(bounds) and leaves(bounds, height, width)
    per_cent = per_cent and not _are_multiples(segmentation, 1)
    if shares or _is_scaled(bounds, box, height, width, _SHARES):
        unit = _SHARES
    elif per_cent or _is_scaled(bounds, box, height, width, _PER_CENT):
        unit = _PER_CENT
    elif fits_only((bounds[1], bounds[0], bounds[3], bounds[2]), bounds, box):
        return "its x and y are swapped", "write x before y"
    else:
        return None
    return unit.reason, f"multiply x by {width / unit.whole:g} and y by {height / unit.whole:g}"


def fits_only(other: Bounds, bounds: Bounds, box: Sequence[float]) -> bool:
    """Whether other bounds fit a stated box (x, y, width, height), from which the bounds are away."""
    if not box:
        return False
    x, y, width, height = box
    stated = (x, y, x + width, y + height)
    return _overlap(bounds, stated) < _AWAY and _overlap(other, stated) >= _FITS


class Evidence:
    """What all regions of a file together tell about the unit of their coordinates.

    Attributes:
        first: the picture of the first region of small coordinates; `None` if there is none.
    """

    def __init__(self) -> None:
        self.first: Any = None
        self._regions = self._small = self._shares = 0
        self._spans = False
        # A few of these suffice: a file may have millions.
        self._bounds: set[Bounds] = set()
        self._pictures: dict[Any, tuple[int, int] | None] = {}
        # The largest left edge and the largest upper edge; the largest right or lower edge.
        self._furthest, self._reach = (0.0, 0.0), 0.0
        # Whether each region has a coordinate of many decimals.
        self._computed = True

    def add(
        self, segmentation: Any, picture: Hashable, size: tuple[int, int] | None = None
    ) -> None:
        """Adds a region.

        Args:
            segmentation: polygons; an RLE tells nothing and is passed over.
            picture: the picture of the region, which `find` passes to `size_of`.
            size: (height, width) of the picture, if they are known.
        """
        bounds = bounds_of(segmentation)
        if bounds is None:
            return
        self._regions += 1
        if not _PER_CENT.holds(bounds):
            return
        if not self._small:
            self.first = picture
        self._small += 1
        self._shares += _SHARES.holds(bounds)
        left, top, right, bottom = bounds
        self._furthest = max(self._furthest[0], left), max(self._furthest[1], top)
        self._reach = max(self._reach, right, bottom)
        self._computed = self._computed and not _has_few_decimals(segmentation)
        ends = ((left, right), (top, bottom))
        for along, across in (ends, ends[::-1]):
            self._spans |= along == (0, 100) and (across[0] == 0 or across[1] == 100)
        if len(self._bounds) < _REGIONS:
            self._bounds.add(bounds)
        if len(self._pictures) < _REGIONS:
            self._pictures.setdefault(picture, size)

    def find(self, size_of: Callable[[Any], tuple[int, int]] | None = None) -> str:
        """Finds out whether the coordinates of the file are no pixels.

        - They are shares if those of more than half of the regions lie within 0..1.
        - They are per cent if all lie within 0..100, the pictures are larger, and either a region spans
          this range exactly from border to border, or there are many regions in several pictures, or
          each region has more decimals than people write of pixels.

        Args:
            size_of: returns (height, width) of a picture that was added without a size.

        Returns:
            The reason and the cure, or `""`.
        """
        if 2 * self._shares > self._regions:
            return (
                f"{_SHARES.reason}; multiply x by the width of the picture and y by its height (if "
                "they are pixels, give RLE)"
            )
        if not self._small or self._small < self._regions:
            return ""
        many = len(self._bounds) >= _REGIONS and len(self._pictures) >= _PICTURES
        many = many and min(self._furthest) > _PER_CENT.whole / 2
        computed = self._computed and self._reach > _PER_CENT.whole / 2
        least = _MEDIUM if self._spans else _LARGE
        if (many or computed or self._spans) and self._smallest_side(size_of) >= least:
            return (
                f"{_PER_CENT.reason}; multiply x by the width of the picture / 100 and y by its "
                "height / 100 (if they are pixels, give RLE)"
            )
        return ""

    def _smallest_side(self, size_of: Callable[[Any], tuple[int, int]] | None) -> int:
        sizes = [
            size or (size_of(picture) if size_of else (0, 0))
            for picture, size in self._pictures.items()
        ]
        return min(map(min, sizes))


def _coordinates(segmentation: Any) -> list[Any]:
    """x, y, x, y ... of all polygons, which may be lists of points `[x, y]`."""
    if not isinstance(segmentation, list | tuple):
        raise TypeError("no polygons")
    values = list(itertools.chain.from_iterable(segmentation))
    if values and isinstance(values[0], list | tuple):
        return list(itertools.chain.from_iterable(values))
    return values


def _are_multiples(segmentation: Any, step: float) -> bool:
    return all(value % step == 0 for value in _coordinates(segmentation))


def _has_few_decimals(segmentation: Any) -> bool:
    return all(round(value, _DECIMALS) == value for value in _coordinates(segmentation))


def _is_scaled(bounds: Bounds, box: Sequence[float], height: int, width: int, unit: _Unit) -> bool:
    """Whether a region fits its box in pixels after it is scaled, and not before."""
    across, down = width / unit.whole, height / unit.whole
    left, top, right, bottom = bounds
    scaled = (left * across, top * down, right * across, bottom * down)
    return unit.holds(bounds) and fits_only(scaled, bounds, box)


def _overlap(one: Bounds, other: Bounds) -> float:
    """Intersection over union of two boxes."""
    across = min(one[2], other[2]) - max(one[0], other[0])
    down = min(one[3], other[3]) - max(one[1], other[1])
    both = max(across, 0.0) * max(down, 0.0)
    union = sum((box[2] - box[0]) * (box[3] - box[1]) for box in (one, other)) - both
    return both / union if union > 0 else 0.0
