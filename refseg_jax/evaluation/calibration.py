"""Scores at every threshold in one pass over a split, and the choice of the best.

Probabilities of pixels are compared as 256 grey values: grey value v is above `mask_threshold(t)`, and
below or at it, exactly as v > t. The presence head's logits are compared with `PRESENCE_LOGITS`.
"""

import dataclasses
import math
from collections.abc import Mapping
from typing import ClassVar

import numpy as np

from refseg_jax.errors import UserError
from refseg_jax.evaluation.protocols.base import Pair, Protocol, Reads, Sums, exact, mean
from refseg_jax.evaluation.thresholds import Thresholds, probability

#: Grey values t that are tried as thresholds of the mask.
_GREYS = range(255)

#: Logits that are tried as thresholds of presence; as probabilities 0.0003 to 0.9997, with 0.5.
PRESENCE_LOGITS = np.arange(-160, 161) * 0.05


def mask_threshold(grey: int) -> float:
    """The probability between grey values `grey` and `grey + 1`."""
    return (grey + 0.5) / 255.0


@dataclasses.dataclass(frozen=True)
class EveryThreshold(Protocol):
    """Scores of all thresholds; made for `curves`, and no protocol that a config can name.

    `mIoU@t` is the mean IoU of pairs with a target at the mask's threshold t, whatever the presence head
    says. `T_acc@j` is the share of pairs with a target for which the system says present at threshold
    j, `N_acc@j` the share of pairs without one for which it says absent, as in
    `refseg_jax.evaluation.protocols.gres.Gres`. j is a threshold of the presence head; of a model
    without one, which says present where the mask has a pixel, it is one of the mask.
    """

    name: ClassVar[str] = "every_threshold"
    comparable: ClassVar[str] = "nothing that is published"
    reads: ClassVar[tuple[Reads, ...]] = ("map",)
    columns: ClassVar[tuple[str, ...]] = ()
    absence: ClassVar[tuple[str, ...]] = tuple(
        f"{name}@{j}" for name in ("N_acc", "T_acc") for j in range(len(PRESENCE_LOGITS))
    )

    def measure(self, pair: Pair) -> Mapping[str, int]:
        """IoU at each threshold, and the highest threshold at which the system still says present."""
        grey, target = pair.regions.soft_map(), pair.regions.target()
        if pair.presence is None:
            last, head = int(grey.max()), 0
        else:
            odds = min(max(pair.presence, 1e-9), 1.0 - 1e-9)
            logit = math.log(odds / (1.0 - odds))
            # The number of thresholds below the logit; the tolerance is that of the sigmoid's rounding.
            last, head = int(np.searchsorted(PRESENCE_LOGITS, logit - 1e-9)), 1
        if not pair.targeted:
            return {f"absent/{last}": 1, "absent": 1, "head": head}
        inside = np.bincount(grey[target], minlength=256)
        every = inside + np.bincount(grey[~target], minlength=256)
        # Pixels above each grey value.
        common, predicted = (np.cumsum(n[::-1])[::-1][1:] for n in (inside, every))
        union = predicted + int(inside.sum()) - common
        iou = np.divide(common, union, out=np.zeros(len(_GREYS)), where=union > 0)
        return {
            **{f"iou/{t}": exact(float(value)) for t, value in enumerate(iou) if value},
            **{f"present/{last}": 1, "present": 1, "head": head},
        }

    def scores(self, sums: Mapping[str, Sums]) -> dict[str, float]:
        """`mIoU@t`, `T_acc@j` and `N_acc@j`; `head` is 1 if a presence head has answered."""
        (found,) = sums.values()
        thresholds = len(PRESENCE_LOGITS) if found["head"] else len(_GREYS)
        scores = {"head": float(found["head"] > 0)}
        if found["present"]:
            scores |= {f"mIoU@{t}": mean(found[f"iou/{t}"], found["present"]) for t in _GREYS}
        for name, kind, says in (("T_acc", "present", True), ("N_acc", "absent", False)):
            total = found[kind]
            if total:
                yes = _above([found[f"{kind}/{j}"] for j in range(thresholds + 1)])
                right = yes if says else total - yes
                scores |= {f"{name}@{j}": float(n) / total for j, n in enumerate(right)}
        return scores


def _above(last: list[int]) -> np.ndarray:
    """Of how many pairs `last` is above j, for each threshold j."""
    return np.cumsum(last[::-1])[::-1][1:]


@dataclasses.dataclass(frozen=True)
class Curves:
    """Scores over thresholds.

    Attributes:
        mask: thresholds of the mask, f64 `[255]`.
        mean_iou: mIoU at each, or empty where no pair has a target.
        presence: thresholds of the presence head, f64 `[321]`; `None` without a head.
        t_acc, n_acc: at each threshold of the head (of the mask, without one); empty where there are no
            such pairs.
        forms: form of absence -> N_acc at each threshold.
    """

    mask: np.ndarray
    mean_iou: np.ndarray
    presence: np.ndarray | None
    t_acc: np.ndarray
    n_acc: np.ndarray
    forms: dict[str, np.ndarray]

    @classmethod
    def of(cls, scores: Mapping[str, float]) -> "Curves":
        """The curves of what an evaluation by `EveryThreshold` returned."""

        def curve(name: str) -> np.ndarray:
            found = []
            while (key := f"{name}@{len(found)}") in scores:
                found.append(scores[key])
            return np.array(found)

        forms = {
            key.split("/")[1]: curve(key.removesuffix("@0"))
            for key in scores
            if key.startswith("none/") and key.endswith("/N_acc@0") and key.count("/") == 2
        }
        head = bool(scores.get("head"))
        return cls(
            np.array([mask_threshold(t) for t in _GREYS]),
            curve("mIoU"),
            np.array([probability(x) for x in PRESENCE_LOGITS]) if head else None,
            curve("T_acc"),
            curve("N_acc"),
            forms,
        )

    def at(self, thresholds: Thresholds) -> dict[str, float]:
        """mIoU, T_acc, N_acc and `none/<form>/N_acc` at the nearest thresholds that were tried."""
        found: dict[str, float] = {}
        place = _nearest(self.mask, thresholds.mask)
        if len(self.mean_iou):
            found["mIoU"] = float(self.mean_iou[place])
        if self.presence is not None:
            place = _nearest(self.presence, thresholds.presence)
        for name, values in (("T_acc", self.t_acc), ("N_acc", self.n_acc)):
            if len(values):
                found[name] = float(values[place])
        found |= {f"none/{form}/N_acc": float(v[place]) for form, v in sorted(self.forms.items())}
        return found

    def choose(self, config: Thresholds, t_acc: float | None = None) -> tuple[Thresholds, str]:
        """The best thresholds, and how that of presence was chosen.

        The mask's has the best mIoU. That of presence has the best sum of N_acc and T_acc or, with
        `t_acc`, the best N_acc among those whose T_acc is at least that. Of equal ones, the nearest to
        the config's wins.

        Args:
            config: the thresholds of the run's config.
            t_acc: the wanted T_acc, in (0, 1).

        Raises:
            UserError: no threshold has the wanted T_acc, or no pair has a target.
        """
        if not len(self.mean_iou):
            raise UserError("no pair of the split has a target; calibrate on another --split")
        mask = float(self.mask[_best(self.mean_iou, self.mask, config.mask)])
        if self.presence is None:
            return Thresholds(mask, config.presence, "calibrated"), "no presence head"
        if not len(self.n_acc):
            rule = "that of the config: no pair of the split lacks a target"
            return Thresholds(mask, config.presence, "calibrated"), rule
        if t_acc is None:
            value, rule = self.t_acc + self.n_acc, "best N_acc + T_acc"
        else:
            if self.t_acc.max() < t_acc:
                raise UserError(
                    f"--t_acc={t_acc:g}: no threshold reaches it; the most is {self.t_acc.max():.4f}"
                )
            value = np.where(self.t_acc >= t_acc, self.n_acc, -1.0)
            rule = f"best N_acc with T_acc of {t_acc:g} or more"
        best = _best(value, self.presence, config.presence)
        return Thresholds(mask, float(self.presence[best]), "calibrated"), rule


def _nearest(thresholds: np.ndarray, wanted: float) -> int:
    return int(np.abs(thresholds - wanted).argmin())


def _best(values: np.ndarray, thresholds: np.ndarray, known: float) -> int:
    """The place of the largest value; of equal ones, that nearest to the known threshold."""
    ties = np.flatnonzero(values >= values.max() - 1e-12)
    return int(ties[np.abs(thresholds[ties] - known).argmin()])
