"""`semseg` and `part` against sums over boolean masks, category by category."""

import dataclasses

import numpy as np
import pytest

from refseg_jax.errors import UserError
from refseg_jax.evaluation.protocols import build_protocol
from tests.refseg_jax.evaluation.protocols.cases import (
    Case,
    assert_equal,
    random_cases,
    scopes,
    state_of,
)


def _slow(cases: list[Case]) -> dict[str, float]:
    ious = {}
    for category in sorted({case.category for case in cases}):
        chosen = [case for case in cases if case.category == category]
        either = sum(case.either for case in chosen)
        if either:
            ious[category] = sum(case.both for case in chosen) / either
    if not ious:
        return {}
    return {
        "mIoU": sum(ious.values()) / len(ious),
        **{f"IoU/{category}": iou for category, iou in ious.items()},
    }


def _expected(cases: list[Case]) -> dict[str, float]:
    return {
        prefix + key: value
        for prefix, chosen in scopes(cases).items()
        for key, value in _slow(chosen).items()
    }


def _with_an_unseen_category(cases: list[Case]) -> list[Case]:
    empty = np.zeros((3, 4), bool)
    unseen = Case("unseen", empty, empty, False, "part", "", "unseen")
    return [*cases, unseen]


def test_semseg_is_the_mean_over_categories_of_a_whole_split() -> None:
    cases = _with_an_unseen_category(random_cases(0))
    assert_equal(state_of(build_protocol("semseg"), cases).compute(), _expected(cases))


def test_a_split_of_few_pairs_leaves_out_categories_that_are_in_no_mask() -> None:
    for seed in range(200):
        cases = random_cases(seed, 6)
        expected = {"mIoU": 0.0, **_expected(cases)}
        assert_equal(state_of(build_protocol("semseg"), cases).compute(), expected)


def test_part_takes_parts_alone() -> None:
    cases = _with_an_unseen_category(random_cases(1))
    parts = [case for case in cases if case.granularity == "part"]
    assert_equal(state_of(build_protocol("part"), cases).compute(), _expected(parts))


def test_part_takes_pairs_that_do_not_say() -> None:
    cases = [dataclasses.replace(case, granularity="") for case in random_cases(2, 50)]
    assert_equal(state_of(build_protocol("part"), cases).compute(), _slow(cases))


@pytest.mark.parametrize("name", ["semseg", "part"])
def test_a_pair_without_a_category_is_one_line(name: str) -> None:
    case = dataclasses.replace(random_cases(3, 1)[0], category="", granularity="part")
    with pytest.raises(UserError, match=f"pair 'pair 0' has no category, which {name} needs"):
        state_of(build_protocol(name), [case])
