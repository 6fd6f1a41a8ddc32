"""States: sums that no order and no cut into processes changes."""

import dataclasses
import itertools
import json
import math
from fractions import Fraction

import numpy as np
import pytest

from refseg_jax.errors import UserError
from refseg_jax.evaluation.protocols import (
    PROTOCOLS,
    State,
    build_protocol,
    build_protocols,
    keyed_counts,
    keyed_scores,
)
from refseg_jax.evaluation.protocols.base import Counts, exact, mean
from tests.refseg_jax.evaluation.protocols.cases import random_cases, state_of

#: Those that need nothing but masks.
NAMES = sorted(PROTOCOLS)


@pytest.mark.parametrize("name", NAMES)
def test_states_merge_in_any_order_to_the_same_digits(name: str) -> None:
    cases = random_cases(0, 60)
    protocol = build_protocol(name)
    parts = [state_of(protocol, cases[start::3]) for start in range(3)]
    whole = state_of(protocol, cases)
    for one, two, three in itertools.permutations(parts):
        for merged in (one.merge(two).merge(three), one.merge(two.merge(three))):
            assert merged.compute() == whole.compute()
            assert merged.counts() == whole.counts()
    assert state_of(protocol, cases[::-1]).compute() == whole.compute()
    assert State(protocol).merge(whole).compute() == whole.compute()


@pytest.mark.parametrize("name", NAMES)
def test_sums_survive_the_way_to_another_process(name: str) -> None:
    state = state_of(build_protocol(name), random_cases(1, 60))
    other = State(state.protocol)
    other.add_json(json.loads(json.dumps(state.to_json())))
    assert other.compute() == state.compute()
    assert other.counts() == state.counts()


def test_pairs_that_do_not_say_their_granularity_count_once() -> None:
    cases = [dataclasses.replace(c, granularity="") for c in random_cases(4, 20)]
    state = state_of(build_protocol("cris"), cases)
    assert state.counts() == {"count": 20.0}
    assert set(state.compute()) == set(state.protocol.columns)


@pytest.mark.parametrize("name", NAMES)
def test_a_state_of_no_pairs_has_a_count_only(name: str) -> None:
    state = State(build_protocol(name))
    assert state.compute() == {}
    assert state.counts() == {"count": 0.0}


@pytest.mark.parametrize("name", NAMES)
def test_every_column_of_a_table_is_a_score(name: str) -> None:
    protocol = build_protocol(name)
    scores = state_of(protocol, random_cases(2, 200)).compute()
    assert set(protocol.columns) <= scores.keys()
    # Only a correlation, and what it is multiplied with, may be negative.
    signed = {key for key in scores if name == "saco" and not key.endswith("pmF1")}
    assert all(-(key in signed) <= value <= 1 for key, value in scores.items())


@pytest.mark.parametrize("name", NAMES)
def test_a_protocol_says_where_it_is_from_and_what_it_is_comparable_with(name: str) -> None:
    protocol = build_protocol(name)
    assert len((type(protocol).__doc__ or "").split()) > 10
    assert "\n" not in protocol.comparable
    assert protocol.comparable


def test_means_are_rounded_once() -> None:
    rng = np.random.default_rng(0)
    values = [0.0, 5e-324, 1.0, 0.1, *rng.random(500).tolist(), *(rng.random(50) * 1e-300).tolist()]
    for value in values:
        assert Fraction(exact(value), 2**1074) == Fraction(value)
    total = sum(map(exact, values))
    assert mean(total, 1) == math.fsum(values)
    assert mean(total, 7) == float(sum(map(Fraction, values), Fraction(0)) / 7)


def test_counts_of_many_large_images_stay_exact() -> None:
    """oIoU of a million images of 640 x 480 has sums beyond f32 and i32."""
    large = 10**6 * 640 * 480
    state = State(build_protocol("cris"))
    for counts in (Counts(large, large, large + 1), Counts(1, 1, 1)):
        union = {"iou": exact(counts.iou), "intersection": counts[0], "union": counts.union}
        state.add_json([["", "", {**union, "count": 1}]])
    assert state.compute()["oIoU"] == (large + 1) / (large + 2)
    assert math.isclose(state.compute()["mIoU"], (large / (large + 1) + 1) / 2, rel_tol=1e-15)


def test_unknown_names_and_options_are_one_line() -> None:
    with pytest.raises(UserError, match=r"unknown protocol 'gress': did you mean 'gres'\?"):
        build_protocol("gress")
    with pytest.raises(UserError, match=r"unknown field of protocol 'cris' 'min_pixels'"):
        build_protocol("cris", min_pixels=50)
    with pytest.raises(UserError, match="'cris,gres, cris' names one twice"):
        build_protocols("cris,gres, cris")
    with pytest.raises(
        UserError, match="min_pixels=50 is for gres and gres_paper, not for cris,grd"
    ):
        build_protocols("cris,grd", min_pixels=50)


def test_no_key_stands_for_two_scores() -> None:
    """`part` is a protocol and a granularity; `cris` has `part/mIoU` too."""
    with pytest.raises(UserError, match=r"'cris,part': put part first, .*, part/mIoU"):
        build_protocols("cris,part")
    cases = random_cases(3, 300)
    built = {name: state_of(build_protocol(name), cases) for name in NAMES}
    for first in NAMES:
        others = [name for name in NAMES if name not in (first, "part")]
        states = [built[one.name] for one in build_protocols(",".join((first, *others)))]
        for keyed, one in ((keyed_scores, State.compute), (keyed_counts, State.counts)):
            assert len(keyed(states)) == sum(len(one(state)) for state in states)


def test_several_protocols_share_their_options() -> None:
    names = "cris, gres,gres_paper"
    assert build_protocols(names) == tuple(map(build_protocol, ("cris", "gres", "gres_paper")))
    assert build_protocols(names, min_pixels=50)[1:] == (
        build_protocol("gres", min_pixels=50),
        build_protocol("gres_paper", min_pixels=50),
    )
