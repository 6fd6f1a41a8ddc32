"""Every score against the publication's formula, written plainly: a mask per threshold, fractions."""

import itertools
import math
import random
from fractions import Fraction

import numpy as np
import pytest

from refseg_jax.evaluation.protocols import saliency
from refseg_jax.evaluation.protocols.saliency import saliency_entry, saliency_scores
from tests.refseg_jax.evaluation.protocols.saliency_cases import cases, sums, targets

#: Added to divisors by the authors' MATLAB (`eps`).
EPSILON = 2.0**-52

THRESHOLDS = np.arange(256)[:, None, None]


def _stretched(values: np.ndarray) -> np.ndarray:
    values = values / 255
    low, high = values.min(), values.max()
    return (values - low) / (high - low) if high > low else values


def _fractions(values: np.ndarray) -> list[list[Fraction]]:
    low, high = int(values.min()), int(values.max())
    low, span = (low, high - low) if high > low else (0, 255)
    return [[Fraction(int(v) - low, span) for v in row] for row in values]


def _masks(values: np.ndarray) -> np.ndarray:
    """Bool `[256, h, w]`, the map cut at each threshold."""
    return (_stretched(values) * 255).astype(np.uint8) >= THRESHOLDS


def _f_of_masks(masks: np.ndarray, target: np.ndarray) -> list[float]:
    scores = []
    for mask in masks:
        hit = int((mask & target).sum())
        precision = hit / int(mask.sum()) if mask.any() else 0.0
        recall = hit / int(target.sum()) if target.any() else 0.0
        weighted = 0.3 * precision + recall
        scores.append(1.3 * precision * recall / weighted if weighted else 0.0)
    return scores


def _e_of_masks(masks: np.ndarray, target: np.ndarray) -> np.ndarray:
    if not target.any():
        enhanced = ~masks
    elif target.all():
        enhanced = masks
    else:
        p = masks - masks.mean((-2, -1), keepdims=True)
        g = target - target.mean()
        aligned = 2 * p * g / (p * p + g * g + EPSILON)
        enhanced = (1 + aligned) ** 2 / 4
    return enhanced.sum((-2, -1)) / max(target.size - 1, 1)


def _adaptive(values: np.ndarray, target: np.ndarray) -> float:
    rows = _fractions(values)
    threshold = min(2 * sum(map(sum, rows), Fraction(0)) / values.size, Fraction(1))
    mask = np.array([[x >= threshold for x in row] for row in rows])
    return _f_of_masks(mask[None], target)[0]


def _mean(numbers: list[Fraction]) -> Fraction:
    return sum(numbers, Fraction(0)) / len(numbers)


def _covariance(xs: list[Fraction], ys: list[Fraction]) -> Fraction:
    if len(xs) == 1:
        return Fraction(0)
    x, y = _mean(xs), _mean(ys)
    return sum(((a - x) * (b - y) for a, b in zip(xs, ys, strict=True)), Fraction(0)) / (
        len(xs) - 1
    )


def _object(xs: list[Fraction]) -> float:
    return 2 * float(_mean(xs)) / (float(_mean(xs)) ** 2 + 1 + math.sqrt(_covariance(xs, xs)))


def _region(xs: list[Fraction], ys: list[Fraction]) -> float:
    x, y = _mean(xs), _mean(ys)
    above = 4 * x * y * _covariance(xs, ys)
    below = (x * x + y * y) * (_covariance(xs, xs) + _covariance(ys, ys))
    if above == 0:
        return 1.0 if below == 0 else 0.0
    return float(above) / (float(below) + EPSILON)


def _structure(values: np.ndarray, target: np.ndarray) -> float:
    rows = _fractions(values)
    height, width = target.shape
    pixels = list(itertools.product(range(height), range(width)))
    inside = [p for p in pixels if target[p]]
    average = float(_mean([rows[y][x] for y, x in pixels]))
    if not inside:
        return 1 - average
    if len(inside) == len(pixels):
        return average
    share = len(inside) / len(pixels)
    objects = share * _object([rows[y][x] for y, x in inside])
    objects += (1 - share) * _object([1 - rows[y][x] for y, x in pixels if not target[y, x]])
    row, column = (round(Fraction(sum(p[axis] for p in inside), len(inside))) for axis in (0, 1))
    regions = 0.0
    for above, left in itertools.product((True, False), repeat=2):
        part = [(y, x) for y, x in pixels if (y <= row) == above and (x <= column) == left]
        if part:
            ours = [rows[y][x] for y, x in part]
            theirs = [Fraction(int(target[p])) for p in part]
            regions += len(part) / len(pixels) * _region(ours, theirs)
    return max(0.0, 0.5 * objects + 0.5 * regions)


def _close(found: object, expected: object) -> None:
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-9)  # pyright: ignore


def test_f_and_e_at_every_threshold_are_those_of_256_masks() -> None:
    for values, target in cases(50):
        entry, masks = saliency_entry(values, target), _masks(values)
        _close(saliency.f_measure(entry), _f_of_masks(masks, target))
        _close(saliency.e_measure_curve(entry), _e_of_masks(masks, target))


def test_mean_absolute_error_and_the_adaptive_f_are_those_of_the_pixels() -> None:
    for values, target in cases(50):
        entry = saliency_entry(values, target)
        _close(saliency.mean_absolute_error(entry), np.abs(_stretched(values) - target).mean())
        _close(saliency.adaptive_f_measure(entry), _adaptive(values, target))


def test_the_structure_measure_is_the_papers_in_fractions() -> None:
    for values, target in cases(50):
        _close(saliency_entry(values, target).s_measure, _structure(values, target))


def test_the_structure_measure_of_a_foreground_in_the_last_row_is_a_number() -> None:
    target = np.zeros((4, 5), bool)
    target[-1] = True
    values = np.where(target, 255, 0).astype(np.uint8)
    _close(saliency_entry(values, target).s_measure, 1.0)
    assert saliency_entry(255 - values, target).s_measure == 0.0


def test_a_picture_of_ordinary_size_gives_the_plain_scores() -> None:
    rng = np.random.default_rng(3)
    target = np.zeros((97, 131), bool)
    target[20:70, 33:120] = True
    values = (rng.integers(0, 120, target.shape) + 100 * target).astype(np.uint8)
    entry, masks = saliency_entry(values, target), _masks(values)
    _close(saliency.f_measure(entry), _f_of_masks(masks, target))
    _close(saliency.e_measure_curve(entry), _e_of_masks(masks, target))
    _close(entry.s_measure, _structure(values, target))


def test_the_alignment_of_two_masks_is_the_papers() -> None:
    rng = np.random.default_rng(1)
    for _ in range(300):
        shape = (int(rng.integers(1, 7)), int(rng.integers(1, 7)))
        for prediction, target in itertools.product(list(targets(rng, shape)), repeat=2):
            _close(saliency.e_measure(prediction, target), _e_of_masks(prediction[None], target)[0])


@pytest.mark.parametrize(("drawn", "wanted", "score"), [(0, 0, 1), (0, 1, 0), (1, 0, 0), (1, 1, 1)])
def test_the_alignment_of_empty_and_full_masks_of_one_pixel(
    drawn: int, wanted: int, score: int
) -> None:
    prediction, target = np.full((1, 1), bool(drawn)), np.full((1, 1), bool(wanted))
    assert saliency.e_measure(prediction, target) == score


def test_a_perfect_mask_has_the_authors_divisor() -> None:
    target = np.zeros((4, 5), bool)
    target[1:3, 1:4] = True
    _close(saliency.e_measure(target, target), 20 / 19)


def test_scores_of_a_dataset_average_the_images_curves() -> None:
    pictures = list(cases(2, 9))
    f = np.mean([_f_of_masks(_masks(v), t) for v, t in pictures], axis=0)
    e = np.mean([_e_of_masks(_masks(v), t) for v, t in pictures], axis=0)
    expected = {
        "MAE": np.mean([np.abs(_stretched(v) - t).mean() for v, t in pictures]),
        "Fmax": f.max(),
        "Fmean": f.mean(),
        "Fadp": np.mean([_adaptive(v, t) for v, t in pictures]),
        "Sm": np.mean([_structure(v, t) for v, t in pictures]),
        "Emax": min(e.max(), 1.0),
        "Em": min(e.mean(), 1.0),
    }
    scores = saliency_scores(sums([saliency_entry(v, t) for v, t in pictures]))
    assert scores.keys() == expected.keys()
    for name, value in expected.items():
        _close(scores[name], value)


def test_scores_do_not_depend_on_the_order_of_the_images() -> None:
    entries = [saliency_entry(v, t) for v, t in cases(3, 12)]
    scores = saliency_scores(sums(entries))
    random.Random(0).shuffle(entries)
    assert saliency_scores(sums(entries)) == scores
    halves = [sums(entries[:17]), sums(entries[17:])]
    assert saliency_scores({name: sum(h[name] for h in halves) for name in halves[0]}) == scores


def test_perfect_maps_score_one_and_their_negatives_zero() -> None:
    rng = np.random.default_rng(0)
    targets = [rng.random((20, 30)) < share for share in (0.1, 0.5, 0.9)]
    perfect = [saliency_entry((255 * t).astype(np.uint8), t) for t in targets]
    wrong = [saliency_entry((255 * ~t).astype(np.uint8), t) for t in targets]
    scores = saliency_scores(sums(perfect))
    assert scores["MAE"] == 0 and scores["Fmax"] == scores["Fadp"] == scores["Emax"] == 1
    _close(scores["Sm"], 1.0)
    scores = saliency_scores(sums(wrong))
    assert scores["MAE"] == 1 and scores["Fadp"] == 0 and scores["Sm"] < 0.1
    assert all(0 <= value <= 1 for value in scores.values())


def test_nothing_is_scored_without_an_image() -> None:
    assert saliency_scores({"count": 0}) == {}


@pytest.mark.parametrize(
    ("values", "target", "reason"),
    [
        (np.zeros((2, 2), np.float32), np.zeros((2, 2), bool), "float32"),
        (np.zeros((2, 2), np.uint8), np.full((2, 2), 255, np.uint8), "bool ground truth"),
        (np.zeros((2, 2), np.uint8), np.zeros((2, 3), bool), "one size"),
        (np.zeros((0, 2), np.uint8), np.zeros((0, 2), bool), "one size"),
    ],
)
def test_arrays_that_are_no_map_and_mask_are_refused(
    values: np.ndarray, target: np.ndarray, reason: str
) -> None:
    with pytest.raises(ValueError, match=reason):
        saliency_entry(values, target)
