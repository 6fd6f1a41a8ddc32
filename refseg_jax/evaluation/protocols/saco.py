"""The protocol of concept segmentation: `saco`."""

import dataclasses
import math
from collections.abc import Mapping
from typing import ClassVar

from refseg_jax.evaluation.protocols.base import Counts, Pair, Protocol, Sums

#: IoU thresholds: `np.linspace(0.5, 0.95, 10)`, of which the ninth is a little less than 0.9.
THRESHOLDS = (0.5, 0.55, 0.6, 0.65, 0.7, 0.75, 0.8, 0.85, 0.8999999999999999, 0.95)

#: Thresholds for which cgF1 is told alone, by their index: the evaluator prints these two.
_ALONE = {"cgF1@0.5": 0, "cgF1@0.75": 5}


def reached(counts: Counts) -> int:
    """Number of `THRESHOLDS` that the IoU of a pair reaches (>=)."""
    return sum(counts.iou >= threshold for threshold in THRESHOLDS)


@dataclasses.dataclass(frozen=True)
class Saco(Protocol):
    """SAM 3's classification-gated F1 (paper, E.3, equations 1 to 3; `sam3/eval/cgf1_eval.py`).

    `cgF1 = pmF1 * IL_MCC`. SAM 3 prints `cgF1` and `pmF1` as percentages.

    `pmF1`, the positive micro F1, is `2 TP / (2 TP + FP + FN)`, with counts over all pairs that have a
    target, at each IoU threshold (0.5, 0.55, ... 0.95; >=), and then the mean of the ten. `IL_MCC` is
    Matthews' correlation of "the system says present" with "there is a target", over all pairs. It is
    in [-1, 1], and so is `cgF1`; 0 where the system gives every pair the same answer. `cgF1@0.5` and
    `cgF1@0.75` have one threshold in place of the mean.

    SAM 3 counts instances. A union mask is one instance, in the prediction and in the reference:

    | target | system says | IoU | counts at a threshold |
    |---|---|---|---|
    | none | absent, or present | | nothing; the pair is for `IL_MCC` alone |
    | some | absent | | 1 FN |
    | some | present | reaches the threshold | 1 TP |
    | some | present | does not | 1 FP and 1 FN |

    So `IL_MCC` is SAM 3's own number, and `pmF1` is on pairs whose target is one instance. A pair of `n`
    instances counts once and not `n` times. There SAM 3's evaluator finds at most 1 TP and `n - 1` FN in
    a union mask, because it compares it with each instance; `pmF1` of such pairs is another number.

    `Pair.present` says what is present, without a mask being looked at, as the score of a detection
    (0.5 or more) does in SAM 3's evaluator. The annotation says what has a target (`Pair.targeted`); a
    target without a pixel has an IoU of 0. The evaluator adds 1e-4 to the divisors of F1 and 1e-6 to
    that of `IL_MCC`. Its paper leaves them out, as this does; from a hundred pairs on they move less
    than 0.0002. SA-Co/Gold has three annotations of each pair, of which the evaluator takes the one
    with the best F1; this takes the one that the reference has.
    """

    name: ClassVar[str] = "saco"
    comparable: ClassVar[str] = (
        "IL_MCC of SAM 3 on SA-Co; pmF1 and cgF1 only where each target is one instance (object/pmF1): "
        "a union mask of n instances is one instance here, and at most 1 TP and n - 1 FN there"
    )
    columns: ClassVar[tuple[str, ...]] = ("cgF1", "IL_MCC", "pmF1")
    absence: ClassVar[tuple[str, ...]] = ("IL_MCC",)

    def measure(self, pair: Pair) -> Mapping[str, int]:
        """The cell of the confusion matrix, and which thresholds the IoU reaches."""
        if not pair.targeted:
            return {"IL_FP" if pair.present else "IL_TN": 1}
        if not pair.present:
            return {"IL_FN": 1}
        return {"IL_TP": 1, **{f"TP{i}": 1 for i in range(reached(pair.regions.counts()))}}

    def scores(self, sums: Mapping[str, Sums]) -> dict[str, float]:
        """`pmF1` if there is a target, `IL_MCC` if there are pairs with and without, else no `cgF1`."""
        total = sums[""]
        there, said = total["IL_TP"] + total["IL_FN"], total["IL_TP"] + total["IL_FP"]
        found = {}
        if there:
            # 2 TP + FP + FN: each pair with a target is one of the reference, and one of the
            # prediction if the system says present.
            f1 = [2 * total[f"TP{i}"] / (there + total["IL_TP"]) for i in range(len(THRESHOLDS))]
            found["pmF1"] = math.fsum(f1) / len(f1)
        if 0 < there < total["count"]:
            found["IL_MCC"] = _correlation(total, there, said)
            found["cgF1"] = found["pmF1"] * found["IL_MCC"]
            found |= {name: f1[i] * found["IL_MCC"] for name, i in _ALONE.items()}
        return found


def _correlation(total: Sums, there: int, said: int) -> float:
    """Matthews' correlation coefficient (equation 2), 0 where the system always says the same."""
    number = total["count"]
    divisor = said * there * (number - said) * (number - there)
    if not divisor:
        return 0.0
    agreed = total["IL_TP"] * total["IL_TN"] - total["IL_FP"] * total["IL_FN"]
    return agreed / math.sqrt(divisor)
