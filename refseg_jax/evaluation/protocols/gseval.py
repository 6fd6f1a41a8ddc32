"""The protocol of GroundingSuite's GSEval: `gseval`."""

import dataclasses
from collections.abc import Mapping
from typing import ClassVar

from refseg_jax.evaluation.protocols.base import Pair, Protocol, Sums, exact, mean


@dataclasses.dataclass(frozen=True)
class GsEval(Protocol):
    """GSEval's evaluator in its mode `mask`: `gIoU`, the mean IoU over the expressions.

    The IoU is that of the two masks, 0 where both are empty. A reference of GSEval is one mask, also for
    several objects, so that a union mask is what it asks for. Its tables have `gIoU` over all
    expressions and over those of each class. Here a class is a granularity of the references:

    | `class_id` | class | granularity | score |
    |---|---|---|---|
    | 1 | Stuff | `category` | `category/gIoU` |
    | 2 | Part | `part` | `part/gIoU` |
    | 3 | Multi | `multi` | `multi/gIoU` |
    | 4 | Single | `object` | `object/gIoU` |

    GSEval has no expression without a target. The system's answer of `present` is not asked.

    The rules are those that the README of `hustvl/GroundingSuite` states, and of the copy of its
    evaluator in `WayneTomas/VPP-LLaVA`. That copy leaves expressions without a prediction out of the
    mean; here each one must have a prediction. Its mode `box` asks for rectangles, which have another
    score (accuracy at an IoU of 0.5); masks cannot be compared with it.
    """

    name: ClassVar[str] = "gseval"
    comparable: ClassVar[str] = (
        "GSEval's tables of masks: gIoU is All, category/gIoU Stuff, part/gIoU Part, multi/gIoU Multi, "
        "object/gIoU Single; not its tables of boxes"
    )
    columns: ClassVar[tuple[str, ...]] = ("gIoU",)

    def measure(self, pair: Pair) -> Mapping[str, int]:
        """The IoU."""
        return {"iou": exact(pair.regions.counts().iou)}

    def scores(self, sums: Mapping[str, Sums]) -> dict[str, float]:
        """`gIoU`."""
        total = sums[""]
        return {"gIoU": mean(total["iou"], total["count"])}
