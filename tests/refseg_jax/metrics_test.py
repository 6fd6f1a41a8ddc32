"""Counts and scores against numpy on each mask at its native size."""

import functools
import itertools
import math

import jax
import numpy as np
import pytest

from refseg_jax.batch import GRANULARITIES
from refseg_jax.metrics import PRECISION_AT, IoUState, Pair, pair_counts, predicted_mask

SHAPE = (2, 3, 4)
CANVAS = (24, 32)


def _sizes(rng: np.random.Generator) -> np.ndarray:
    sizes = np.stack([rng.integers(1, n + 1, SHAPE[:2]) for n in CANVAS], -1).astype(np.int32)
    sizes[0, 0], sizes[0, 1] = CANVAS, (1, 1)
    return sizes


def _case(seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Logits (high beyond the native size, where they mean nothing), native masks, sizes."""
    rng = np.random.default_rng(seed)
    sizes = _sizes(rng)
    logits = rng.normal(0, 2, (*SHAPE, *CANVAS)).astype(np.float32)
    native = np.zeros((*SHAPE, *CANVAS), np.uint8)
    for b, n, k in itertools.product(*map(range, SHAPE)):
        height, width = sizes[b, n]
        logits[b, n, k, height:] = logits[b, n, k, :, width:] = 50.0
        native[b, n, k, :height, :width] = rng.random((height, width)) < 0.2 * k
    return logits, native, sizes


@pytest.mark.parametrize("threshold", [0.35, 0.5, 0.9])
def test_counts_are_those_of_plain_numpy(threshold: float) -> None:
    logits, native, sizes = _case(0)
    found = np.asarray(pair_counts(logits, native, sizes, threshold))
    assert found.dtype == np.int32
    assert found.shape == (*SHAPE, 3)
    for b, n, k in itertools.product(*map(range, SHAPE)):
        height, width = sizes[b, n]
        probability = 1 / (1 + np.exp(-logits[b, n, k, :height, :width].astype(np.float64)))
        predicted, target = probability > threshold, native[b, n, k, :height, :width] == 1
        expected = [(predicted & target).sum(), predicted.sum(), target.sum()]
        assert found[b, n, k].tolist() == expected


def test_a_probability_at_the_threshold_is_not_inside() -> None:
    logits = np.array([0.0, np.nextafter(0, 1, dtype=np.float32), 1e-6, -1e-6], np.float32)
    found = predicted_mask(logits.reshape(1, 1, 1, 1, 4), np.array([[[1, 4]]], np.int32), 0.5)
    # XLA flushes denormals to zero.
    assert np.asarray(found).ravel()[[0, 2, 3]].tolist() == [False, True, False]


def test_logits_that_are_no_numbers_are_not_inside() -> None:
    logits = np.full((1, 1, 1, 2, 2), np.nan, np.float32)
    assert not predicted_mask(logits, np.array([[[2, 2]]], np.int32), 0.35).any()


def test_a_larger_canvas_changes_nothing() -> None:
    logits, native, sizes = _case(1)
    edge = ((0, 0),) * 3 + ((0, 7), (0, 40))
    wider = np.pad(logits, edge, constant_values=50.0), np.pad(native, edge), sizes
    count = jax.jit(functools.partial(pair_counts, threshold=0.35))
    np.testing.assert_array_equal(count(logits, native, sizes), count(*wider))


def _pairs(number: int) -> dict[str, Pair]:
    rng = np.random.default_rng(2)
    pairs = {}
    for i in range(number):
        predicted, target = (rng.random((6, 7)) < rng.random() for _ in range(2))
        if i % 9 == 0:
            predicted = np.zeros_like(predicted)
        if i % 6 == 0:
            target = np.zeros_like(target)
        counts = (int(m.sum()) for m in (predicted & target, predicted, target))
        pairs[f"{i}"] = Pair(GRANULARITIES[i % 3], *counts)
    return pairs


def _expected(pairs: list[Pair]) -> dict[str, float]:
    intersections = np.array([p.intersection for p in pairs], np.float64)
    unions = np.array([p.prediction + p.target - p.intersection for p in pairs], np.float64)
    ious = np.divide(intersections, unions, out=np.zeros(len(pairs)), where=unions > 0)
    scores = {"mIoU": ious.mean(), "oIoU": intersections.sum() / unions.sum()}
    shares = {f"Pr@{x}": (ious > x).mean() for x in (0.5, 0.6, 0.7, 0.8, 0.9)}
    return {**scores, **shares, "count": len(pairs)}


def test_scores_are_those_of_plain_numpy() -> None:
    pairs = _pairs(200)
    assert any(p.union == 0 for p in pairs.values())
    expected = _expected(list(pairs.values()))
    for name in GRANULARITIES[:3]:
        chosen = _expected([p for p in pairs.values() if p.granularity == name])
        expected |= {f"{name}/{key}": value for key, value in chosen.items()}
    found = IoUState(pairs).compute()
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        assert found[key] == pytest.approx(value, abs=1e-12), key


def test_precision_is_strictly_above() -> None:
    scores = IoUState({"a": Pair("object", 5, 10, 5), "b": Pair("object", 9, 9, 10)}).compute()
    assert [scores[f"Pr@{x}"] for x in PRECISION_AT] == [0.5, 0.5, 0.5, 0.5, 0.0]


def test_empty_against_empty_scores_nothing() -> None:
    """CRIS's convention; a missing target has scores of its own elsewhere."""
    pair = Pair("none", 0, 0, 0)
    assert pair.iou == 0.0
    assert IoUState({"a": pair}).compute()["none/oIoU"] == 0.0


def test_a_state_of_no_pairs_has_a_count_only() -> None:
    assert IoUState().compute() == {"count": 0.0}


def test_states_merge_in_any_order_to_the_same_digits() -> None:
    pairs = list(_pairs(60).items())
    parts = [IoUState(dict(pairs[start::3])) for start in range(3)]
    whole = IoUState(dict(pairs)).compute()
    for one, two, three in itertools.permutations(parts):
        assert one.merge(two).merge(three).compute() == whole
        assert one.merge(two.merge(three)).compute() == whole
    assert IoUState().merge(parts[0]).compute() == parts[0].compute()
    assert sum(len(part.pairs) for part in parts) == 60


def test_a_pair_is_not_counted_twice() -> None:
    state = IoUState({"17": Pair("object", 1, 1, 1)})
    with pytest.raises(ValueError, match="'17' was counted twice"):
        state.merge(IoUState({"17": Pair("object", 0, 1, 1)}))


def test_counts_of_many_large_images_stay_exact() -> None:
    """oIoU of a million images of 640 x 480 has sums beyond f32 and i32."""
    large = 10**6 * 640 * 480
    state = IoUState({"a": Pair("object", large, large, large + 1), "b": Pair("object", 1, 1, 1)})
    assert state.compute()["oIoU"] == (large + 1) / (large + 2)
    assert math.isclose(state.compute()["mIoU"], (large / (large + 1) + 1) / 2, rel_tol=1e-15)
