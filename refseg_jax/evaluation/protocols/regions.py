"""The masks of a pair: as arrays in an evaluation, as RLE in the scorer."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import numpy as np
from pycocotools import mask as coco_mask

from refseg_jax.evaluation.counts import map_of_logits, mask_of_logits
from refseg_jax.evaluation.protocols import square
from refseg_jax.evaluation.protocols.base import Counts, Regions


@dataclasses.dataclass(frozen=True)
class CountedRegions(Regions):
    """Regions that an evaluation has counted on its devices.

    Attributes:
        size: native height and width.
        native: pixel counts at native size.
        squared: pixel counts on LAVT's square, or `None` where no protocol reads them.
        reference: u8 `[H, W]` of 0/1.
        logits: f32 `[H, W]`, or `None` where neither masks nor maps are read.
        threshold: probability in (0, 1) above which a pixel belongs to the mask.
    """

    size: tuple[int, int]
    native: Counts
    squared: Counts | None
    reference: np.ndarray
    logits: np.ndarray | None
    threshold: float

    def counts(self) -> Counts:
        """See `Regions`."""
        return self.native

    def square_counts(self) -> Counts:
        """See `Regions`."""
        assert self.squared is not None
        return self.squared

    def prediction(self) -> np.ndarray:
        """See `Regions`."""
        assert self.logits is not None
        return mask_of_logits(self.logits, self.threshold)

    def target(self) -> np.ndarray:
        """See `Regions`."""
        return self.reference.astype(bool)

    def soft_map(self) -> np.ndarray:
        """See `Regions`."""
        assert self.logits is not None
        return map_of_logits(self.logits)


@dataclasses.dataclass(frozen=True)
class RleRegions(Regions):
    """Regions as compressed COCO RLE, counted without decoding them.

    Attributes:
        size: native height and width.
        predicted, reference: RLE dicts of that size. Their runs must fill it, and only the first may
            be empty: pycocotools does not check this and does not survive anything else.
        grey: makes the soft map; `None` takes the mask as a map of 0 and 255.
    """

    size: tuple[int, int]
    predicted: dict[str, Any]
    reference: dict[str, Any]
    grey: Callable[[], np.ndarray] | None = None

    def counts(self) -> Counts:
        """See `Regions`."""
        return self._counts

    @functools.cached_property
    def _counts(self) -> Counts:
        both: Any = [self.predicted, self.reference]
        prediction, target = map(int, coco_mask.area(both))  # pyright: ignore[reportArgumentType]
        if not prediction or not target:
            return Counts(0, prediction, target)
        shared: Any = coco_mask.merge(both, intersect=True)
        return Counts(int(coco_mask.area(shared)), prediction, target)

    def square_counts(self) -> Counts:
        """See `Regions`."""
        return square_counts(self.prediction(), self.target())

    def prediction(self) -> np.ndarray:
        """See `Regions`."""
        return _decoded(self.predicted)

    def target(self) -> np.ndarray:
        """See `Regions`."""
        return _decoded(self.reference)

    def soft_map(self) -> np.ndarray:
        """See `Regions`."""
        return self.grey() if self.grey is not None else self.prediction() * np.uint8(255)


def square_counts(prediction: np.ndarray, target: np.ndarray) -> Counts:
    """Pixel counts of two masks bool `[H, W]` on LAVT's square."""
    return Counts(*map(square.pixels, (prediction & target, prediction, target)))


def _decoded(rle: Any) -> np.ndarray:
    return coco_mask.decode(rle).view(bool)
