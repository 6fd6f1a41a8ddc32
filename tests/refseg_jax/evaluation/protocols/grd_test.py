"""`grd` against GRSer's definitions, pixel by pixel."""

import numpy as np

from refseg_jax.evaluation.protocols import build_protocol
from tests.refseg_jax.evaluation.protocols.cases import (
    Case,
    assert_equal,
    random_cases,
    scopes,
    state_of,
)


def _e_measure(prediction: np.ndarray, target: np.ndarray) -> float:
    """Fan et al., IJCAI 2018, with the divisor of their code (1 for a single pixel)."""
    divisor = max(target.size - 1, 1)
    if not target.any():
        return (~prediction).sum() / divisor
    if target.all():
        return prediction.sum() / divisor
    p, g = prediction - prediction.mean(), target - target.mean()
    xi = 2 * p * g / (p**2 + g**2 + np.spacing(1.0))
    return ((1 + xi) ** 2 / 4).sum() / divisor


def _slow(cases: list[Case]) -> dict[str, float]:
    ious, alignment, rejected = [], [], []
    for case in cases:
        prediction = case.prediction & case.present
        alignment.append(_e_measure(prediction, case.target))
        if not case.targeted:
            rejected.append(not case.present)
            ious.append(1.0 if rejected[-1] else 0.0)
        else:
            union = (prediction | case.target).sum()
            ious.append((prediction & case.target).sum() / union if union else 0.0)
    scores = {
        "mIoU": float(np.mean(ious)),
        "Em": min(float(np.mean(alignment)), 1.0),
    }
    return scores | ({"Rneg": float(np.mean(rejected))} if rejected else {})


def test_all_outcomes_count_as_the_paper_says() -> None:
    cases = random_cases(0)
    outcomes = {(case.present, case.targeted, bool(case.target.any())) for case in cases}
    assert len(outcomes) == 8
    expected = {
        prefix + key: value
        for prefix, chosen in scopes(cases).items()
        for key, value in _slow(chosen).items()
    }
    assert_equal(state_of(build_protocol("grd"), cases).compute(), expected)


def test_a_perfect_system_scores_one() -> None:
    cases = [
        Case(case.id, case.target, case.target, bool(case.target.any()), "group", "", "")
        for case in random_cases(1, 300)
    ]
    found = state_of(build_protocol("grd"), cases).compute()
    assert {found[name] for name in ("mIoU", "Em", "Rneg")} == {1.0}


def test_a_system_that_finds_something_everywhere_rejects_nothing() -> None:
    """GRSer without its triplet loss: R_neg 0."""
    everything = np.ones((4, 5), bool)
    cases = [
        Case(str(i), everything, everything & (i % 2), True, "group", "", "") for i in range(10)
    ]
    found = state_of(build_protocol("grd"), cases).compute()
    assert found["Rneg"] == 0.0
    assert found["mIoU"] == 0.5
