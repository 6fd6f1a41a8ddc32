"""The protocols of generalized referring segmentation: `gres` and `gres_paper`."""

import dataclasses
from collections.abc import Mapping
from typing import ClassVar

from refseg_jax.evaluation.protocols.base import Counts, Pair, Protocol, Sums, exact, mean

#: Overlaps whose share of targeted pairs is reported, `Pr@X`.
PRECISION_AT = (0.7, 0.8, 0.9)

#: Pixels of the square on which ReLA evaluates, and to which `min_pixels` refers.
SQUARE = 480 * 480


@dataclasses.dataclass(frozen=True)
class Gres(Protocol):
    """ReLA's evaluator (`gres_model/evaluation/refer_evaluation.py` at its head).

    | target | says | IoU | adds to the union |
    |---|---|---|---|
    | empty | absent | 1 | nothing |
    | empty | present | 0 | the predicted mask |
    | there | absent | 0 | the predicted mask, though it counts as empty, or the target |
    | there | present | as usual | as usual |

    `gIoU` is the mean of the IoU over all pairs, `cIoU` the sum of intersections over the sum of
    unions, `N_acc` the share of pairs without a target for which the system says absent, `T_acc` that
    of pairs with a target for which it says present, `Pr@X` the share of pairs with a target whose
    IoU >= X. ReLA prints `gIoU`, `cIoU` and `Pr@X` as percentages.

    Attributes:
        min_pixels: where not 0, not `Pair.present` tells what the system says, but whether the mask
            has at least so many pixels. ReLA's paper clears masks of fewer than 50 and does not say at
            which size; its evaluator works on 480 x 480 pixels, so that the number is scaled by the
            area of the mask.
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
    min_pixels: int = 0

    def says_present(self, pair: Pair) -> bool:
        """Whether the system is taken to say that there is a target."""
        if not self.min_pixels:
            return pair.present
        height, width = pair.regions.size
        return pair.regions.counts().prediction * SQUARE >= self.min_pixels * height * width

    def missed_union(self, counts: Counts) -> int:
        """What a target that the system calls absent adds to the union."""
        return counts.union

    def measure(self, pair: Pair) -> Mapping[str, int]:
        """IoU, intersection, union, and which of the four outcomes it is."""
        counts, present = pair.regions.counts(), self.says_present(pair)
        if not counts.target:
            return {
                "iou": exact(0.0 if present else 1.0),
                "union": counts.prediction if present else 0,
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
    """`gres` as ReLA's paper has it (section 5.1): a prediction called absent is an empty mask.

    A target that the system calls absent then adds the target alone to the union, and `cIoU` is a
    little higher than the evaluator's. And since the paper tells by the foreground pixels whether a
    prediction is one, a mask without any is absent whatever `Pair.present` says. Everything else is as
    in `gres`; the paper's Pr@X says "higher than", and its numbers are the evaluator's.
    """

    name: ClassVar[str] = "gres_paper"
    comparable: ClassVar[str] = (
        "systems that clear the mask of what they call absent before they score it, as ReLA's paper "
        "describes; its own tables come from the evaluator (gres)"
    )

    def says_present(self, pair: Pair) -> bool:
        """Whether the system says so, and with a mask that has pixels."""
        return super().says_present(pair) and pair.regions.counts().prediction > 0

    def missed_union(self, counts: Counts) -> int:
        """The target: the prediction is cleared."""
        return counts.target
