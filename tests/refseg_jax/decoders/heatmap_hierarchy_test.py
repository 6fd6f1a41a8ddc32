"""Equation 4 of GRSer against sorting in Python, written from the paper, with every edge."""

import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from refseg_jax.decoders.heatmap_hierarchy import (
    check_rank,
    expert_order,
    ranks_of_channels,
    rearrange,
    total_ranks,
)


def order_of(positive: Any, negative: Any, valid: Any = None, rank: Any = "both") -> list[int]:
    """The order of a single row with a single expression."""
    shown = [True] * len(positive) if valid is None else valid
    given = (jnp.asarray(x)[None, :, None] for x in (positive, negative, shown))
    return expert_order(total_ranks(*given, rank))[0, :, 0].tolist()


def slow_order(positive: Any, negative: Any, valid: Any, rank: str = "both") -> list[int]:
    """R_pos from the smallest distance, R_neg from the largest, and the sum of both."""
    experts = [i for i, shown in enumerate(valid) if shown]
    smallest, largest = sorted(positive[i] for i in experts), sorted(negative[i] for i in experts)
    total = {}
    for i in experts:
        ranks = {
            "positive": smallest.index(positive[i]),
            "negative": largest[::-1].index(negative[i]),
        }
        total[i] = sum(ranks.values()) if rank == "both" else ranks[rank]
    padding = [i for i, shown in enumerate(valid) if not shown]
    return sorted(experts, key=lambda i: (total[i], i)) + padding


@pytest.mark.parametrize("rank", ["both", "positive", "negative"])
def test_equation_4(rank: str) -> None:
    rng = np.random.default_rng(0)
    for count in (1, 2, 5, 8):
        for _ in range(10):
            # Of few values, so that distances are often equal, and sums even more often.
            positive, negative = rng.integers(0, 6, (2, count)) / 4.0
            valid = rng.random(count) < 0.7
            expected = slow_order(positive.tolist(), negative.tolist(), valid.tolist(), rank)
            assert order_of(positive, negative, valid, rank) == expected


def test_known_orders() -> None:
    # Nearest to L and farthest from L_anti, the other way round, and between.
    assert order_of([0.9, 0.1, 0.5], [0.1, 0.9, 0.5]) == [1, 2, 0]
    # The two ranks contradict each other everywhere: every sum is equal, the order is that of the axis.
    assert order_of([0.1, 0.2, 0.3], [0.1, 0.2, 0.3]) == [0, 1, 2]
    assert order_of([0.3, 0.2, 0.1], [0.3, 0.2, 0.1]) == [0, 1, 2]
    assert order_of([0.3, 0.2, 0.1], [0.3, 0.2, 0.1], rank="positive") == [2, 1, 0]
    assert order_of([0.3, 0.2, 0.1], [0.3, 0.2, 0.1], rank="negative") == [0, 1, 2]
    assert order_of([0.4], [0.2]) == [0]
    # The best of all is padding.
    assert order_of([0.0, 0.5, 0.2], [9.0, 0.5, 0.8], [False, True, True]) == [2, 1, 0]


def test_an_order_follows_the_experts_through_any_permutation() -> None:
    """Where no two sums are equal, and with experts that are the same image."""
    positive, negative = [0.1, 0.2, 0.3, 0.4], [0.9, 0.25, 0.2, 0.8]
    valid = [True, True, True, False]
    best = order_of(positive, negative, valid)
    for moved in itertools.permutations(range(4)):
        order = order_of(*([x[i] for i in moved] for x in (positive, negative, valid)))
        assert [moved[i] for i in order] == best
    # Equal distances have equal ranks: a copy of an image pushes no other image of its rank aside.
    total = total_ranks(
        jnp.asarray([0.1, 0.1, 0.5])[None, :, None],
        jnp.asarray([0.9, 0.9, 0.5])[None, :, None],
        jnp.ones((1, 3, 1), bool),
        "both",
    )
    assert total[0, :, 0].tolist() == [0.0, 0.0, 4.0]


def test_rows_and_expressions_have_orders_of_their_own() -> None:
    rng = np.random.default_rng(3)
    positive, negative = (rng.random((3, 5, 4)).astype(np.float32) for _ in range(2))
    valid = rng.random((3, 5, 4)) < 0.7
    order = np.asarray(
        expert_order(total_ranks(*map(jnp.asarray, (positive, negative, valid)), "both"))
    )
    for b, k in np.ndindex(3, 4):
        chosen = (x[b, :, k].tolist() for x in (positive, negative, valid))
        assert order[b, :, k].tolist() == slow_order(*chosen)


def test_chance_is_the_same_in_every_inference_and_another_in_every_step() -> None:
    shape, same = (6, 8, 3), jnp.zeros((6, 8, 3))
    valid = jnp.arange(8)[None, :, None] < jnp.asarray([1, 3, 5, 8, 8, 8])[:, None, None]
    valid = jnp.broadcast_to(valid, shape)

    def order(key: Any = None, distances: Any = same) -> np.ndarray:
        return np.asarray(expert_order(total_ranks(distances, distances, valid, "random", key)))

    still = order()
    np.testing.assert_array_equal(
        still, order(distances=jax.random.normal(jax.random.key(1), shape))
    )
    # The same for every row with as many images: it depends on the place alone.
    assert (still[3] == still[5]).all() and (still[..., 0] == still[..., 1]).all()
    assert still[3, :, 0].tolist() != list(range(8))
    drawn = [order(jax.random.key(seed)) for seed in (0, 0, 1)]
    np.testing.assert_array_equal(drawn[0], drawn[1])
    assert (drawn[0] != drawn[2]).any() and (drawn[0][3] != drawn[0][4]).any()
    for one in (still, *drawn):
        for b, count in enumerate([1, 3, 5, 8, 8, 8]):
            assert sorted(one[b, :count, 0]) == list(range(count))


@pytest.mark.parametrize(
    ("count", "kind", "places"),
    [
        (8, "spread", [0, 1, 2, 3, 4, 5, 6, 7]),
        (8, "last", [0, 1, 2, 3, 4, 5, 6, 7]),
        (3, "spread", [0, 0, 0, 1, 1, 1, 2, 2]),
        (3, "last", [0, 1, 2, 2, 2, 2, 2, 2]),
        (1, "spread", [0] * 8),
        (1, "last", [0] * 8),
        (0, "spread", [0] * 8),
        (0, "last", [0] * 8),
        (16, "spread", [0, 2, 4, 6, 8, 10, 12, 14]),
        (16, "last", [0, 1, 2, 3, 4, 5, 6, 7]),
    ],
)
def test_channels_of_groups_of_any_size(count: int, kind: Any, places: list[int]) -> None:
    valid = jnp.arange(max(count, 2))[None, :, None] < count
    assert ranks_of_channels(valid, 8, kind)[0, :, 0].tolist() == places


def test_prototypes_are_rearranged_as_heatmaps_would_be() -> None:
    rng = np.random.default_rng(5)
    prototypes = rng.normal(size=(2, 4, 3, 6)).astype(np.float32)
    order = rng.permuted(np.tile(np.arange(4)[:, None], (2, 1, 3)), axis=1).astype(np.int32)
    places = np.asarray(ranks_of_channels(jnp.ones((2, 4, 3), bool), 6, "spread"))
    found = rearrange(*map(jnp.asarray, (prototypes, order, places)))
    assert found.shape == (2, 6, 3, 6)
    for b, g, k in np.ndindex(2, 6, 3):
        np.testing.assert_array_equal(
            found[b, g, k], prototypes[b, order[b, places[b, g, k], k], k]
        )


def test_an_unknown_ranking_is_told() -> None:
    with pytest.raises(ValueError, match="unknown rank 'booth': did you mean 'both'"):
        check_rank("booth")
