"""The protocol of group-wise referring segmentation: `grd`."""

import dataclasses
from collections.abc import Mapping
from typing import ClassVar

from refseg_jax.evaluation.protocols.base import Counts, Pair, Protocol, Sums, exact, mean
from refseg_jax.evaluation.protocols.saliency import e_measure_of_counts


@dataclasses.dataclass(frozen=True)
class Grd(Protocol):
    """GRSer's evaluation with negative samples (section 5.1), over every pair of every group.

    `mIoU` is the paper's adapted mIoU. A pair scores its IoU if there is a target and the system says
    present, 1 if there is none and the system says absent, and 0 otherwise. The annotation says whether
    there is a target (`Pair.targeted`). `Rneg` is the recall of negatives: the share of pairs without a
    target for which the system says absent. `Em` is the mean over all pairs of the mask's E-measure,
    where the mask is empty if the system says absent.

    GRSer has no public code. Its paper does not say over which thresholds `Em` averages; here the mask
    is scored, which has none. `Em` is cut at 1, because a perfect mask scores a little more (see
    `refseg_jax.evaluation.protocols.saliency.e_measure`).
    """

    name: ClassVar[str] = "grd"
    comparable: ClassVar[str] = (
        "GRSer's tables on GRD and G-RefC/+/g in the GRES setting: mIoU is their mIoU-bar, Rneg "
        "their R_neg; Em only as far as the paper defines it, for it has no public code"
    )
    columns: ClassVar[tuple[str, ...]] = ("mIoU", "Em", "Rneg")
    absence: ClassVar[tuple[str, ...]] = ("Rneg",)

    def measure(self, pair: Pair) -> Mapping[str, int]:
        """Adapted IoU, E-measure, whether the pair is negative, and whether it is rejected rightly."""
        counts = pair.regions.counts()
        if not pair.present:
            counts = Counts(0, 0, counts.target)
        negative = not pair.targeted
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
