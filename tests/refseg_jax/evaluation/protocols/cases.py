"""Random cases with all edge cases, and their conversion to the pairs of protocols."""

import dataclasses
from collections.abc import Iterable

import numpy as np

from refseg_jax.evaluation import predictions
from refseg_jax.evaluation.protocols import Pair, Protocol, State
from refseg_jax.evaluation.protocols.regions import RleRegions

GRANULARITIES = ("object", "part", "multi", "none", "category")


@dataclasses.dataclass(frozen=True)
class Case:
    """Two masks, bool `[H, W]`, with the system's answer and the annotation."""

    id: str
    prediction: np.ndarray
    target: np.ndarray
    present: bool
    granularity: str
    group: str
    category: str
    empty: bool | None = None
    form: str = ""

    @property
    def targeted(self) -> bool:
        """Whether there is a target: from the annotation, or from the mask if that says nothing."""
        return bool(self.target.any()) if self.empty is None else not self.empty

    @property
    def both(self) -> int:
        return int((self.prediction & self.target).sum())

    @property
    def either(self) -> int:
        return int((self.prediction | self.target).sum())


def random_cases(seed: int, number: int = 3000, largest: int = 12) -> list[Case]:
    """Cases with sizes down to one pixel, empty, full, equal and disjoint masks, and both answers.

    A third of the annotations do not say whether there is a target. The others agree or disagree with
    the mask.
    """
    rng = np.random.default_rng(seed)
    cases = []
    for i in range(number):
        height, width = rng.integers(1, largest + 1, 2) if i % 11 else (1, 1)
        prediction, target = (rng.random((height, width)) < rng.random() for _ in range(2))
        kind = rng.integers(8)
        if kind == 0:
            prediction = np.zeros_like(prediction)
        elif kind == 1:
            target = np.zeros_like(target)
        elif kind == 2:
            prediction, target = np.zeros_like(prediction), np.zeros_like(target)
        elif kind == 3:
            prediction = target.copy()
        elif kind == 4:
            prediction = ~target
        present = bool(prediction.any()) if i % 3 else bool(rng.integers(2))
        cases.append(
            Case(
                f"pair {i}",
                prediction,
                target,
                present,
                GRANULARITIES[rng.integers(len(GRANULARITIES))],
                f"group {rng.integers(40)}",
                f"kind {rng.integers(25)}",
                (None, not target.any(), i % 2 == 0)[i % 3],
            )
        )
    return cases


def pair_of(case: Case) -> Pair:
    predicted, reference = (
        {**rle, "counts": rle["counts"].encode()}
        for rle in map(predictions.encode, (case.prediction, case.target))
    )
    height, width = case.target.shape
    regions = RleRegions((height, width), predicted, reference)
    said = (case.present, case.granularity, case.group, case.category, case.empty, case.form)
    return Pair(case.id, regions, *said)


def state_of(protocol: Protocol, cases: Iterable[Case]) -> State:
    state = State(protocol)
    for case in cases:
        state.add(pair_of(case))
    return state


def scopes(cases: list[Case]) -> dict[str, list[Case]]:
    """Prefix of scores -> cases: all cases for `""`, and those of one granularity for its prefix."""
    found = {"": cases}
    for name in GRANULARITIES:
        chosen = [case for case in cases if case.granularity == name]
        if chosen:
            found[f"{name}/"] = chosen
    return found


def assert_equal(found: dict[str, float], expected: dict[str, float]) -> None:
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert 0.0 <= found[name] <= 1.0, name
        assert abs(found[name] - value) <= 1e-9, (name, found[name], value)
