"""Draws an object with named parts from supersampled polygons, in the object's own coordinates."""

import functools
import math
from collections.abc import Sequence

import cv2
import numpy as np

#: Red, green, blue in 0..255.
Colour = tuple[float, float, float]
Point = tuple[float, float]

#: Subpixels of a pixel in each direction; odd, so that a pixel has a central one.
SUPERSAMPLING = 3
_QUARTER = tuple(math.pi / 8 * step for step in range(5))
_SHIFT = 4  # Fractional bits of OpenCV's polygon coordinates.


def shade(colour: Colour, factor: float) -> Colour:
    """A colour made darker (factor < 1) or lighter, towards white (factor > 1)."""
    if factor <= 1:
        return tuple(c * factor for c in colour)  # pyright: ignore[reportReturnType]
    return mix(colour, (255.0, 255.0, 255.0), factor - 1)


def mix(a: Colour, b: Colour, share: float) -> Colour:
    """Mixes two colours; `share` (0..1) is that of `b`."""
    return tuple(p + (q - p) * share for p, q in zip(a, b, strict=True))  # pyright: ignore[reportReturnType]


class Painter:
    """A canvas for one object.

    x runs from 0 to 1 over the object's width, and y, downwards, has the same unit. Every shape names
    the part that it belongs to (`""`: the body, no part), and covers what was painted before, in the
    colour image and in the label map.
    """

    def __init__(
        self, width: float, aspect: float, *, flip: bool, angle: float, headroom: float = 0.0
    ):
        """Prepares an empty canvas.

        Args:
            width: width of the object in pixels.
            aspect: width / height, headroom included.
            flip: mirror left and right.
            angle: rotation in degrees, counterclockwise.
            headroom: room above y = 0, in widths.
        """
        height = width / aspect
        turn = math.radians(angle)
        cos, sin = math.cos(turn), math.sin(turn)
        box_w = abs(width * cos) + abs(height * sin)
        box_h = abs(width * sin) + abs(height * cos)
        #: Size of the canvas in pixels of the image, with a margin of one pixel for outlines.
        self.width, self.height = math.ceil(box_w) + 2, math.ceil(box_h) + 2
        scale = width * SUPERSAMPLING
        matrix = np.array([[cos, sin], [-sin, cos]]) * scale
        if flip:
            matrix = matrix @ np.diag([-1.0, 1.0])
        centre = np.array([self.width, self.height]) * (SUPERSAMPLING / 2)
        self._matrix = matrix
        self._offset = centre - matrix @ np.array([0.5, 0.5 / aspect - headroom])
        self._colour = np.zeros(
            (self.height * SUPERSAMPLING, self.width * SUPERSAMPLING, 3), np.uint8
        )
        self._label = np.zeros(self._colour.shape[:2], np.uint8)
        self._scale = scale
        #: Part names; the label of `parts[i]` is i + 1.
        self.parts: list[str] = [""]

    def polygon(
        self, points: Sequence[Point], part: str, colour: Colour, *, outline: float = 0.62
    ) -> None:
        """Fills a polygon; `outline` is the brightness of its edge relative to `colour` (0: none)."""
        if part not in self.parts:
            self.parts.append(part)
        corners = np.asarray(points, np.float64) @ self._matrix.T + self._offset
        fixed = np.round((corners - 0.5) * (1 << _SHIFT)).astype(np.int32)[None]
        cv2.fillPoly(self._label, [fixed[0]], self.parts.index(part) + 1, 8, _SHIFT)
        cv2.fillPoly(self._colour, [fixed[0]], colour, 8, _SHIFT)
        if outline:
            edge = shade(colour, outline)
            cv2.polylines(self._colour, [fixed[0]], True, edge, 2, cv2.LINE_8, _SHIFT)

    def ellipse(
        self,
        centre: Point,
        radii: Point,
        part: str,
        colour: Colour,
        *,
        angle: float = 0.0,
        arc: tuple[float, float] = (0.0, 360.0),
        outline: float = 0.62,
    ) -> None:
        """Fills an ellipse, or the segment of it between two angles (degrees, clockwise)."""
        unit = _unit_arc(arc)
        x, y = unit[0] * radii[0], unit[1] * radii[1]
        cos, sin = math.cos(math.radians(angle)), math.sin(math.radians(angle))
        points = np.stack([centre[0] + x * cos - y * sin, centre[1] + x * sin + y * cos], 1)
        self.polygon(points, part, colour, outline=outline)  # pyright: ignore[reportArgumentType]

    def box(
        self,
        left: float,
        top: float,
        right: float,
        bottom: float,
        part: str,
        colour: Colour,
        *,
        radius: float = 0.0,
        outline: float = 0.62,
    ) -> None:
        """Fills a rectangle with rounded corners."""
        if not radius:
            points = [(left, top), (right, top), (right, bottom), (left, bottom)]
        else:
            corners = (
                (right - radius, bottom - radius, 0.0),
                (left + radius, bottom - radius, math.pi / 2),
                (left + radius, top + radius, math.pi),
                (right - radius, top + radius, 1.5 * math.pi),
            )
            points = [
                (x + radius * math.cos(start + t), y + radius * math.sin(start + t))
                for x, y, start in corners
                for t in _QUARTER
            ]
        self.polygon(points, part, colour, outline=outline)

    def curve(
        self, points: Sequence[Point], part: str, colour: Colour, *, outline: float = 0.62
    ) -> None:
        """Fills the smooth closed curve inside a polygon (Chaikin's corner cutting, three times)."""
        self.polygon(_smooth(tuple(points)), part, colour, outline=outline)  # pyright: ignore[reportArgumentType]

    def stroke(self, points: Sequence[Point], thickness: float, colour: Colour) -> None:
        """Draws an open line in the colour image only, as a detail of the parts that it crosses."""
        corners = np.asarray(points, np.float64) @ self._matrix.T + self._offset
        fixed = np.round((corners - 0.5) * (1 << _SHIFT)).astype(np.int32)
        width = max(1, round(thickness * self._scale))
        cv2.polylines(self._colour, [fixed], False, colour, width, cv2.LINE_8, _SHIFT)

    def speckle(self, part: str, colour: Colour, spots: Sequence[tuple[float, float, float]]):
        """Paints discs (x, y, radius) of another colour on the pixels that show a part."""
        label = self.parts.index(part) + 1
        stencil = np.zeros_like(self._label)
        for x, y, radius in spots:
            centre = np.array([x, y]) @ self._matrix.T + self._offset
            cv2.circle(
                stencil, tuple(np.round(centre).astype(int)), round(radius * self._scale), 1, -1
            )
        self._colour[(stencil == 1) & (self._label == label)] = np.round(colour)

    def finish(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Averages the subpixels.

        Returns:
            `colour` f32 `[height, width, 3]` in 0..255, premultiplied by `alpha`;
            `alpha` f32 `[height, width]` in 0..1, the covered share of a pixel;
            `label` u8 `[height, width]`, the label of the central subpixel: index in `parts` + 1, or 0
            where nothing is painted.
        """
        size = (self.width, self.height)
        inside = self._label > 0
        painted = cv2.bitwise_and(self._colour, self._colour, mask=inside.view(np.uint8))
        colour = cv2.resize(painted, size, interpolation=cv2.INTER_AREA).astype(np.float32)
        covered = inside.astype(np.float32)
        alpha = cv2.resize(covered, size, interpolation=cv2.INTER_AREA)
        half = SUPERSAMPLING // 2
        return colour, alpha, self._label[half::SUPERSAMPLING, half::SUPERSAMPLING].copy()


@functools.lru_cache(maxsize=256)
def _smooth(points: tuple[Point, ...]) -> np.ndarray:
    """Cuts the corners of a ring three times: f64 `[8 * len(points), 2]`."""
    ring = np.array(points, np.float64)
    for _ in range(3):
        following = np.roll(ring, -1, 0)
        ring = np.stack([0.75 * ring + 0.25 * following, 0.25 * ring + 0.75 * following], 1)
        ring = ring.reshape(-1, 2)
    return ring


@functools.cache
def _unit_arc(arc: tuple[float, float]) -> np.ndarray:
    """Points of the unit circle between two angles in degrees, f64 `[2, 28]`."""
    closed = arc[1] - arc[0] >= 360
    steps = np.radians(np.linspace(*arc, 28, endpoint=not closed))
    return np.stack([np.cos(steps), np.sin(steps)])
