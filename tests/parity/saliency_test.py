"""Scores of saliency maps against PySODMetrics, to 1e-9, and where it has no number to compare."""

import dataclasses
from fractions import Fraction

import numpy as np
import pytest

from refseg_jax.evaluation.protocols import saliency
from refseg_jax.evaluation.protocols.saliency import saliency_entry
from tests.refseg_jax.evaluation.protocols.saliency_cases import Case, cases, sums

theirs = pytest.importorskip("py_sod_metrics", reason="pysodmetrics is not installed")

pytestmark = [
    pytest.mark.parity,
    # Its Fmeasure tells that it will go; its S-measure divides by 0 in empty quadrants.
    pytest.mark.filterwarnings("ignore:This class will be removed", "ignore::RuntimeWarning"),
]

BAR = 1e-9


@dataclasses.dataclass(frozen=True)
class Published:
    """PySODMetrics' numbers; its curves run from threshold 255 down, and are turned here."""

    mae: float
    f_curve: np.ndarray
    precision: np.ndarray
    recall: np.ndarray
    f_adaptive: float
    s_measure: float
    e_curve: np.ndarray


def _published(pictures: list[Case]) -> Published:
    meters = theirs.MAE(), theirs.Fmeasure(), theirs.Smeasure(), theirs.Emeasure()
    for values, target in pictures:
        for meter in meters:
            meter.step(pred=values, gt=np.where(target, 255, 0).astype(np.uint8))
    mae, f, s, e = (meter.get_results() for meter in meters)
    return Published(
        mae=float(mae["mae"]),
        f_curve=f["fm"]["curve"][::-1],
        precision=f["pr"]["p"][::-1],
        recall=f["pr"]["r"][::-1],
        f_adaptive=float(f["fm"]["adp"]),
        s_measure=float(s["sm"]),
        e_curve=e["em"]["curve"][::-1],
    )


def _close(found: object, expected: object) -> None:
    np.testing.assert_allclose(found, expected, rtol=0, atol=BAR)  # pyright: ignore


def _cut_at_the_edge(target: np.ndarray) -> bool:
    """The centre of the ground truth is in the last row or column: quadrants without pixels."""
    if target.all() or not target.any():
        return False
    centre = np.argwhere(target).mean(0).round() + 1
    return bool((centre == target.shape).any())


def _on_the_threshold(values: np.ndarray) -> bool:
    """A pixel is exactly twice the map's mean, where float64 decides by its rounding."""
    low = int(values.min()) if values.min() < values.max() else 0
    whole = values.astype(np.int64) - low
    return bool((whole == 2 * Fraction(int(whole.sum()), whole.size)).any())


def test_each_picture_has_the_published_numbers() -> None:
    compared = 0
    for values, target in cases(75, 9):
        entry, published = saliency_entry(values, target), _published([(values, target)])
        _close(saliency.mean_absolute_error(entry), published.mae)
        _close(saliency.f_measure(entry), published.f_curve)
        precision, recall = saliency.precision_recall(entry)
        _close(precision, published.precision)
        _close(recall, published.recall)
        if target.size > 1:
            _close(saliency.e_measure_curve(entry), published.e_curve)
        if not _on_the_threshold(values):
            _close(saliency.adaptive_f_measure(entry), published.f_adaptive)
        if not _cut_at_the_edge(target) and values.min() < values.max():
            _close(entry.s_measure, published.s_measure)
            compared += 1
    assert compared > 1000


def test_the_published_structure_measure_is_not_a_number_where_the_cut_is_at_the_edge() -> None:
    found = 0
    for values, target in cases(20, 9):
        published = _published([(values, target)]).s_measure
        assert np.isnan(published) == _cut_at_the_edge(target)
        found += bool(np.isnan(published))
    assert found > 20


def test_a_dataset_has_the_published_scores() -> None:
    rng = np.random.default_rng(0)
    pictures = []
    for size in rng.integers(60, 200, (12, 2)):
        target = np.zeros(size, bool)
        target[10 : size[0] // 2, 5 : size[1] - 20] = True
        noise = rng.integers(0, 150, size)
        pictures.append(((noise + 90 * target).astype(np.uint8), target))
    published = _published(pictures)
    expected = {
        "MAE": published.mae,
        "Fmax": published.f_curve.max(),
        "Fmean": published.f_curve.mean(),
        "Fadp": published.f_adaptive,
        "Sm": published.s_measure,
        "Emax": published.e_curve.max(),
        "Em": published.e_curve.mean(),
    }
    scores = saliency.saliency_scores(sums([saliency_entry(v, t) for v, t in pictures]))
    assert scores == pytest.approx(expected, rel=0, abs=BAR)


def test_two_masks_have_the_published_alignment() -> None:
    meter = theirs.Emeasure()
    for values, target in cases(75, 9):
        if target.size == 1:
            continue
        mask = values > 127
        meter.gt_fg_numel, meter.gt_size = np.count_nonzero(target), target.size
        published = meter.cal_em_with_threshold(mask.astype(np.float64), target, threshold=0.5)
        _close(saliency.e_measure(mask, target), published)
