"""`gseval` against the rules of GSEval's evaluator in its mode `mask`, class by class."""

from collections import defaultdict

import numpy as np

from refseg_jax.evaluation.protocols import build_protocol
from tests.refseg_jax.evaluation.protocols.cases import (
    GRANULARITIES,
    Case,
    assert_equal,
    random_cases,
    state_of,
)

#: `class_id` of GSEval -> granularity, as the table of the docstring has it.
CLASSES = {1: "category", 2: "part", 3: "multi", 4: "object"}


def _slow(cases: list[tuple[int, Case]]) -> dict[str, float]:
    """Means of IoUs over each class and over all, from lists as the evaluator keeps them."""
    ious: defaultdict[int, list[float]] = defaultdict(list)
    for number, case in cases:
        ious[number].append(case.both / case.either if case.either else 0.0)
    everything = [value for values in ious.values() for value in values]
    found = {"gIoU": sum(everything) / len(everything)}
    for number, values in ious.items():
        found[f"{CLASSES[number]}/gIoU"] = sum(values) / len(values)
    return found


def test_every_expression_counts_once_in_its_class_and_in_all() -> None:
    numbers = {name: number for number, name in CLASSES.items()}
    assert set(numbers) == set(GRANULARITIES) - {"none"}
    cases = [case for case in random_cases(0) if case.granularity in numbers]
    expected = _slow([(numbers[case.granularity], case) for case in cases])
    assert len(expected) == 5
    assert_equal(state_of(build_protocol("gseval"), cases).compute(), expected)


def test_the_answer_of_present_is_not_asked() -> None:
    mask = np.eye(3, dtype=bool)
    for said in (True, False):
        state = state_of(build_protocol("gseval"), [Case("a", mask, mask, said, "", "", "")])
        assert state.compute() == {"gIoU": 1.0}
