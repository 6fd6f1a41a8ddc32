"""Regions drawn on pictures: an outline around them, the rest dimmed, their own colours kept."""

from collections.abc import Sequence
from typing import NamedTuple

import cv2
import numpy as np

Colour = tuple[int, int, int]

#: Outlines are bright, since what is around a region is dark.
TARGET_COLOUR: Colour = (0, 215, 255)
PREDICTED_COLOUR: Colour = (255, 60, 180)
#: Of regions that are drawn together, in this order.
REGION_COLOURS: tuple[Colour, ...] = (
    PREDICTED_COLOUR,
    TARGET_COLOUR,
    (255, 225, 0),
    (60, 235, 90),
)

_RIM: Colour = (15, 15, 15)


class _Stroke(NamedTuple):
    """Widths in pixels: of an outline's coloured line, and of the dark rim on either side of it."""

    line: float
    rim: float

    @property
    def reach(self) -> float:
        return self.line + 2 * self.rim


def draw_regions(
    image: np.ndarray, masks: Sequence[np.ndarray], colours: Sequence[Colour] = REGION_COLOURS
) -> np.ndarray:
    """Outlines regions and dims all that lies outside of them.

    An outline lies outside its region, and inside its holes. So the pixels of a single region keep
    their values, and a region of one pixel shows. Of several regions the smaller lies on top: its
    outline may cover pixels of a larger one. At the edge of the picture an outline is open; a region
    that is the whole picture is framed on its outermost pixels.

    Args:
        image: u8 `[H, W, 3]`, RGB.
        masks: bool `[H, W]` each. Where all are empty, or there are none, the whole picture is
            dimmed: nothing matches.
        colours: of the outlines, RGB; repeated if there are more masks.

    Returns:
        u8 `[H, W, 3]`; the input is left alone.
    """
    stroke = _stroke(*image.shape[:2])
    result = dimmed(image)
    regions = [_framed(mask.astype(bool), stroke) for mask in masks]
    for number in sorted(range(len(regions)), key=lambda number: -int(regions[number].sum())):
        _outline(result, regions[number], colours[number % len(colours)], stroke)
        result[regions[number]] = image[regions[number]]
    return result


def dimmed(image: np.ndarray) -> np.ndarray:
    """A picture at half its luminance and with less colour, u8 `[H, W, 3]`, RGB."""
    grey = cv2.cvtColor(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB)
    return cv2.addWeighted(image, 0.3, grey, 0.2, 0)


def _stroke(height: int, width: int) -> _Stroke:
    """In proportion to the picture; by both of its sides, since it may be long and thin."""
    line = max(1.0, (height * width) ** 0.5 / 130)
    return _Stroke(line, max(1.0, line / 3))


def _framed(mask: np.ndarray, stroke: _Stroke) -> np.ndarray:
    """A mask of the whole picture leaves room for its outline."""
    if not mask.all():
        return mask
    height, width = mask.shape
    margin = min(round(stroke.reach), (height - 1) // 2, (width - 1) // 2)
    inner = np.zeros_like(mask)
    inner[margin : height - margin, margin : width - margin] = True
    return inner


def _outline(canvas: np.ndarray, mask: np.ndarray, colour: Colour, stroke: _Stroke) -> None:
    """Draws the line and its rims outside a mask, with smooth edges."""
    if not mask.any():
        return
    away = cv2.distanceTransform((~mask).astype(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
    near = (away > 0) & (away < stroke.reach + 1)
    away, under = away[near][:, None], canvas[near].astype(np.float32)

    def covered(end: float) -> np.ndarray:
        """The share of a pixel that lies nearer to the region's edge than `end`."""
        return np.clip(end + 1 - away, 0, 1)

    drawn = under + covered(stroke.reach) * (np.array(_RIM, np.float32) - under)
    line = covered(stroke.rim + stroke.line) - covered(stroke.rim)
    drawn += line * (np.array(colour, np.float32) - drawn)
    canvas[near] = drawn.round().astype(np.uint8)
