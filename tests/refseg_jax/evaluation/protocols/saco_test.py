"""`saco` against the definitions of SAM 3's paper (E.3), on instances and with every matching."""

from collections import Counter
from collections.abc import Iterable

import numpy as np
import pytest

from refseg_jax.evaluation.protocols import build_protocol
from refseg_jax.evaluation.protocols.saco import THRESHOLDS
from tests.refseg_jax.evaluation.protocols.cases import Case, random_cases, scopes, state_of
from tests.refseg_jax.evaluation.protocols.instances import counts, of_unions, runs

Instances = tuple[list[np.ndarray], list[np.ndarray]]


def _totals(pairs: Iterable[Instances]) -> tuple[np.ndarray, Counter[str]]:
    """(TP, FP, FN) at each threshold over pairs with a target, i64 `[10, 3]`; cells of all pairs."""
    total, cells = np.zeros((10, 3), int), Counter()
    for predicted, true in pairs:
        cells[("T" if bool(predicted) == bool(true) else "F") + ("P" if predicted else "N")] += 1
        if true:
            total += [counts(predicted, true, t) for t in np.linspace(0.5, 0.95, 10)]
    return total, cells


def _slow(pairs: Iterable[Instances], small: float = 0.0, smaller: float = 0.0) -> dict[str, float]:
    """The scores; `small` and `smaller` are what the evaluator adds to its divisors."""
    total, c = _totals(pairs)
    found, f1 = {}, []
    for tp, fp, fn in total:
        if tp:
            precision, recall = tp / (tp + fp + small), tp / (tp + fn + small)
            f1.append(float(2 * precision * recall / (precision + recall + small)))
        else:
            f1.append(0.0)
    if c["TP"] + c["FN"]:
        found["pmF1"] = sum(f1) / 10
        if c["TN"] + c["FP"]:
            sides = (c["TP"] + c["FP"], c["TP"] + c["FN"], c["TN"] + c["FP"], c["TN"] + c["FN"])
            divisor = float(np.prod([float(side) for side in sides])) ** 0.5 + smaller
            mcc = (c["TP"] * c["TN"] - c["FP"] * c["FN"]) / divisor if divisor else 0.0
            found |= {"IL_MCC": mcc, "cgF1": found["pmF1"] * mcc}
            found |= {"cgF1@0.5": f1[0] * mcc, "cgF1@0.75": f1[5] * mcc}
    return found


def _assert_near(found: dict[str, float], expected: dict[str, float], by: float = 1e-12) -> None:
    assert found.keys() == expected.keys()
    assert all(abs(found[key] - value) <= by for key, value in expected.items())


def test_all_outcomes_count_as_the_paper_says() -> None:
    cases = random_cases(0)
    outcomes = {(case.present, case.targeted, bool(case.target.any())) for case in cases}
    assert len(outcomes) == 8
    expected = {
        prefix + key: value
        for prefix, chosen in scopes(cases).items()
        for key, value in _slow(map(of_unions, chosen)).items()
    }
    found = state_of(build_protocol("saco"), cases).compute()
    _assert_near(found, expected)
    assert 0.05 < found["pmF1"] < 0.95 and 0.05 < found["IL_MCC"] < 0.95


def test_the_thresholds_are_those_of_numpy() -> None:
    """The ninth is 0.8999..., so that an IoU of 9/10 reaches it."""
    assert tuple(np.linspace(0.5, 0.95, 10).tolist()) == THRESHOLDS
    nine = np.arange(10) < 9
    case = Case("a", nine[None], np.ones((1, 10), bool), True, "object", "", "")
    assert state_of(build_protocol("saco"), [case]).compute()["object/pmF1"] == 0.9


@pytest.mark.parametrize("seed", [1, 2])
def test_the_small_numbers_of_the_evaluator_move_less_than_two_in_ten_thousand(seed: int) -> None:
    cases = random_cases(seed, 100)
    found = state_of(build_protocol("saco"), cases).compute()
    told = {key: value for key, value in found.items() if "/" not in key}
    _assert_near(told, _slow(map(of_unions, cases), 1e-4, 1e-6), by=2e-4)


def _case(predicted: bool, targeted: bool, form: str = "") -> Case:
    mask = np.ones((2, 2), bool)
    granularity = "object" if targeted else "none"
    return Case("", mask & predicted, mask & targeted, predicted, granularity, "", "", form=form)


def test_the_extremes() -> None:
    right, wrong = (
        [_case(True, True), _case(False, False)],
        [_case(True, False), _case(False, True)],
    )
    always = [_case(True, True), _case(True, False)]
    protocol = build_protocol("saco")
    for cases, mcc, f1 in ((right, 1.0, 1.0), (wrong, -1.0, 0.0), (always, 0.0, 1.0)):
        found = state_of(protocol, cases).compute()
        assert (found["IL_MCC"], found["pmF1"], found["cgF1"]) == (mcc, f1, mcc * f1)
    found = state_of(protocol, [*wrong, *wrong, right[0]]).compute()
    assert found["cgF1"] < 0 < found["pmF1"]


def test_what_finds_something_everywhere_loses_by_the_correlation_alone() -> None:
    """A false yes is no FP of `pmF1`, which is over pairs with a target."""
    some = [_case(True, True)] * 3
    one, many = ([*some, _case(False, False), *[_case(True, False)] * n] for n in (1, 9))
    scores = [state_of(build_protocol("saco"), cases).compute() for cases in (one, many)]
    assert [score["pmF1"] for score in scores] == [1.0, 1.0]
    assert scores[0]["IL_MCC"] > scores[1]["IL_MCC"] > 0


def test_scores_without_a_sample_are_left_out_of_a_granularity() -> None:
    found = state_of(build_protocol("saco"), [_case(True, True)]).compute()
    assert found["IL_MCC"] == found["cgF1"] == 0.0
    assert (found["object/pmF1"], "object/IL_MCC" in found) == (1.0, False)
    found = state_of(build_protocol("saco"), [_case(False, False)]).compute()
    assert not [key for key in found if "/" in key]


def test_the_correlation_is_told_for_each_form_of_absence() -> None:
    cases = [
        *(_case(True, True, "kind"), _case(False, False, "kind")),
        *(_case(True, True, "place"), _case(True, False, "place")),
    ]
    found = state_of(build_protocol("saco"), cases).compute()
    told = {key: value for key, value in found.items() if key.count("/") == 2}
    assert told == {"none/kind/IL_MCC": 1.0, "none/place/IL_MCC": 0.0}


@pytest.mark.parametrize("number", [2, 3, 4])
def test_a_union_of_instances_is_one_here_and_less_for_the_evaluator(number: int) -> None:
    """What the docstring says of pairs with several instances."""
    true = runs(*[3] * number)
    union = np.logical_or.reduce(true)
    case = Case("a", union, union, True, "multi", "", "")
    assert state_of(build_protocol("saco"), [case]).compute()["multi/pmF1"] == 1.0
    # Instances of one size: none has an IoU of more than a half with their union.
    assert counts([union], true, 0.55) == (0, 1, number)
    # One that is nearly the whole union is the single TP.
    true = runs(20, *[1] * (number - 1))
    assert counts([np.logical_or.reduce(true)], true, 0.5) == (1, 0, number - 1)
