"""The two thresholds of an answer: which pixels are in a mask, and whether anything matches."""

import dataclasses
import math
from typing import Any, Literal, TypeAlias

from refseg_jax.errors import UserError

#: Where thresholds come from: the run's config, its calibration, or the caller.
Origin: TypeAlias = Literal["config", "calibrated", "given"]


@dataclasses.dataclass(frozen=True)
class Thresholds:
    """Probabilities above which something counts.

    Attributes:
        mask: a pixel is in the mask where its probability is larger, in (0, 1).
        presence: something matches where the presence head's probability is larger, in (0, 1). 0.5 is
            the sign of the head's logit, by which the published systems decide. A model without a head
            does not read it.
        origin: who chose them; each line of a prediction says so.
    """

    mask: float
    presence: float = 0.5
    origin: Origin = "given"

    def __post_init__(self) -> None:
        """Checks the range.

        Raises:
            UserError: a threshold is not between 0 and 1.
        """
        for name in ("mask", "presence"):
            value = getattr(self, name)
            if not (isinstance(value, int | float) and 0.0 < value < 1.0):
                raise UserError(f"thresholds.{name}={value} is not between 0 and 1")

    @property
    def presence_logit(self) -> float:
        """The logit of `presence`: 0 at 0.5."""
        return math.log(self.presence / (1.0 - self.presence))

    def as_json(self) -> dict[str, Any]:
        """The thresholds as JSON values."""
        return dataclasses.asdict(self)


def probability(logit: float) -> float:
    """The sigmoid of a logit, in [0, 1]."""
    # Beyond this bound exp would overflow; the probability is 0 long before.
    return 1.0 / (1.0 + math.exp(-max(logit, -700.0)))


def of_config(config: Any) -> Thresholds:
    """The thresholds of a run's config.

    Args:
        config: section `eval` of the run's config.

    Raises:
        UserError: `config.eval.threshold` is not between 0 and 1.
        KeyError, TypeError, ValueError: the config is of another version.
    """
    mask = float(config["threshold"])
    if not 0.0 < mask < 1.0:
        raise UserError(f"config.eval.threshold={mask} is not between 0 and 1")
    return Thresholds(mask, origin="config")
