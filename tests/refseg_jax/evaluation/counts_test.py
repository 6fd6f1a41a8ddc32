"""Counts against numpy on each mask at its native size."""

import functools
import itertools
import math

import jax
import numpy as np
import pytest

from refseg_jax.evaluation.counts import map_of_logits, mask_of_logits, pair_counts, predicted_mask

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


def test_the_host_cuts_as_the_device_does() -> None:
    logits, _, sizes = _case(3)
    found = np.asarray(predicted_mask(logits, sizes, 0.35))
    for b, n, k in itertools.product(*map(range, SHAPE)):
        height, width = sizes[b, n]
        mine = mask_of_logits(logits[b, n, k, :height, :width], 0.35)
        np.testing.assert_array_equal(found[b, n, k, :height, :width], mine)


def test_weighted_counts_are_those_of_copied_rows_and_columns() -> None:
    logits, native, sizes = _case(4)
    rng = np.random.default_rng(4)
    rows, columns = (rng.integers(0, 4, (*SHAPE[:2], n)).astype(np.int32) for n in CANVAS)
    found = np.asarray(pair_counts(logits, native, sizes, 0.35, (rows, columns)))
    inside = np.asarray(predicted_mask(logits, sizes, 0.35))
    for b, n, k in itertools.product(*map(range, SHAPE)):
        predicted, target = (
            m[b, n, k].repeat(rows[b, n], 0).repeat(columns[b, n], 1) == 1 for m in (inside, native)
        )
        expected = [(predicted & target).sum(), predicted.sum(), target.sum()]
        assert found[b, n, k].tolist() == expected


def test_a_map_has_the_nearest_grey_value_of_each_probability() -> None:
    rng = np.random.default_rng(6)
    logits = np.append(8 * rng.standard_normal(2000), [0, -900, 900, -1e30, 1e30]).astype(
        np.float32
    )
    expected = [round(255 / (1 + math.exp(-x))) if x > -700 else 0 for x in logits.tolist()]
    found = map_of_logits(logits[None])
    assert found.dtype == np.uint8
    assert found[0].tolist() == expected
    assert {0, 128, 255} <= set(expected)
