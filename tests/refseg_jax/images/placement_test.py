import math

import numpy as np
import pytest

from input_pipeline.schema import encode_mask
from refseg_jax.images.placement import AWAY, LEAVES, check_inside, misplaced, stated_box
from refseg_jax.images.segmentation import SegmentationError, encode_segmentation

HEIGHT, WIDTH = 20, 30


def rectangle(x0: float, y0: float, x1: float, y1: float) -> list[float]:
    return [x0, y0, x1, y0, x1, y1, x0, y1]


@pytest.mark.parametrize(
    ("polygons", "box", "notes"),
    [
        ([rectangle(2, 2, 12, 12)], (), {}),
        ([rectangle(2, 2, 12, 12)], (2, 2, 10, 10), {}),
        ([rectangle(2, 2, 12, 12)], (2, 2, 10, 19.9), {}),
        ([rectangle(2, 2, 12, 12)], (2, 2, 10, 20.1), {AWAY: 1}),
        ([rectangle(2, 2, 12, 12)], (20, 12, 10, 10), {AWAY: 1}),
        ([rectangle(2, 2, 12, 12)], (2, 2, 0, 0), {AWAY: 1}),
        ([rectangle(-1, 0, 31, 21), []], (), {}),
        ([rectangle(-1.5, 0, 9, 9), rectangle(0, 0, 9, 21.5), [1, 1]], (0, 0, 9, 20), {LEAVES: 2}),
    ],
)
def test_regions_outside_of_the_image_or_away_from_their_box(
    polygons: list[list[float]], box: tuple[float, ...], notes: dict[str, int]
):
    counts = encode_segmentation(polygons, HEIGHT, WIDTH).counts
    assert misplaced(polygons, counts, box, HEIGHT, WIDTH) == notes


def test_an_rle_leaves_no_image():
    counts = encode_mask(np.eye(HEIGHT, WIDTH))
    rle = {"size": [HEIGHT, WIDTH], "counts": counts}
    for segmentation in (rle, [rle]):
        assert misplaced(segmentation, counts, (0, 0, 20, 20), HEIGHT, WIDTH) == {}
        assert misplaced(segmentation, counts, (9, 0, 20, 20), HEIGHT, WIDTH) == {AWAY: 1}


@pytest.mark.parametrize(
    ("stored", "box"),
    [
        ([1, 2.5, 3, 4], (1.0, 2.5, 3.0, 4.0)),
        *((bad, ()) for bad in (None, "1234", [1, 2, 3], [1, 2, -3, 4], [1, 2, True, 4])),
        *((bad, ()) for bad in ([1, 2, math.nan, 4], [1, 2, math.inf, 4], {}, [[1], 2, 3, 4])),
    ],
)
def test_boxes_as_annotations_state_them(stored: object, box: tuple[float, ...]):
    assert stated_box(stored) == box


@pytest.mark.parametrize(
    ("polygons", "cure"),
    [
        ([rectangle(2, 2, 12, 40)], "multiply x by 0.3 and y by 0.2"),
        ([rectangle(2, 2, 12, 110)], ""),
        ([rectangle(-8, 2, 12, 10)], ""),
        ([[1, 1], rectangle(31, 2, 34, 10)], "multiply"),
    ],
)
def test_a_region_that_leaves_the_image_may_be_in_per_cent(polygons: list[list[float]], cure: str):
    with pytest.raises(SegmentationError, match="leaves the image of 30 x 20 pixels") as caught:
        check_inside(polygons, HEIGHT, WIDTH)
    assert ("per cent" in str(caught.value)) == bool(cure)
    assert cure in str(caught.value)
