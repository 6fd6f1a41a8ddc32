"""Segmentations of any form: right, or one line; unions and areas are those of numpy."""

import random

import numpy as np
import pytest

from input_pipeline.schema import encode_mask
from refseg_jax.images.placement import check_inside, misplaced, stated_box
from refseg_jax.images.segmentation import (
    EmptyRegion,
    SegmentationError,
    are_plain,
    decode_counts,
    encode_segmentation,
)
from refseg_jax.images.units import Evidence
from tests.fuzz.values import mutated
from tests.refseg_jax.images.segmentation_test import compressed, random_mask, random_runs

pytestmark = pytest.mark.slow

HEIGHT, WIDTH = 48, 64


def test_unions_of_rles_equal_those_of_numpy() -> None:
    rng = np.random.default_rng(1)
    for _ in range(60_000):
        height, width = (int(n) for n in rng.integers(1, 13, 2))
        masks = [random_mask(rng, height, width) for _ in range(int(rng.integers(1, 5)))]
        rles = []
        for mask in masks:
            runs = random_runs(mask, rng)
            counts = compressed(runs) if rng.random() < 0.5 else runs
            rles.append({"size": [height, width], "counts": counts})
        union = np.logical_or.reduce(masks)
        try:
            counts = encode_segmentation(rles, height, width).counts
        except EmptyRegion:
            assert not union.any()
            continue
        assert counts == encode_mask(union)


def _runs(mask: np.ndarray) -> list[int]:
    flat = np.concatenate([[False], mask.T.ravel()])
    ends = np.append(np.flatnonzero(flat[1:] != flat[:-1]), mask.size)
    return np.diff(ends, prepend=0).tolist()


MASK = np.zeros((HEIGHT, WIDTH), bool)
MASK[5:30, 10:50] = True
POLYGONS = [[10, 5, 50, 5, 50, 30, 10, 30], [1.5, 1.5, 9.25, 1.5, 9.25, 8.0]]
VALID = [
    POLYGONS,
    [[0.1, 0.2, 0.9, 0.2, 0.9, 0.8]],
    {"size": [HEIGHT, WIDTH], "counts": encode_mask(MASK).decode()},
    {"size": [HEIGHT, WIDTH], "counts": _runs(MASK)},
    [{"size": [HEIGHT, WIDTH], "counts": _runs(MASK)}] * 2,
]
BOX = [10, 5, 40, 25]


def test_any_value_is_a_region_or_one_line() -> None:
    rng = random.Random(2)
    accepted = refused = 0
    for _ in range(150_000):
        segmentation = mutated(rng.choice(VALID), rng, [*VALID, BOX])
        box = stated_box(mutated(BOX, rng, VALID) if rng.random() < 0.5 else BOX)
        evidence = Evidence()
        evidence.add(segmentation, 0, (HEIGHT, WIDTH))
        assert "\n" not in evidence.find()
        try:
            check_inside(segmentation, HEIGHT, WIDTH)
            counts = encode_segmentation(segmentation, HEIGHT, WIDTH, box).counts
        except SegmentationError as error:
            assert "\n" not in str(error)
            assert len(str(error)) < 400
            refused += 1
            continue
        accepted += 1
        misplaced(segmentation, counts, box, HEIGHT, WIDTH)
        mask = decode_counts(counts, HEIGHT, WIDTH)
        assert mask.any()
        assert are_plain([counts], [HEIGHT * WIDTH])
        assert counts == encode_mask(mask)
    assert min(accepted, refused) > 10_000
