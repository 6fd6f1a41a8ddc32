"""What every protocol is: integers of a pair, sums that merge in any order, scores.

All sums are Python integers. A number in [0, 1] such as a pair's IoU is summed exactly, as an integer
multiple of 2^-1074, and rounded once at the end: neither the order of the pairs nor the number of
processes changes a digit, and a state is as large for a million pairs as for one.
"""

import abc
import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any, ClassVar, Literal, NamedTuple, TypeAlias

import numpy as np

from refseg_jax.batch import GRANULARITIES
from refseg_jax.errors import UserError

#: What of a pair a protocol looks at: pixels counted at native size, or on a square; masks; soft maps.
Reads: TypeAlias = Literal["counts", "square", "masks", "map"]

#: Every float64 is an integer multiple of 2^-1074.
_EXPONENT = 1074


def exact(value: float) -> int:
    """A finite number as an integer multiple of 2^-1074, exactly."""
    numerator, denominator = value.as_integer_ratio()
    return numerator << (_EXPONENT + 1 - denominator.bit_length())


def mean(total: int, count: int) -> float:
    """The mean of `count` numbers whose `exact` integers add up to `total`, rounded once."""
    return total / (count << _EXPONENT)


class Counts(NamedTuple):
    """Pixels of a pair's masks.

    Attributes:
        intersection: in both. prediction, target: in either one.
    """

    intersection: int
    prediction: int
    target: int

    @property
    def union(self) -> int:
        """Pixels of prediction or target."""
        return self.prediction + self.target - self.intersection

    @property
    def iou(self) -> float:
        """Intersection over union; 0 where both are empty."""
        return self.intersection / self.union if self.union else 0.0


class Regions(abc.ABC):
    """The masks of a pair. A protocol asks for what it needs, so that nothing else is decoded.

    Attributes:
        size: native height and width.
    """

    size: tuple[int, int]

    @abc.abstractmethod
    def counts(self) -> Counts:
        """Pixels at native size."""

    @abc.abstractmethod
    def square_counts(self) -> Counts:
        """Pixels on LAVT's square: `refseg_jax.evaluation.protocols.square`."""

    @abc.abstractmethod
    def prediction(self) -> np.ndarray:
        """Bool `[H, W]`."""

    @abc.abstractmethod
    def target(self) -> np.ndarray:
        """Bool `[H, W]`."""

    @abc.abstractmethod
    def soft_map(self) -> np.ndarray:
        """U8 `[H, W]`, the probability as 0..255."""


@dataclasses.dataclass(frozen=True)
class Pair:
    """An expression, an image, and the masks that stand for it.

    Attributes:
        id: unique in the dataset.
        regions: the masks.
        present: the system says that the image contains something that the expression means.
        granularity: out of `GRANULARITIES`, or `""`.
        group: name of a video's expression, or of a group of images; or `""`.
        category: name of the kind; or `""`.
    """

    id: str
    regions: Regions
    present: bool
    granularity: str = ""
    group: str = ""
    category: str = ""


class Protocol(abc.ABC):
    """A published evaluation.

    Attributes:
        name: in configs and on the command line.
        comparable: one line, which published numbers the scores may stand beside.
        threshold: of probabilities, where the publication cuts its masks.
        reads: what of a pair's regions is looked at.
        columns: the scores that a table shows, and that are always there.
    """

    name: ClassVar[str]
    comparable: ClassVar[str]
    threshold: ClassVar[float] = 0.5
    reads: ClassVar[tuple[Reads, ...]] = ("counts",)
    columns: ClassVar[tuple[str, ...]]

    def takes(self, pair: Pair) -> bool:
        """Whether the pair is scored; the others are left out."""
        return True

    def bucket(self, pair: Pair) -> str:
        """Sums are kept apart by this name; a `UserError` where the pair does not say."""
        return ""

    @abc.abstractmethod
    def measure(self, pair: Pair) -> Mapping[str, int]:
        """Named integers of a pair, which are summed."""

    @abc.abstractmethod
    def scores(self, sums: Mapping[str, "Sums"]) -> dict[str, float]:
        """Scores in [0, 1] from the sums of each bucket; without those that have no sample."""


class Sums(dict[str, int]):
    """Sums by name; a name that was never counted is 0."""

    def __missing__(self, name: str) -> int:
        return 0

    def add(self, values: Mapping[str, int]) -> None:
        """Adds each value to the sum of its name."""
        for name, value in values.items():
            self[name] += value


@dataclasses.dataclass
class State:
    """The sums of the pairs that one process has seen.

    Attributes:
        protocol: what is counted.
        sums: by scope (`""` for all pairs, or a granularity) and bucket.
    """

    protocol: Protocol
    sums: dict[tuple[str, str], Sums] = dataclasses.field(default_factory=dict)

    def add(self, pair: Pair) -> None:
        """Counts a pair, among all and among those of its granularity."""
        if not self.protocol.takes(pair):
            return
        bucket = self.protocol.bucket(pair)
        values = self.protocol.measure(pair)
        for scope in {"", pair.granularity}:
            sums = self.sums.setdefault((scope, bucket), Sums())
            sums.add(values)
            sums["count"] += 1

    def merge(self, other: "State") -> "State":
        """The state of both processes' pairs."""
        merged = State(self.protocol)
        for state in (self, other):
            merged.add_json(state.to_json())
        return merged

    def to_json(self) -> list[Any]:
        """The sums as what JSON can write, for another process."""
        return [[*key, dict(values)] for key, values in self.sums.items()]

    def add_json(self, sums: list[Any]) -> None:
        """Adds the sums that `to_json` gave."""
        for scope, bucket, values in sums:
            self.sums.setdefault((scope, bucket), Sums()).add(values)

    def compute(self) -> dict[str, float]:
        """Scores in [0, 1], unrounded, and again as `<granularity>/<score>`.

        Among all pairs a share of nothing is 0, as the official evaluators have it; a granularity
        has the scores that it has samples for. Without any pair there is no score.
        """
        found: dict[str, float] = {}
        for prefix, buckets in self._scopes():
            scores = self.protocol.scores(buckets)
            if not prefix:
                scores = {**dict.fromkeys(self.protocol.columns, 0.0), **scores}
            found |= {prefix + name: value for name, value in scores.items()}
        return found

    def counts(self) -> dict[str, float]:
        """The number of pairs as `count`, and again as `<granularity>/count`."""
        number = {
            f"{prefix}count": float(sum(sums["count"] for sums in buckets.values()))
            for prefix, buckets in self._scopes()
        }
        return {"count": 0.0, **number}

    def _scopes(self) -> Iterable[tuple[str, dict[str, Sums]]]:
        for scope in ("", *GRANULARITIES):
            buckets = {b: sums for (s, b), sums in sorted(self.sums.items()) if s == scope}
            if buckets:
                yield f"{scope}/" if scope else "", buckets


def required(pair: Pair, field: Literal["granularity", "category"], name: str) -> str:
    """A field of the pair that a protocol cannot do without.

    Raises:
        UserError: it is empty.
    """
    value = getattr(pair, field)
    if not value:
        raise UserError(
            f"pair {pair.id!r} has no {field}, which {name} needs: its reference has to say it, or "
            "the pair stays out (in an evaluation: of config.data.granularities)"
        )
    return value
