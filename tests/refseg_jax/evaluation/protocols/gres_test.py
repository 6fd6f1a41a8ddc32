"""`gres` and `gres_paper` against the evaluator's rules, written out with boolean masks."""

import collections

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

THRESHOLDS = (0.7, 0.8, 0.9)


def _slow(cases: list[Case], *, cleared: bool, min_pixels: int = 0) -> dict[str, float]:
    """TP, FN, FP, TN of the *absence* of a target, as ReLA's paper has them (section 5.1)."""
    outcome: collections.Counter[str] = collections.Counter()
    ious, both, either, precise = [], 0, 0, collections.Counter()
    for case in cases:
        absent = not case.present
        if min_pixels:
            pixels = case.prediction.sum() * (480 * 480) / case.prediction.size
            absent = pixels < min_pixels
        if cleared:
            # "Prediction without any foreground pixels is true positive."
            absent = not (case.prediction & (not absent)).any()
        if not case.targeted:
            outcome["TP" if absent else "FN"] += 1
            ious.append(1.0 if absent else 0.0)
            either += 0 if absent else int((case.prediction | case.target).sum())
            continue
        prediction = np.zeros_like(case.prediction) if absent and cleared else case.prediction
        union = int((prediction | case.target).sum())
        intersection = 0 if absent else int((prediction & case.target).sum())
        outcome["FP" if absent else "TN"] += 1
        ious.append(intersection / union if union else 0.0)
        both, either = both + intersection, either + union
        precise.update(x for x in THRESHOLDS if ious[-1] >= x)
    targeted, empty = outcome["TN"] + outcome["FP"], outcome["TP"] + outcome["FN"]
    scores = {"gIoU": sum(ious) / len(ious)}
    if either:
        scores["cIoU"] = both / either
    if empty:
        scores["N_acc"] = outcome["TP"] / empty
    if targeted:
        scores["T_acc"] = outcome["TN"] / targeted
        scores |= {f"Pr@{x}": precise[x] / targeted for x in THRESHOLDS}
    return scores


@pytest.mark.parametrize("min_pixels", [0, 50])
@pytest.mark.parametrize(("name", "cleared"), [("gres", False), ("gres_paper", True)])
def test_all_outcomes_count_as_the_rules_say(name: str, cleared: bool, min_pixels: int) -> None:
    # Where the number of pixels decides, sizes at which 50 of 480 x 480 are less and more than one.
    cases = random_cases(0) + random_cases(1, 300, largest=120)
    cases += [
        Case(f"few {i}", _few(i, 96), _few(7 * (i % 2), 96), True, "object", "", "")
        for i in range(9)
    ]
    outcomes = {(case.present, case.targeted, bool(case.target.any())) for case in cases}
    assert len(outcomes) == 8
    expected = {}
    for prefix, chosen in scopes(cases).items():
        scores = _slow(chosen, cleared=cleared, min_pixels=min_pixels)
        expected |= {prefix + key: value for key, value in scores.items()}
    found = state_of(build_protocol(name, min_pixels=min_pixels), cases).compute()
    assert_equal(found, expected)


def _few(pixels: int, side: int) -> np.ndarray:
    return (np.arange(side * side) < pixels).reshape(side, side)


@pytest.mark.parametrize(("name", "absent"), [("gres", 0.0), ("gres_paper", 1.0)])
def test_an_empty_mask_that_is_said_to_be_something_is_nothing_for_the_paper(
    name: str, absent: float
) -> None:
    empty, target = _few(0, 4), _few(3, 4)
    none = Case("a", empty, empty, True, "none", "", "")
    missed = Case("b", empty, target, True, "object", "", "")
    scores = state_of(build_protocol(name), [none, missed]).compute()
    assert (scores["N_acc"], scores["T_acc"]) == (absent, 1 - absent)
    assert scores["gIoU"] == absent / 2
    assert scores["cIoU"] == 0.0


def test_the_unions_differ_by_the_mask_of_a_missed_target() -> None:
    target, elsewhere = _few(4, 4), ~_few(8, 4)
    missed = [Case("a", elsewhere, target, False, "object", "", "")]
    hit = Case("b", target, target, True, "object", "", "")
    for name, union in (("gres", 4 + 8 + 4), ("gres_paper", 4 + 4)):
        scores = state_of(build_protocol(name), [*missed, hit]).compute()
        assert scores["cIoU"] == 4 / union
        assert scores["gIoU"] == 0.5
        assert scores["T_acc"] == 0.5


@pytest.mark.parametrize(
    ("pixels", "side", "absent"), [(49, 480, 1), (50, 480, 0), (2, 96, 0), (1, 96, 1)]
)
def test_fewer_than_fifty_of_480_square_are_nothing(pixels: int, side: int, absent: int) -> None:
    case = Case("a", _few(pixels, side), _few(0, side), True, "none", "", "")
    scores = state_of(build_protocol("gres", min_pixels=50), [case]).compute()
    assert scores["N_acc"] == absent


@pytest.mark.parametrize("present", [True, False])
def test_a_target_without_pixels_is_one_where_the_annotation_says_so(present: bool) -> None:
    """ReLA's evaluator goes by `ann_id`: a polygon without area is a target that nobody can hit."""
    pixels = _few(2 * present, 3)
    case = Case("a", pixels, _few(0, 3), present, "object", "", "", empty=False)
    found = state_of(build_protocol("gres"), [case]).compute()
    assert found["gIoU"] == 0.0 and "object/N_acc" not in found
    assert (found["object/T_acc"], found["object/Pr@0.7"]) == (float(present), 0.0)


def test_the_annotation_outvotes_a_mask_with_pixels() -> None:
    case = Case("a", _few(2, 3), _few(5, 3), False, "none", "", "", empty=True)
    found = state_of(build_protocol("gres"), [case]).compute()
    assert (found["gIoU"], found["N_acc"], "none/T_acc" in found) == (1.0, 1.0, False)


@pytest.mark.parametrize("name", ["gres", "gres_paper", "grd", "cris"])
def test_absences_are_told_by_form_and_matches_of_the_same_wordings_beside_them(name: str) -> None:
    some, none = _few(4, 3), _few(0, 3)
    cases = [
        Case("a", none, none, False, "none", "", "", form="kind"),
        Case("b", some, none, True, "none", "", "", form="kind"),
        Case("c", some, some, True, "part", "", "", form="kind"),
        Case("d", none, none, False, "none", "", "", form="place"),
        Case("e", none, some, False, "object", "", "", form="place"),
        Case("f", some, none, True, "none", "", ""),
    ]
    state = state_of(build_protocol(name), cases)
    told = {key: value for key, value in state.compute().items() if key.count("/") == 2}
    expected = {
        "gres": {
            "none/kind/N_acc": 1 / 2,
            "none/kind/T_acc": 1.0,
            "none/place/N_acc": 1.0,
            "none/place/T_acc": 0.0,
        },
        "grd": {"none/kind/Rneg": 1 / 2, "none/place/Rneg": 1.0},
        "cris": {},
    }
    assert told == expected[name.removesuffix("_paper")]
    assert state.counts()["none/count"] == 4.0
    assert state.counts().get("none/kind/count") == (None if name == "cris" else 3.0)


def test_shares_of_nothing_are_zero_among_all_and_missing_in_a_granularity() -> None:
    """As the evaluator has `N_acc` where a set has no expression without a target.

    It prints 0 for `T_acc` as well then; here `T_acc` stays the share that it is.
    """
    target = _few(3, 3)
    scores = state_of(build_protocol("gres"), [Case("a", target, target, True, "object", "", "")])
    found = scores.compute()
    assert found["N_acc"] == 0.0
    assert "object/N_acc" not in found
    assert found["T_acc"] == found["object/T_acc"] == 1.0
