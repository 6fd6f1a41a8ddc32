"""The protocol of group-wise referring segmentation: `grd`."""

import dataclasses
from collections.abc import Mapping
from typing import ClassVar

from refseg_jax.evaluation.protocols.base import Counts, Pair, Protocol, Sums, exact, mean
from refseg_jax.evaluation.protocols.saliency import e_measure_of_counts


@dataclasses.dataclass(frozen=True)
class Grd(Protocol):
    """GRSer's evaluation with negative samples (section 5.1), over every pair of every group.

    `mIoU` is the paper's mean of IoU-bar: the IoU where the target is there and the system says so, 1
    where neither is the case, and 0 where one of the two is. `Rneg` is the recall of negatives, the
    share of pairs without a target for which the system says absent. `Em` is the mean over the pairs
    of the E-measure of the mask, which is empty where the system says absent.

    GRSer has no public code, and its paper does not say how E is averaged over thresholds: its masks
    have none. What a perfect mask scores beyond 1 (`e_measure`) is cut off.
    """

    name: ClassVar[str] = "grd"
    comparable: ClassVar[str] = (
        "GRSer's tables on GRD and G-RefC/+/g in the GRES setting: mIoU is their mIoU-bar, Rneg "
        "their R_neg; Em only as far as the paper defines it, for it has no public code"
    )
    columns: ClassVar[tuple[str, ...]] = ("mIoU", "Em", "Rneg")

    def measure(self, pair: Pair) -> Mapping[str, int]:
        """IoU-bar, E-measure, and whether it is a negative and is told to be one."""
        counts = pair.regions.counts()
        if not pair.present:
            counts = Counts(0, 0, counts.target)
        negative = not counts.target
        height, width = pair.regions.size
        return {
            "iou": exact(float(not pair.present) if negative else counts.iou),
            "E": exact(e_measure_of_counts(counts, height * width)),
            "negative": int(negative),
            "rejected": int(negative and not pair.present),
        }

    def scores(self, sums: Mapping[str, Sums]) -> dict[str, float]:
        """`mIoU`, `Em`, `Rneg`."""
        total = sums[""]
        found = {
            "mIoU": mean(total["iou"], total["count"]),
            "Em": min(mean(total["E"], total["count"]), 1.0),
        }
        if total["negative"]:
            found["Rneg"] = total["rejected"] / total["negative"]
        return found
