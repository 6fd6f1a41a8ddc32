"""Base of all protocols: integers measured on each pair, sums that merge in any order, scores.

All sums are Python integers. A fraction such as a pair's IoU is summed exactly, as an integer multiple
of 2^-1074, and rounded once at the end. So neither the order of the pairs nor the number of processes
changes a digit, and the size of a state does not grow with the number of pairs.
"""

import abc
import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any, ClassVar, Literal, NamedTuple, TypeAlias

import numpy as np

from refseg_jax.batch import SCOPES
from refseg_jax.errors import UserError

#: What a protocol reads of a pair: pixel counts at native size, those on LAVT's square, masks, maps,
#: pixel counts of the classes with the largest logits.
Reads: TypeAlias = Literal["counts", "square", "masks", "map", "argmax"]

#: Every float64 is an integer multiple of 2^-1074.
_EXPONENT = 1074


def exact(value: float) -> int:
    """The integer `value * 2^1074`, exact for every finite number."""
    numerator, denominator = value.as_integer_ratio()
    return numerator << (_EXPONENT + 1 - denominator.bit_length())


def mean(total: int, count: int) -> float:
    """The mean of `count` numbers whose `exact` integers add up to `total`, rounded once."""
    return total / (count << _EXPONENT)


class Counts(NamedTuple):
    """Numbers of pixels of a pair's masks.

    Attributes:
        intersection: pixels in both masks.
        prediction: pixels in the predicted mask.
        target: pixels in the reference mask.
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
    """The masks of a pair, computed on demand, so that only what a protocol reads is decoded.

    Attributes:
        size: native height and width.
    """

    size: tuple[int, int]

    @abc.abstractmethod
    def counts(self) -> Counts:
        """Pixel counts at native size."""

    @abc.abstractmethod
    def square_counts(self) -> Counts:
        """Pixel counts on LAVT's square, see `refseg_jax.evaluation.protocols.square`."""

    @abc.abstractmethod
    def prediction(self) -> np.ndarray:
        """The predicted mask, bool `[H, W]` at native size."""

    @abc.abstractmethod
    def target(self) -> np.ndarray:
        """The reference mask, bool `[H, W]` at native size."""

    @abc.abstractmethod
    def soft_map(self) -> np.ndarray:
        """The predicted probability as 0..255, u8 `[H, W]` at native size."""


@dataclasses.dataclass(frozen=True)
class Pair:
    """An image and an expression, with the predicted and the reference mask.

    Attributes:
        id: unique in the dataset.
        regions: the masks.
        present: the system's answer to "does the image contain what the expression means".
        granularity: name out of `refseg_jax.batch.GRANULARITIES`, or `""`.
        group: name of the group of images, or of the video's expression, that the pair belongs to; or
            `""`.
        category: name of the category, or `""`.
        empty: whether the annotation says that the image contains nothing that the expression means;
            `None` where it does not say: then a reference without pixels is one of nothing.
        form: name out of `refseg_jax.batch.ABSENCES`, or `""`: why nothing matches, or the absence
            with which a match is compared.
        presence: probability of the presence head, in [0, 1]; `None` without one, or unknown.
    """

    id: str
    regions: Regions
    present: bool
    granularity: str = ""
    group: str = ""
    category: str = ""
    empty: bool | None = None
    form: str = ""
    presence: float | None = None

    @property
    def targeted(self) -> bool:
        """Whether the image contains a target, by `empty` where it is known, else by the mask.

        The two differ where the mask of a target has no pixel, e.g. a polygon without area.
        """
        return self.regions.counts().target > 0 if self.empty is None else not self.empty


class Protocol(abc.ABC):
    """A published evaluation.

    Attributes:
        name: name in configs and on the command line.
        comparable: one line on the published numbers that the scores can be compared with.
        threshold: probability in (0, 1) above which the publication's masks begin.
        reads: what the protocol reads of a pair's regions.
        columns: scores that tables show; `State.compute` always returns them.
        absence: those of them that are told for each form of absence, over its pairs with and without a
            target.
    """

    name: ClassVar[str]
    comparable: ClassVar[str]
    threshold: ClassVar[float] = 0.5
    reads: ClassVar[tuple[Reads, ...]] = ("counts",)
    columns: ClassVar[tuple[str, ...]]
    absence: ClassVar[tuple[str, ...]] = ()

    def takes(self, pair: Pair) -> bool:
        """Whether the pair is scored; pairs that are not do not count at all."""
        return True

    def bucket(self, pair: Pair) -> str:
        """Name of the sums that the pair is added to, e.g. its category.

        Raises:
            UserError: the pair does not have the field that names it.
        """
        return ""

    @abc.abstractmethod
    def measure(self, pair: Pair) -> Mapping[str, int]:
        """Integers of a pair by name, to be summed over the pairs of a bucket."""

    @abc.abstractmethod
    def scores(self, sums: Mapping[str, "Sums"]) -> dict[str, float]:
        """Scores from the sums of each bucket; leaves out scores without a sample.

        They are in [0, 1], but for a correlation and its products (`saco`), which are in [-1, 1].
        """


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
    """Sums over the pairs that were added.

    Attributes:
        protocol: measures the pairs and computes the scores.
        sums: `(scope, bucket)` -> sums; the scope is `""` for all pairs, a granularity, or `none/` and a
            form of absence.
    """

    protocol: Protocol
    sums: dict[tuple[str, str], Sums] = dataclasses.field(default_factory=dict)

    def add(self, pair: Pair) -> None:
        """Adds a pair to the sums of all pairs, of its granularity and of its form of absence."""
        if not self.protocol.takes(pair):
            return
        bucket = self.protocol.bucket(pair)
        values = self.protocol.measure(pair)
        scopes = {"", pair.granularity}
        if pair.form and self.protocol.absence:
            scopes.add(f"none/{pair.form}")
        for scope in scopes:
            sums = self.sums.setdefault((scope, bucket), Sums())
            sums.add(values)
            sums["count"] += 1

    def merge(self, other: "State") -> "State":
        """A new state with the pairs of both."""
        merged = State(self.protocol)
        for state in (self, other):
            merged.add_json(state.to_json())
        return merged

    def to_json(self) -> list[Any]:
        """The sums as JSON values, for another process."""
        return [[*key, dict(values)] for key, values in self.sums.items()]

    def add_json(self, sums: list[Any]) -> None:
        """Adds the sums of another state's `to_json`."""
        for scope, bucket, values in sums:
            self.sums.setdefault((scope, bucket), Sums()).add(values)

    def compute(self) -> dict[str, float]:
        """Scores over all pairs, and as `<granularity>/<score>` over those of each granularity.

        Pairs of a form of absence give `none/<form>/<score>`, for the scores of `Protocol.absence`.

        Scores have the range of `Protocol.scores` and are unrounded. Over all pairs, a column without
        a sample (`N_acc` where every pair has a target) is 0, as ReLA's evaluator prints it; a
        granularity leaves it out.

        Returns:
            Name -> score; empty if no pair was added.
        """
        found: dict[str, float] = {}
        for prefix, buckets in self._scopes():
            scores = self.protocol.scores(buckets)
            if not prefix:
                scores = {**dict.fromkeys(self.protocol.columns, 0.0), **scores}
            if prefix.count("/") == 2:
                scores = {name: scores[name] for name in self.protocol.absence if name in scores}
            found |= {prefix + name: value for name, value in scores.items()}
        return found

    def counts(self) -> dict[str, float]:
        """The number of pairs as `count`, and of each granularity or form as `<name>/count`."""
        number = {
            f"{prefix}count": float(sum(sums["count"] for sums in buckets.values()))
            for prefix, buckets in self._scopes()
        }
        return {"count": 0.0, **number}

    def _scopes(self) -> Iterable[tuple[str, dict[str, Sums]]]:
        for scope in ("", *SCOPES):
            buckets = {b: sums for (s, b), sums in sorted(self.sums.items()) if s == scope}
            if buckets:
                yield f"{scope}/" if scope else "", buckets


def required(pair: Pair, field: Literal["granularity", "category"], name: str) -> str:
    """A field of the pair that the protocol `name` cannot do without.

    Raises:
        UserError: the field is empty.
    """
    value = getattr(pair, field)
    if not value:
        raise UserError(
            f"pair {pair.id!r} has no {field}, which {name} needs: its reference has to say it, or "
            "the pair stays out (in an evaluation: of config.data.granularities)"
        )
    return value
