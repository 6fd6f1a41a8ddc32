"""Scores of saliency maps: MAE, F-measure, S-measure, E-measure, as PySODMetrics computes them.

Sources: PySODMetrics 1.6 (a port of the authors' MATLAB, used by most tables since 2020), and the
papers named at each function. All scores follow from integer counts of an image: how often each of
the 256 grey values occurs in the foreground and in the background. So 256 thresholds cost one pass
over the pixels, and the order of the images changes no digit.

What "F" means in the tables that `saliency_scores` is compared with:

- GRSer (Table 3, CoCA) reports MAE, `Fmax`, `Sm` and `Em`, the mean over thresholds. The CoCA
  toolbox (eval-co-sod) differs a little: 255 thresholds k / 254, MAE of maps that are not
  stretched, no +1 at the centre of the S-measure, no special case for an empty ground truth.
- UniLSeg (Table 6) writes F_mean and does not define it. In PySODMetrics that is `Fmean`, the mean
  over 256 thresholds. Papers of the time of F3Net, which the table cites, call `Fadp` the mean
  F-measure: that of the pixels above twice the map's mean (`eval/Fmeasure.m` of F3Net's code).
- F3Net's toolbox takes its maximum from the averaged precision and recall, and skips images whose
  map or ground truth is empty. PySODMetrics, eval-co-sod and ICON's evaluation average the
  F-measures of all images, as this module does.
"""

import dataclasses
import math
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from refseg_jax.evaluation.protocols.base import Counts, exact, mean

#: Weight of recall against precision (Achanta et al., CVPR 2009).
BETA_SQUARED = 0.3

#: Weight of the object term of the S-measure.
ALPHA = 0.5

_GREYS = 256
_EPSILON = float(np.spacing(1.0))


@dataclasses.dataclass(frozen=True, eq=False)
class SaliencyEntry:
    """Counts of one image, from which every score but the S-measure follows.

    Attributes:
        counts: i32 `[2, 256]`, pixels of each grey value in the background (row 0) and in the
            foreground (row 1) of the ground truth.
        s_measure: see `_s_measure`.
    """

    counts: np.ndarray
    s_measure: float


def saliency_entry(saliency: np.ndarray, target: np.ndarray) -> SaliencyEntry:
    """Counts a map against its ground truth.

    Args:
        saliency: u8 `[h, w]`; stretched so that its values span 0..1 (a constant map is only divided
            by 255), as PySODMetrics does.
        target: bool `[h, w]`; PySODMetrics takes grey values above 128.

    Raises:
        ValueError: a type is wrong, the shapes differ, or there are no pixels.
    """
    _check(saliency, target, np.dtype(np.uint8))
    row, column = _centre(target)
    rows = (slice(0, row), slice(row, None))
    columns = (slice(0, column), slice(column, None))
    quadrants = np.stack([_counts(saliency[r, c], target[r, c]) for r in rows for c in columns])
    counts = quadrants.sum(0)
    return SaliencyEntry(counts.astype(np.int32), _s_measure(quadrants, counts))


def mean_absolute_error(entry: SaliencyEntry) -> float:
    """Mean of |map - ground truth| (Perazzi et al., CVPR 2012), the map stretched to 0..1."""
    low, span = _range(entry.counts)
    value = np.arange(_GREYS) - low
    background, foreground = entry.counts.astype(np.int64)
    error = int(background @ value) + int(foreground @ (span - value))
    return error / (span * int(entry.counts.sum()))


def precision_recall(entry: SaliencyEntry) -> tuple[np.ndarray, np.ndarray]:
    """Precision and recall at each threshold, both f64 `[256]`.

    At threshold t the pixels with `floor(255 * map) >= t` are predicted. Precision is 0 if none is;
    recall is 0 if the ground truth is empty.
    """
    false, true = _predicted(entry.counts)
    return true / np.maximum(true + false, 1), true / max(_positives(entry), 1)


def f_measure(entry: SaliencyEntry) -> np.ndarray:
    """`1.3 P R / (0.3 P + R)` at each threshold, f64 `[256]`; 0 where no pixel is hit.

    Achanta et al., CVPR 2009, with beta^2 = 0.3.
    """
    precision, recall = precision_recall(entry)
    product = (1 + BETA_SQUARED) * precision * recall
    return product / np.where(product == 0, 1.0, BETA_SQUARED * precision + recall)


def adaptive_f_measure(entry: SaliencyEntry) -> float:
    """The F-measure of the pixels with `map >= min(2 * mean(map), 1)` (Achanta et al., 2009)."""
    low, span = _range(entry.counts)
    value = np.arange(_GREYS) - low
    pixels = int(entry.counts.sum())
    total = int(entry.counts.sum(0, dtype=np.int64) @ value)
    # In integers, so that rounding cannot exclude a pixel that lies on the threshold.
    predicted = value * pixels >= min(2 * total, span * pixels)
    false, true = (int(row[predicted].sum()) for row in entry.counts)
    if true == 0:
        return 0.0
    precision, recall = true / (true + false), true / _positives(entry)
    return (1 + BETA_SQUARED) * precision * recall / (BETA_SQUARED * precision + recall)


def e_measure_curve(entry: SaliencyEntry) -> np.ndarray:
    """`e_measure` of the map at each threshold, f64 `[256]`; thresholds as in `precision_recall`."""
    false, true = _predicted(entry.counts)
    return _e_measure(true, false, _positives(entry), int(entry.counts.sum()))


def e_measure(prediction: np.ndarray, target: np.ndarray) -> float:
    """Enhanced alignment of two masks (Fan et al., IJCAI 2018).

    Let `p` and `g` be the masks less their means, and `xi = 2 p g / (p^2 + g^2)` at each pixel. The
    score is `sum((1 + xi)^2 / 4) / (pixels - 1)`. An empty ground truth scores the share of pixels
    that are not predicted, a full one the share that are.

    The divisor is that of the authors' code, and so of all published numbers; the paper's equation
    has `pixels`. A perfect mask therefore scores `n / (n - 1)`, 1.000003 at 480 x 640: cut the mean
    over a dataset at 1, as `saliency_scores` does. For an image of one pixel the divisor is 1.

    Args:
        prediction, target: bool `[h, w]`.

    Raises:
        ValueError: a type is wrong, the shapes differ, or there are no pixels.
    """
    _check(prediction, target, np.dtype(bool))
    both = (np.count_nonzero(mask) for mask in (prediction & target, prediction, target))
    return e_measure_of_counts(Counts(*map(int, both)), target.size)


def e_measure_of_counts(counts: Counts, pixels: int) -> float:
    """`e_measure` from the counts of two masks, on an image of `pixels` pixels."""
    hits = np.array([counts.intersection])
    return float(_e_measure(hits, counts.prediction - hits, counts.target, pixels)[0])


def saliency_sums(entry: SaliencyEntry) -> dict[str, int]:
    """Integers of an image, to be summed by name: `exact` of each score at each threshold."""
    curves = {"F": f_measure(entry), "E": e_measure_curve(entry)}
    values = {
        f"{name}@{t}": value for name, curve in curves.items() for t, value in enumerate(curve)
    }
    values["MAE"] = mean_absolute_error(entry)
    values["Fadp"] = adaptive_f_measure(entry)
    values["Sm"] = entry.s_measure
    return {name: exact(float(value)) for name, value in values.items()}


def saliency_scores(sums: Mapping[str, int]) -> dict[str, float]:
    """Scores of a dataset in [0, 1], unrounded.

    Args:
        sums: the sum of `saliency_sums` over the images, and their number as `count`.

    Returns:
        `MAE`, `Sm` and `Fadp` (the adaptive F-measure), means over the images. `Fmax` and `Fmean`,
        maximum and mean over the 256 thresholds of the F-measure averaged over the images; `Emax` and
        `Em`, the same of the E-measure. Empty if there is no image.
    """
    count = sums["count"]
    if count == 0:
        return {}
    f_curve, e_curve = ([mean(sums[f"{c}@{t}"], count) for t in range(_GREYS)] for c in "FE")
    return {
        "MAE": mean(sums["MAE"], count),
        "Fmax": max(f_curve),
        "Fmean": math.fsum(f_curve) / _GREYS,
        "Fadp": mean(sums["Fadp"], count),
        "Sm": mean(sums["Sm"], count),
        "Emax": min(max(e_curve), 1.0),
        "Em": min(math.fsum(e_curve) / _GREYS, 1.0),
    }


def _check(prediction: np.ndarray, target: np.ndarray, dtype: np.dtype) -> None:
    if prediction.dtype != dtype or target.dtype != np.dtype(bool):
        found = f"{prediction.dtype} and {target.dtype}"
        raise ValueError(f"expected {dtype} and a bool ground truth, not {found}")
    if prediction.shape != target.shape or target.ndim != 2 or target.size == 0:
        found = f"{prediction.shape} and {target.shape}"
        raise ValueError(f"expected two pictures [h, w] of one size, not {found}")


def _counts(saliency: np.ndarray, target: np.ndarray) -> np.ndarray:
    """i64 `[2, 256]`, as in `SaliencyEntry`."""
    codes = saliency + target * np.uint16(_GREYS)
    return np.bincount(codes.ravel(), minlength=2 * _GREYS).reshape(2, _GREYS)


def _positives(entry: SaliencyEntry) -> int:
    return int(entry.counts[1].sum())


def _range(counts: np.ndarray) -> tuple[int, int]:
    """The grey value that is stretched to 0, and its distance to the one that is stretched to 1."""
    present = np.flatnonzero(counts.any(0))
    low, high = int(present[0]), int(present[-1])
    return (low, high - low) if high > low else (0, _GREYS - 1)


def _predicted(counts: np.ndarray) -> np.ndarray:
    """i64 `[2, 256]`: pixels of background and foreground that reach each threshold."""
    low, span = _range(counts)
    grey = np.arange(_GREYS)
    ends = np.array([low, low + span]) / 255
    # PySODMetrics' own operations: where the quotient is a whole number, float64 sometimes falls a
    # level below it, which an exact floor would not.
    stretched = (np.clip(grey, low, low + span) / 255 - ends[0]) / (ends[1] - ends[0])
    level = (stretched * 255).astype(np.uint8)
    from_grey_up = np.zeros((2, _GREYS + 1), np.int64)
    from_grey_up[:, :-1] = np.cumsum(counts[:, ::-1], 1, dtype=np.int64)[:, ::-1]
    return from_grey_up[:, np.searchsorted(level, grey)]


def _e_measure(true: np.ndarray, false: np.ndarray, positives: int, pixels: int) -> np.ndarray:
    """`e_measure` for counts i64 `[T]` of hit and of wrongly predicted pixels, f64 `[T]`.

    All pixels of a kind (predicted or not, in the ground truth or not) have the same value, so
    that the sum over pixels has four terms.
    """
    divisor = max(pixels - 1, 1)
    if positives == 0:
        return (pixels - true - false) / divisor
    if positives == pixels:
        return (true + false) / divisor
    p, g = (true + false) / pixels, positives / pixels
    missed = positives - true
    kinds = (
        (1 - p, 1 - g, true),
        (1 - p, -g, false),
        (-p, 1 - g, missed),
        (-p, -g, pixels - true - false - missed),
    )
    total = np.zeros(true.shape)
    for a, b, number in kinds:
        total += (1 + 2 * a * b / (a * a + b * b + _EPSILON)) ** 2 / 4 * number
    return total / divisor


class _Moments(NamedTuple):
    """Mean, variance and covariance (divided by n - 1) of the map and the mask in a region."""

    pixels: int
    mean: float
    variance: float
    target_mean: float
    target_variance: float
    covariance: float


def _moments(counts: np.ndarray, low: int, span: int) -> _Moments:
    """Moments from i64 `[2, 256]` counts, in integers, so that a constant region has variance 0."""
    value = np.arange(_GREYS) - low
    both = counts.sum(0)
    n, hits = int(both.sum()), int(counts[1].sum())
    total, squares, shared = int(both @ value), int(both @ value**2), int(counts[1] @ value)
    pairs = n * max(n - 1, 1)
    return _Moments(
        pixels=n,
        mean=total / (n * span),
        variance=(n * squares - total**2) / (pairs * span**2),
        target_mean=hits / n,
        target_variance=(n * hits - hits**2) / pairs,
        covariance=(n * shared - total * hits) / (pairs * span),
    )


def _centre(target: np.ndarray) -> tuple[int, int]:
    """Row and column after the centre of the foreground, where the S-measure cuts the image.

    Halves are rounded to the even number, as in NumPy (MATLAB: away from 0).
    """
    positives = np.count_nonzero(target)
    if positives == 0:
        return target.shape
    row, column = (
        round(int(np.count_nonzero(target, axis=1 - axis) @ np.arange(length)) / positives)
        for axis, length in enumerate(target.shape)
    )
    return row + 1, column + 1


def _s_measure(quadrants: np.ndarray, counts: np.ndarray) -> float:
    """Structure measure `0.5 S_object + 0.5 S_region`, at least 0 (Fan et al., ICCV 2017).

    An empty ground truth scores `1 - mean(map)`, a full one `mean(map)`. `S_object` averages the
    foreground of the map and the background of its negative, weighted by their shares of pixels;
    `S_region` averages the similarity of the quadrants around the centre of the ground truth,
    weighted by theirs. PySODMetrics gives NaN if the cut leaves a quadrant without pixels (a
    foreground in the last row or column alone); its weight is 0, so it is left out here.

    Args:
        quadrants: i64 `[4, 2, 256]`, counts as in `SaliencyEntry`.
        counts: their sum.
    """
    low, span = _range(counts)
    whole = _moments(counts, low, span)
    share = whole.target_mean
    if share in (0.0, 1.0):
        return whole.mean if share else 1.0 - whole.mean
    background, foreground = (_moments(np.stack([row, 0 * row]), low, span) for row in counts)
    objects = share * _object_score(foreground.mean, foreground.variance)
    objects += (1 - share) * _object_score(1 - background.mean, background.variance)
    regions = 0.0
    for quadrant in quadrants:
        if quadrant.any():
            region = _moments(quadrant, low, span)
            regions += region.pixels / whole.pixels * _similarity(region)
    return max(0.0, ALPHA * objects + (1 - ALPHA) * regions)


def _object_score(mean: float, variance: float) -> float:
    """`2 x / (x^2 + 1 + sigma)`."""
    return 2 * mean / (mean**2 + 1 + math.sqrt(variance))


def _similarity(region: _Moments) -> float:
    """SSIM's luminance, contrast and structure without its constants; 1 if map and mask are flat."""
    means = region.mean**2 + region.target_mean**2
    below = means * (region.variance + region.target_variance)
    above = 4 * region.mean * region.target_mean * region.covariance
    if above == 0:
        return float(below == 0)
    return above / (below + _EPSILON)
