"""Protocols whose unit is the category over a whole split: `semseg` and `part`."""

import dataclasses
from collections.abc import Mapping
from typing import ClassVar

from refseg_jax.evaluation.protocols.base import Pair, Protocol, Sums, exact, mean, required


@dataclasses.dataclass(frozen=True)
class Semseg(Protocol):
    """Mean IoU over categories (PASCAL VOC's and ADE20K's; UniLSeg's tables 4 and 5).

    A pair is one category on one image: `category` names it, and a category that is not on the image
    has an empty reference. `IoU/<category>` is the sum of its intersections over the sum of its unions
    in the whole split; `mIoU` is their mean over the categories that are in a mask at all, of either
    side.

    Benchmarks give each pixel one category and ignore pixels without a label. For their figure, write
    the masks of the best category per pixel, and leave the pixels without a label out of them.
    """

    name: ClassVar[str] = "semseg"
    comparable: ClassVar[str] = (
        "mIoU over classes of ADE20K-150, PASCAL-Context-59 and COCO-Stuff, where every image was "
        "asked for every class, each pixel is in one mask, and pixels without a label are in none"
    )
    columns: ClassVar[tuple[str, ...]] = ("mIoU",)

    def bucket(self, pair: Pair) -> str:
        """The category; a `UserError` where there is none."""
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

    Pairs of another granularity are left out; a pair that names none is taken to be a part.
    """

    name: ClassVar[str] = "part"
    comparable: ClassVar[str] = (
        "mIoU over part classes of PartImageNet (UniLSeg), where every image was asked for every "
        "part of its object; not the per-expression Part of RefCOCOm (refcocom)"
    )

    def takes(self, pair: Pair) -> bool:
        """Whether it is a part."""
        return pair.granularity in ("", "part")
