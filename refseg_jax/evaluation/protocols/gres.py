"""The protocols of generalized referring segmentation: `gres` and `gres_paper`."""

import dataclasses
from collections.abc import Mapping
from typing import ClassVar

from refseg_jax.evaluation.protocols.base import Counts, Pair, Protocol, Sums, exact, mean

#: IoU thresholds `X` of `Pr@X`.
PRECISION_AT = (0.7, 0.8, 0.9)

#: Area in pixels of the square on which ReLA evaluates, and to which `min_pixels` refers.
SQUARE = 480 * 480


@dataclasses.dataclass(frozen=True)
class Gres(Protocol):
    """ReLA's public evaluator (`gres_model/evaluation/refer_evaluation.py` at its head).

    | target | system says | IoU | pixels added to the union |
    |---|---|---|---|
    | none | absent | 1 | none |
    | none | present | 0 | those of the prediction (and of the reference, if it has any) |
    | some | absent | 0 | those of the target or of the prediction, which is not cleared |
    | some | present | as usual | those of the target or of the prediction |

    `gIoU` is the mean IoU over all pairs. `cIoU` is the sum of intersections (0 in the first three
    rows) over the sum of unions. `N_acc` is the share of pairs without a target for which the system
    says absent, `T_acc` the share of pairs with a target for which it says present. `Pr@X` is the share
    of pairs with a target whose IoU >= X. ReLA prints `gIoU`, `cIoU` and `Pr@X` as percentages.

    The annotation says whether a pair has a target (`Pair.targeted`), as in ReLA: a target whose mask
    has no pixel counts as one, with an IoU of 0. Without any such annotation, the mask says it.

    One number differs on purpose. Where no pair lacks a target (RefCOCO), the evaluator prints 0 for
    `T_acc` too, because it computes both shares only if it has seen a pair without a target. Here
    `T_acc` is the share that it is anywhere else. Where no pair has a target, the evaluator stops with
    a division by zero; here `T_acc` and `Pr@X` are 0.

    Attributes:
        min_pixels: if not 0, a pair counts as present if its mask has at least this many pixels, and
            `Pair.present` is ignored. ReLA's paper clears masks of fewer than 50 pixels and does not
            state the resolution; its evaluator works on 480 x 480, so the number is scaled by the
            area of the mask over that of the square.
    """

    name: ClassVar[str] = "gres"
    comparable: ClassVar[str] = (
        "the numbers of ReLA's public code (gIoU, cIoU, N_acc, T_acc, Pr@0.7..0.9), which works on "
        "480 x 480 pixels: for the same digits give masks of that size; T_acc before 2023-08-26 was "
        "another number"
    )
    columns: ClassVar[tuple[str, ...]] = (
        *("gIoU", "cIoU", "N_acc", "T_acc"),
        *(f"Pr@{x}" for x in PRECISION_AT),
    )
    absence: ClassVar[tuple[str, ...]] = ("N_acc", "T_acc")
    min_pixels: int = 0

    def says_present(self, pair: Pair) -> bool:
        """Whether the pair counts as one for which the system says present."""
        if not self.min_pixels:
            return pair.present
        height, width = pair.regions.size
        return pair.regions.counts().prediction * SQUARE >= self.min_pixels * height * width

    def missed_union(self, counts: Counts) -> int:
        """Pixels that a pair with a target adds to the union if the system says absent."""
        return counts.union

    def measure(self, pair: Pair) -> Mapping[str, int]:
        """IoU, intersection, union, and which of the four outcomes the pair has."""
        counts, present = pair.regions.counts(), self.says_present(pair)
        if not pair.targeted:
            return {
                "iou": exact(0.0 if present else 1.0),
                "union": counts.union if present else 0,
                "empty": 1,
                "empty_right": int(not present),
            }
        if not present:
            return {"union": self.missed_union(counts), "targeted": 1}
        return {
            "iou": exact(counts.iou),
            "intersection": counts.intersection,
            "union": counts.union,
            "targeted": 1,
            "targeted_right": 1,
            **{f"Pr@{x}": int(counts.iou >= x) for x in PRECISION_AT},
        }

    def scores(self, sums: Mapping[str, Sums]) -> dict[str, float]:
        """`gIoU`, `cIoU`, `N_acc`, `T_acc`, `Pr@X`."""
        total = sums[""]
        found = {"gIoU": mean(total["iou"], total["count"])}
        if total["union"]:
            found["cIoU"] = total["intersection"] / total["union"]
        if total["empty"]:
            found["N_acc"] = total["empty_right"] / total["empty"]
        if total["targeted"]:
            found["T_acc"] = total["targeted_right"] / total["targeted"]
            found |= {f"Pr@{x}": total[f"Pr@{x}"] / total["targeted"] for x in PRECISION_AT}
        return found


@dataclasses.dataclass(frozen=True)
class GresPaper(Gres):
    """`gres` as ReLA's paper describes it (section 5.1): the mask is cleared if the system says absent.

    A pair with a target for which the system says absent then adds the target alone to the union, so
    `cIoU` is a little higher than the evaluator's. The paper calls a prediction without foreground
    pixels absent, so an empty mask is absent whatever `Pair.present` says. Everything else is as in
    `gres`. For `Pr@X` the paper writes "higher than", but its numbers come from the evaluator (>=).
    """

    name: ClassVar[str] = "gres_paper"
    comparable: ClassVar[str] = (
        "systems that clear the mask of what they call absent before they score it, as ReLA's paper "
        "describes; its own tables come from the evaluator (gres)"
    )

    def says_present(self, pair: Pair) -> bool:
        """Whether the system says present and the mask is not empty."""
        return super().says_present(pair) and pair.regions.counts().prediction > 0

    def missed_union(self, counts: Counts) -> int:
        """Pixels of the target alone, because the prediction is cleared."""
        return counts.target
