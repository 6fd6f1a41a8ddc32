"""`pbench` against the rules of PBench's evaluator, on instances and with every matching."""

import numpy as np
import pytest

from refseg_jax.evaluation.protocols import build_protocol
from tests.refseg_jax.evaluation.protocols.cases import (
    Case,
    assert_equal,
    random_cases,
    scopes,
    state_of,
)
from tests.refseg_jax.evaluation.protocols.instances import counts, of_unions, runs

TEN = [0.5, 0.55, 0.6, 0.65, 0.7, 0.75, 0.8, 0.85, 0.9, 0.95]


def _f1(predicted: list[np.ndarray], true: list[np.ndarray], thresholds: list[float]) -> float:
    """F1 of a sample with a target: the mean over the thresholds."""
    values = []
    for threshold in thresholds:
        tp, fp, fn = counts(predicted, true, threshold) if predicted else (0, 0, len(true))
        values.append(2 * tp / (2 * tp + fp + fn))
    return float(np.mean(values))


def _slow(cases: list[Case]) -> dict[str, float]:
    positive = [of_unions(case) for case in cases if case.targeted]
    negative = [of_unions(case) for case in cases if not case.targeted]
    found = {}
    if positive:
        found["F1"] = float(np.mean([_f1(*pair, TEN) for pair in positive]))
        found["F1@0.5"] = float(np.mean([_f1(*pair, [0.5]) for pair in positive]))
        found["T_acc"] = float(np.mean([bool(predicted) for predicted, _ in positive]))
    if negative:
        found["N_acc"] = float(np.mean([not predicted for predicted, _ in negative]))
    return found


def test_all_outcomes_count_as_the_evaluator_says() -> None:
    cases = random_cases(0)
    outcomes = {(case.present, case.targeted, bool(case.target.any())) for case in cases}
    assert len(outcomes) == 8
    expected = {
        prefix + key: value
        for prefix, chosen in scopes(cases).items()
        for key, value in _slow(chosen).items()
    }
    assert_equal(state_of(build_protocol("pbench"), cases).compute(), expected)


def test_something_that_is_not_there_counts_for_n_acc_alone() -> None:
    mask = np.ones((2, 2), bool)
    right = Case("a", mask, mask, True, "object", "", "")
    false_yes = [Case(str(i), mask, ~mask, True, "none", "", "") for i in range(9)]
    found = state_of(build_protocol("pbench"), [right, *false_yes]).compute()
    assert (found["F1"], found["T_acc"], found["N_acc"]) == (1.0, 1.0, 0.0)


@pytest.mark.parametrize("number", [1, 2, 3, 4])
def test_a_union_of_instances_scores_less_for_the_evaluator(number: int) -> None:
    """At most 2 / (1 + n), as the docstring says: 1 where there is one instance."""
    scores = []
    for true in (runs(20, *[1] * (number - 1)), runs(*[3] * number)):
        union = np.logical_or.reduce(true)
        case = Case("a", union, union, True, "multi", "", "")
        assert state_of(build_protocol("pbench"), [case]).compute()["F1@0.5"] == 1.0
        scores.append(_f1([union], true, [0.5]))
    assert scores[0] == 2 / (1 + number)
    assert scores[1] == (scores[0] if number < 3 else 0.0)
