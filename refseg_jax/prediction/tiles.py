"""Predicts large images in overlapping tiles, so that small things keep their pixels.

A network looks at a square of a few hundred pixels: of a picture of 10,000 pixels a side, it sees every
25th. In tiles, each part of the picture is looked at by itself; where tiles overlap, their
logits are averaged with weights that fall towards each tile's border. The model sees no more than a tile
at a time: what an expression says about the whole picture ("the left one") it cannot know.

Memory is bounded by a strip of the picture, one tile high: finished rows become mask before the next
strip begins.
"""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from refseg_jax.errors import UserError
from refseg_jax.evaluation.counts import map_of_logits, mask_of_logits
from refseg_jax.prediction.encoding import ImageEncoder
from refseg_jax.prediction.painting import Painter, Prediction

#: Smallest side of a tile in pixels.
_SMALLEST = 32


@dataclasses.dataclass(frozen=True)
class Tiles:
    """How a picture is cut.

    Attributes:
        size: side of a tile in pixels. A picture that fits in one is not cut.
        overlap: least number of pixels that neighbours share; `None`: a quarter of `size`.
    """

    size: int
    overlap: int | None = None

    def __post_init__(self) -> None:
        """Checks the range.

        Raises:
            UserError: tiles are too small, or do not advance.
        """
        if self.size < _SMALLEST:
            raise UserError(f"tile={self.size}: give at least {_SMALLEST} pixels")
        if self.overlap is not None and not 0 <= self.overlap < self.size:
            raise UserError(
                f"overlap={self.overlap}: give 0 or more pixels, fewer than the tile's {self.size}"
            )

    @property
    def shared(self) -> int:
        """The overlap in pixels."""
        return self.size // 4 if self.overlap is None else self.overlap

    def fits(self, height: int, width: int) -> bool:
        """Whether a picture fits in one tile."""
        return max(height, width) <= self.size

    def starts(self, length: int) -> list[int]:
        """First pixels of the tiles along an axis, as evenly spread as whole pixels allow.

        Args:
            length: of the axis in pixels.
        """
        if length <= self.size:
            return [0]
        gaps = math.ceil((length - self.size) / (self.size - self.shared))
        return [round(i * (length - self.size) / gaps) for i in range(gaps + 1)]


def ramp(length: int, shared: int) -> np.ndarray:
    """Weights f32 `[length]` along one axis of a tile: rising over the overlap, then 1, then falling.

    Args:
        length: of the tile in pixels.
        shared: pixels of overlap.
    """
    distance = np.minimum(np.arange(1, length + 1), np.arange(length, 0, -1))
    return np.minimum(distance / (shared + 1), 1.0).astype(np.float32)


class Strip:
    """The sum of weighted logits over a strip of a picture, which moves down tile row by tile row."""

    def __init__(self, expressions: int, height: int, width: int) -> None:
        """Begins at the picture's top.

        Args:
            expressions: K.
            height, width: of the strip in pixels: a tile's height, the picture's width.
        """
        self.top = 0
        self._sum = np.zeros((expressions, height, width), np.float32)
        self._weight = np.zeros((height, width), np.float32)

    def add(self, logits: np.ndarray, left: int, weights: np.ndarray) -> None:
        """Adds a tile: f32 `[K, h, w]` from column `left` on, with weights f32 `[h, w]`."""
        columns = slice(left, left + logits.shape[2])
        self._sum[:, :, columns] += logits * weights
        self._weight[:, columns] += weights

    def finished(self, until: int) -> np.ndarray:
        """Logits f32 `[K, until - top, W]` of the rows above `until`; the strip moves there."""
        rows = until - self.top
        done = self._sum[:, :rows] / self._weight[:rows]
        for array in (self._sum, self._weight):
            kept = array[..., rows:, :].copy()
            array[..., : kept.shape[-2], :] = kept
            array[..., kept.shape[-2] :, :] = 0.0
        self.top = until
        return done


class _Canvas:
    """Mask, score and map of one expression, filled from above."""

    def __init__(self, size: tuple[int, int], painter: Painter, maps: bool) -> None:
        self._painter = painter
        self._mask = np.zeros(size, bool)
        self._map = np.zeros(size, np.uint8) if maps else None
        self._probability, self._pixels = 0.0, 0

    def fill(self, top: int, logits: np.ndarray) -> None:
        rows = slice(top, top + len(logits))
        mask = mask_of_logits(logits, self._painter.thresholds.mask)
        self._mask[rows] = mask
        self._probability += float(np.sum(1.0 / (1.0 + np.exp(-logits[mask].astype(np.float64)))))
        self._pixels += int(mask.sum())
        if self._map is not None:
            self._map[rows] = map_of_logits(logits)

    def prediction(self, margin: float | None) -> Prediction:
        score = self._probability / self._pixels if self._pixels else 0.0
        return self._painter.judged(self._mask, score, margin, self._map)


class _Tile(NamedTuple):
    """Logits f32 `[K, h, w]` of a tile at its own pixels, and those of the presence head, `[K]`."""

    logits: np.ndarray
    present: np.ndarray | None


class TiledPainter:
    """Predicts pictures in tiles."""

    def __init__(self, engine: Any, images: ImageEncoder, painter: Painter) -> None:
        self._engine, self._images, self._painter = engine, images, painter

    def __call__(
        self, rgb: np.ndarray, count: int, words: Any, tiles: Tiles, maps: bool
    ) -> list[Prediction]:
        """Predictions of the first `count` encoded expressions in an image u8 `[H, W, 3]`.

        Something matches if it does in any tile: the largest logit of the presence head counts.
        """
        height, width, _ = rgb.shape
        tall, wide = min(height, tiles.size), min(width, tiles.size)
        tops, lefts = tiles.starts(height), tiles.starts(width)
        weights = ramp(tall, tiles.shared)[:, None] * ramp(wide, tiles.shared)
        strip = Strip(count, tall, width)
        canvases = [_Canvas((height, width), self._painter, maps) for _ in range(count)]
        margins: list[np.ndarray] = []
        for top, below in zip(tops, [*tops[1:], height], strict=True):
            for left in lefts:
                tile = self._tile(rgb[top : top + tall, left : left + wide], count, words)
                strip.add(tile.logits, left, weights)
                if tile.present is not None:
                    margins.append(tile.present)
            for canvas, logits in zip(canvases, strip.finished(below), strict=True):
                canvas.fill(top, logits)
        said: Sequence[float | None] = [None] * count
        if margins:
            said = np.max(margins, 0).tolist()
        return [canvas.prediction(m) for canvas, m in zip(canvases, said, strict=True)]

    def _tile(self, rgb: np.ndarray, count: int, words: Any) -> _Tile:
        encoded = self._images.encode_row([np.ascontiguousarray(rgb)])
        found = self._engine.decode(encoded.features, words)
        masks, present = found["mask_logits"], found.get("present_logits")
        if self._engine.group_size is not None:
            masks, present = masks[:, 0], None if present is None else present[:, 0]
        ((affine, size),) = encoded.places
        logits = self._painter.canvas_logits(masks, affine[None], size)[0, :count]
        return _Tile(logits, None if present is None else np.asarray(present)[0, :count])
