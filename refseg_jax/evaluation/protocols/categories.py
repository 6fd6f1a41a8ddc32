"""Protocols whose unit is the category over a whole split: `semseg` and `part`."""

import dataclasses
from collections.abc import Mapping
from typing import ClassVar

from refseg_jax.evaluation.protocols.base import Pair, Protocol, Sums, exact, mean, required


@dataclasses.dataclass(frozen=True)
class Semseg(Protocol):
    """Mean IoU over categories (PASCAL VOC's and ADE20K's; UniLSeg's tables 4 and 5).

    A pair is one category on one image: `category` names it, and the reference is empty if the image
    does not contain it. `IoU/<category>` is the sum of the category's intersections over the sum of
    its unions in the whole split. `mIoU` is the mean of these over all categories that occur in any
    prediction or reference.

    Benchmarks give each pixel one category and ignore pixels without a label. To get their figures,
    assign each pixel to its best category, and leave unlabelled pixels out of all masks.
    """

    name: ClassVar[str] = "semseg"
    comparable: ClassVar[str] = (
        "mIoU over classes of ADE20K-150, PASCAL-Context-59 and COCO-Stuff, where every image was "
        "asked for every class, each pixel is in one mask, and pixels without a label are in none"
    )
    columns: ClassVar[tuple[str, ...]] = ("mIoU",)

    def bucket(self, pair: Pair) -> str:
        """The category.

        Raises:
            UserError: the pair has none.
        """
        return required(pair, "category", self.name)

    def measure(self, pair: Pair) -> Mapping[str, int]:
        """Intersection and union."""
        counts = pair.regions.counts()
        return {"intersection": counts.intersection, "union": counts.union}

    def scores(self, sums: Mapping[str, Sums]) -> dict[str, float]:
        """`mIoU`, and `IoU/<category>`."""
        ious = {
            category: total["intersection"] / total["union"]
            for category, total in sums.items()
            if total["union"]
        }
        if not ious:
            return {}
        return {
            "mIoU": mean(sum(map(exact, ious.values())), len(ious)),
            **{f"IoU/{category}": iou for category, iou in ious.items()},
        }


@dataclasses.dataclass(frozen=True)
class Part(Semseg):
    """`semseg` over the categories of parts (PartImageNet; UniLSeg's table 7).

    Pairs of other granularities are left out; a pair without a granularity counts as a part.
    """

    name: ClassVar[str] = "part"
    comparable: ClassVar[str] = (
        "mIoU over part classes of PartImageNet (UniLSeg), where every image was asked for every "
        "part of its object; not the per-expression Part of RefCOCOm (refcocom)"
    )

    def takes(self, pair: Pair) -> bool:
        """Whether the pair is of a part."""
        return pair.granularity in ("", "part")
