"""Protocols whose unit is the expression: `cris`, `refcocom` and `lavt`."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import ClassVar

import numpy as np

from refseg_jax.evaluation.protocols.base import (
    Counts,
    Pair,
    Protocol,
    Reads,
    Sums,
    exact,
    mean,
    required,
)

#: IoU thresholds `X` of `Pr@X`.
PRECISION_AT = (0.5, 0.6, 0.7, 0.8, 0.9)
_PRECISIONS = tuple((f"Pr@{x}", x) for x in PRECISION_AT)


@dataclasses.dataclass(frozen=True)
class Cris(Protocol):
    """Per-expression IoU at the image's own size (CRIS, `engine.inference`).

    `mIoU` is the mean IoU of the expressions, 0 where both masks are empty. `Pr@X` is the share of
    expressions with IoU > X. `oIoU` is the sum of intersections over the sum of unions; CRIS does not
    report it, but its descendants do.

    CRIS adds 1e-6 to each union. That moves no printed digit of `mIoU`, which leaves it out, but it
    decides at the edge of `Pr@X`, which does not. There CRIS has X as a float32 number, a little less
    than 0.7 and 0.9: an IoU of exactly 7/10 or 9/10 lies above it from unions of 60 or 40 pixels on.

    How masks are made from logits is not part of the protocol: see `config.eval.resample`.
    """

    name: ClassVar[str] = "cris"
    comparable: ClassVar[str] = (
        "CRIS, ETRIS, UniRES and UniLSeg (whose paper cuts masks at 0.5): mIoU, oIoU and Pr@X per "
        "expression at the image's own size"
    )
    threshold: ClassVar[float] = 0.35
    columns: ClassVar[tuple[str, ...]] = ("mIoU", "oIoU", *(f"Pr@{x}" for x in PRECISION_AT))

    def measure(self, pair: Pair) -> Mapping[str, int]:
        """IoU, intersection, union, and for each X whether IoU > X."""
        return _measure(pair.regions.counts(), _is_above)

    def scores(self, sums: Mapping[str, Sums]) -> dict[str, float]:
        """`mIoU`, `oIoU`, `Pr@X`."""
        return _scores(sums[""])


@dataclasses.dataclass(frozen=True)
class RefCOCOm(Cris):
    """`cris` on objects and parts (UniRES): `mIoU` is *Object & Part*, over all their expressions.

    `object/mIoU` and `part/mIoU` are the paper's other two columns. The paper does not state how
    *Object & Part* is made; its tables fit the mean over the pooled expressions, and not the mean of
    the two columns. Expressions of other granularities are left out.
    """

    name: ClassVar[str] = "refcocom"
    comparable: ClassVar[str] = (
        "UniRES on RefCOCOm: object/mIoU is its Object column (RefCOCO's own expressions), "
        "part/mIoU is Part, mIoU is Object & Part"
    )

    def takes(self, pair: Pair) -> bool:
        """Whether the pair is of an object or a part.

        Raises:
            UserError: the pair has no granularity.
        """
        return required(pair, "granularity", self.name) in ("object", "part")


@dataclasses.dataclass(frozen=True)
class Lavt(Protocol):
    """Per-expression IoU on a square of 480 x 480 pixels (LAVT, `test.py`).

    Both masks are resized to the square by nearest neighbour, as LAVT does with its reference, without
    keeping the aspect ratio (`refseg_jax.evaluation.protocols.square`). Masks of that size stay as
    they are. `Pr@X` is the share of expressions with IoU >= X; the IoU is 0 where both masks are empty.

    LAVT predicts on the square, and its reference lacks the pixels that two polygons of an object
    cover. To get its figure to the digit, score predictions and references of 480 x 480 pixels.
    """

    name: ClassVar[str] = "lavt"
    comparable: ClassVar[str] = (
        "LAVT and its descendants: mIoU, oIoU and Pr@X (>=) per expression on 480 x 480 pixels; "
        "masks of another size are resized by nearest neighbour"
    )
    reads: ClassVar[tuple[Reads, ...]] = ("square",)
    columns: ClassVar[tuple[str, ...]] = Cris.columns

    def measure(self, pair: Pair) -> Mapping[str, int]:
        """IoU, intersection, union, and for each X whether IoU >= X."""
        return _measure(pair.regions.square_counts(), lambda counts, x: counts.iou >= x)

    def scores(self, sums: Mapping[str, Sums]) -> dict[str, float]:
        """`mIoU`, `oIoU`, `Pr@X`."""
        return _scores(sums[""])


def _measure(counts: Counts, reaches: Callable[[Counts, float], bool]) -> dict[str, int]:
    return {
        "iou": exact(counts.iou),
        "intersection": counts.intersection,
        "union": counts.union,
        **{name: int(reaches(counts, x)) for name, x in _PRECISIONS},
    }


def _is_above(counts: Counts, x: float) -> bool:
    """CRIS's `iou > x` in float64, with its IoU and its float32 threshold."""
    return counts.intersection / (counts.union + 1e-6) > float(np.float32(x))


def _scores(sums: Sums) -> dict[str, float]:
    number = sums["count"]
    return {
        "mIoU": mean(sums["iou"], number),
        "oIoU": sums["intersection"] / sums["union"] if sums["union"] else 0.0,
        **{name: sums[name] / number for name, _ in _PRECISIONS},
    }
