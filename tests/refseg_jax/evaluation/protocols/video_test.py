"""J, F and their averages against the definitions, pixel by pixel."""

import itertools
import math
import random
from collections.abc import Iterator

import numpy as np
import pytest

from refseg_jax.evaluation.protocols import video

Pixels = set[tuple[int, int]]


def _masks(rng: np.random.Generator, shape: tuple[int, int]) -> Iterator[np.ndarray]:
    one, box = np.zeros(shape, bool), np.zeros(shape, bool)
    one[rng.integers(shape[0]), rng.integers(shape[1])] = True
    top, bottom = np.sort(rng.integers(0, shape[0] + 1, 2))
    left, right = np.sort(rng.integers(0, shape[1] + 1, 2))
    box[top:bottom, left:right] = True
    yield from (one, ~one, box, np.zeros(shape, bool), np.ones(shape, bool))
    yield from (rng.random(shape) < share for share in (0.1, 0.5, 0.95))


def _pairs(rounds: int, largest: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    rng = np.random.default_rng(5)
    for _ in range(rounds):
        shape = (int(rng.integers(1, largest + 1)), int(rng.integers(1, largest + 1)))
        masks = list(_masks(rng, shape))
        yield from itertools.product(masks, masks)


def _contour(mask: np.ndarray) -> Pixels:
    """seg2bmap: a pixel against its three later neighbours, those outside the image left out."""
    height, width = mask.shape
    found = set()
    for y, x in itertools.product(range(height), range(width)):
        later = [(y, x + 1), (y + 1, x), (y + 1, x + 1)]
        if any(v < height and u < width and mask[v, u] != mask[y, x] for v, u in later):
            found.add((y, x))
    return found


def _near(pixels: Pixels, others: Pixels, radius: float) -> float:
    """The share of pixels that have one of the others within the radius."""
    there, here = np.array(list(others)), np.array(list(pixels))
    squares = ((here[:, None] - there) ** 2).sum(-1)
    return float((squares.min(1) <= radius**2).mean())


def _f(prediction: np.ndarray, target: np.ndarray) -> float:
    found, wanted = _contour(prediction), _contour(target)
    radius = math.ceil(0.008 * np.linalg.norm(target.shape))
    if not found and not wanted:
        return 1.0
    precision = 1.0 if not found else 0.0 if not wanted else _near(found, wanted, radius)
    recall = 1.0 if not wanted else 0.0 if not found else _near(wanted, found, radius)
    return 2 * precision * recall / (precision + recall) if precision + recall else 0.0


def _j(prediction: np.ndarray, target: np.ndarray) -> float:
    drawn = {(y, x) for y, x in np.argwhere(prediction)}
    wanted = {(y, x) for y, x in np.argwhere(target)}
    return len(drawn & wanted) / len(drawn | wanted) if drawn | wanted else 1.0


def test_j_is_intersection_over_union_and_one_where_both_are_empty() -> None:
    for prediction, target in _pairs(60, 7):
        assert video.region_similarity(prediction, target) == _j(prediction, target)


def test_contours_are_those_of_seg2bmap() -> None:
    for mask, _ in _pairs(10, 9):
        assert set(map(tuple, np.argwhere(video.contour(mask)).tolist())) == _contour(mask)


def test_f_is_that_of_all_pairs_of_contour_pixels() -> None:
    for prediction, target in _pairs(40, 9):
        expected = _f(prediction, target)
        assert video.contour_accuracy(prediction, target) == pytest.approx(
            expected, rel=0, abs=1e-9
        )


@pytest.mark.parametrize(("shape", "radius"), [((90, 88), 2), ((60, 470), 4)])
def test_contours_match_within_the_share_of_the_diagonal(
    shape: tuple[int, int], radius: int
) -> None:
    for shift in range(radius + 3):
        prediction, target = np.zeros(shape, bool), np.zeros(shape, bool)
        target[20:40, 30:60] = prediction[20 + shift : 40 + shift, 30:60] = True
        found = video.contour_accuracy(prediction, target)
        assert found == pytest.approx(_f(prediction, target), rel=0, abs=1e-9)
        assert (found == 1) == (shift <= radius)


def test_the_reach_is_numpys_norm_for_any_size() -> None:
    for height, width in itertools.product(range(1, 1200, 7), range(1, 1200, 5)):
        theirs = np.ceil(video.BOUND * np.linalg.norm((height, width)))
        assert math.ceil(video.BOUND * math.hypot(height, width)) == theirs


EMPTY, SOME, FULL = np.zeros((6, 7), bool), np.zeros((6, 7), bool), np.ones((6, 7), bool)
SOME[2:4, 1:5] = True


@pytest.mark.parametrize(
    ("prediction", "target", "j", "f"),
    [
        (EMPTY, EMPTY, 1, 1),
        (SOME, EMPTY, 0, 0),
        (EMPTY, SOME, 0, 0),
        (SOME, SOME, 1, 1),
        (FULL, FULL, 1, 1),
        (FULL, EMPTY, 0, 1),
        (FULL, SOME, 8 / 42, 0),
    ],
)
def test_empty_and_full_masks(
    prediction: np.ndarray, target: np.ndarray, j: float, f: float
) -> None:
    assert video.region_similarity(prediction, target) == j
    assert video.contour_accuracy(prediction, target) == f


def _sums(frames: list[tuple[np.ndarray, np.ndarray]]) -> dict[str, int]:
    """As a protocol's state adds them up."""
    added = [video.video_sums(*frame) for frame in frames]
    return {name: sum(one[name] for one in added) for name in ("J", "F")} | {"count": len(added)}


def test_scores_are_means_over_objects_of_means_over_all_frames() -> None:
    pairs = list(_pairs(2, 8))
    objects = {"a/0": pairs[:3], "a/1": pairs[3:40], "b/0": pairs[40:41], "b/1": pairs[41:]}
    j, f = (
        np.mean([np.mean([measure(*frame) for frame in frames]) for frames in objects.values()])
        for measure in (_j, _f)
    )
    scores = video.video_scores({name: _sums(frames) for name, frames in objects.items()})
    expected = {"J": j, "F": f, "JF": (j + f) / 2}
    assert scores == pytest.approx(expected, rel=0, abs=1e-9)


def test_a_single_object_has_the_means_of_its_frames() -> None:
    scores = video.video_scores({"a/0": _sums([(SOME, SOME), (EMPTY, SOME), (FULL, EMPTY)])})
    assert scores == pytest.approx({"J": 1 / 3, "F": 2 / 3, "JF": 0.5}, rel=0, abs=1e-9)


def test_the_order_of_frames_and_objects_changes_no_digit() -> None:
    pairs = list(_pairs(3, 8))
    objects = {str(k): pairs[k::7] for k in range(7)}
    scores = video.video_scores({name: _sums(frames) for name, frames in objects.items()})
    shuffled = list(objects.items())
    random.Random(0).shuffle(shuffled)
    assert video.video_scores({n: _sums(frames[::-1]) for n, frames in shuffled}) == scores


def test_nothing_is_scored_without_an_object() -> None:
    assert video.video_scores({}) == {}


@pytest.mark.parametrize(
    ("prediction", "reason"),
    [(np.zeros((2, 2), np.uint8), "uint8"), (np.zeros((2, 3), bool), "one size")],
)
def test_arrays_that_are_no_masks_of_one_size_are_refused(
    prediction: np.ndarray, reason: str
) -> None:
    for measure in (video.region_similarity, video.contour_accuracy):
        with pytest.raises(ValueError, match=reason):
            measure(prediction, np.zeros((2, 2), bool))
