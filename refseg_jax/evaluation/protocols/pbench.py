"""The protocol of Falcon Perception's PBench: `pbench`."""

import dataclasses
from collections.abc import Mapping
from typing import ClassVar

from refseg_jax.evaluation.protocols.base import Pair, Protocol, Sums

#: IoU thresholds of the splits `level_0` to `level_4`; `dense` has the first alone.
THRESHOLDS = (0.5, 0.55, 0.6, 0.65, 0.7, 0.75, 0.8, 0.85, 0.9, 0.95)


@dataclasses.dataclass(frozen=True)
class Pbench(Protocol):
    """PBench's evaluator (`eval/metrics.py` of `tiiuae/Falcon-Perception`), on one mask for each pair.

    `F1` is the mean over the pairs with a target of each pair's F1, which is the mean over ten IoU
    thresholds (0.5, 0.55, ... 0.95; >=). A pair without a target is left out of it, even if the system
    finds something there. `F1@0.5` has one threshold: the `dense` split is scored so. The evaluator
    prints the four cells of "the system says present" against "there is a target"; `T_acc` is
    TP / (TP + FN) of them, `N_acc` is TN / (TN + FP).

    The evaluator matches predicted with true instances, one with one. A union mask is one instance, in
    the prediction and in the reference. So a pair's F1 at a threshold is 1 if the IoU reaches it (1 TP),
    and 0 if not (1 FP and 1 FN) or if the system says absent (1 FN). That is the evaluator's number
    where the target is one instance. A union mask of `n` instances scores at most 2 / (1 + n) there
    (1 TP and n - 1 FN), and up to 1 here.

    `Pair.present` and `Pair.targeted` say what is there, as in `saco`. The evaluator adds 1e-8 to its
    divisors; that moves `F1` by less than 1e-7. It suppresses one of two masks that overlap: with one
    mask there is nothing to suppress.
    """

    name: ClassVar[str] = "pbench"
    comparable: ClassVar[str] = (
        "Falcon Perception on a level of PBench: T_acc and N_acc are shares of its image-level counts; "
        "F1 only where each target is one instance (object/F1), so not on its dense split"
    )
    columns: ClassVar[tuple[str, ...]] = ("F1", "F1@0.5", "T_acc", "N_acc")
    absence: ClassVar[tuple[str, ...]] = ("N_acc", "T_acc")

    def measure(self, pair: Pair) -> Mapping[str, int]:
        """Which of the four outcomes the pair has, and the number of thresholds that its IoU reaches."""
        if not pair.targeted:
            return {"empty": 1, "empty_right": int(not pair.present)}
        if not pair.present:
            return {"targeted": 1}
        iou = pair.regions.counts().iou
        return {
            "targeted": 1,
            "targeted_right": 1,
            "reached": sum(iou >= threshold for threshold in THRESHOLDS),
            "half": int(iou >= THRESHOLDS[0]),
        }

    def scores(self, sums: Mapping[str, Sums]) -> dict[str, float]:
        """`F1`, `F1@0.5` and `T_acc` if there is a target, `N_acc` if there is a pair without."""
        total = sums[""]
        found = {}
        if there := total["targeted"]:
            found["F1"] = total["reached"] / (there * len(THRESHOLDS))
            found["F1@0.5"] = total["half"] / there
            found["T_acc"] = total["targeted_right"] / there
        if total["empty"]:
            found["N_acc"] = total["empty_right"] / total["empty"]
        return found
