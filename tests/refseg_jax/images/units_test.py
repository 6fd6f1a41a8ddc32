from collections.abc import Sequence
from typing import Any

import pytest

from refseg_jax.images.segmentation import SegmentationError, encode_segmentation
from refseg_jax.images.units import Evidence, bounds_of, find_other_unit


def rectangle(x0: float, y0: float, x1: float, y1: float) -> list[float]:
    return [x0, y0, x1, y0, x1, y1, x0, y1]


HEIGHT, WIDTH = 480, 640
#: A region in pixels.
PIXELS = (128, 96, 320, 240)
IN_SHARES = rectangle(0.2, 0.2, 0.5, 0.5)
IN_PER_CENT = rectangle(20, 20, 50, 50)
BOX = (128, 96, 192, 144)


def test_bounds():
    assert bounds_of([rectangle(1, 2, 3, 4), [0.5, 9, 1, 1]]) == (0.5, 1, 3, 9)
    assert bounds_of([[[1, 2], [3, 4]], [[0, 9]]]) == (0, 2, 3, 9)
    for none in ([], {}, None, "text", [1, 2, 3], [[]], [["1", 2]], [[10**400, 2]], [[1]], [None]):
        assert bounds_of(none) is None


@pytest.mark.parametrize(
    ("polygons", "box", "found"),
    [
        ([IN_SHARES], (), "shares"),
        ([IN_SHARES], BOX, "shares"),
        ([IN_SHARES], (0.2, 0.2, 0.3, 0.3), "shares"),
        ([rectangle(0.02, 0.03, 0.99, 0.98)], (), "shares"),
        # Drawn over the border by a little.
        ([rectangle(-0.01, 0.2, 1.02, 0.7)], (), "shares"),
        # The left half of the picture, with its box in pixels.
        ([rectangle(0, 0, 0.5, 1)], (0, 0, 320, 480), "shares"),
        ([IN_PER_CENT], BOX, "per cent"),
        ([rectangle(50, 0, 100, 100)], (320, 0, 320, 480), "per cent"),
        # Real regions in the corner, which are in pixels.
        ([rectangle(0, 0, 1, 1)], (), None),
        ([rectangle(0, 0.5, 0.5, 1)], (), None),
        ([rectangle(0, 0, 1, 1)], (0, 0, 1, 1), None),
        ([rectangle(0.2, 0.3, 1.8, 1.9)], (), None),
        ([rectangle(0, 0, 2.25, 1.75)], (), None),
        ([IN_PER_CENT], (), None),
        ([IN_PER_CENT], (20, 20, 30, 30), None),
        ([IN_PER_CENT], (400, 300, 30, 30), None),
        # A box that was rounded, of another size than its region.
        ([rectangle(0, 0, 1.5, 1.5)], (0, 0, 1, 1), None),
        ([IN_SHARES, rectangle(*PIXELS)], (), None),
        ([rectangle(*PIXELS)], (0.2, 0.2, 0.3, 0.3), None),
        ([rectangle(*PIXELS)], BOX, None),
    ],
)
def test_regions_that_tell_their_unit(
    polygons: list[list[float]], box: tuple[float, ...], found: str | None
):
    other = find_other_unit(polygons, HEIGHT, WIDTH, box)
    assert (other is None) == (found is None)
    if other is not None and found is not None:
        reason, cure = other
        assert found in reason
        factors = (640, 480) if found == "shares" else (6.4, 4.8)
        assert cure == "multiply x by {:g} and y by {:g}".format(*factors)
        with pytest.raises(SegmentationError, match=f"{found}.*; multiply"):
            encode_segmentation(polygons, HEIGHT, WIDTH, box)


def test_per_cent_that_leaves_a_small_picture():
    out = [rectangle(20.8, 21.9, 62.5, 78.1)]
    found = find_other_unit(out, 64, 96)
    assert found == (
        "its coordinates are per cent (0..100), not pixels",
        "multiply x by 0.96 and y by 0.64",
    )
    # Whole pixels, a slip over the border, or a larger picture.
    assert find_other_unit([rectangle(20, 21, 62, 78)], 64, 96) is None
    assert find_other_unit([rectangle(20.5, 21.5, 62.5, 68.5)], 64, 96) is None
    assert find_other_unit(out, 96, 64) is None


def test_a_rounded_box_in_a_picture_of_about_100_pixels():
    assert find_other_unit([rectangle(0, 0, 1.5, 1.5)], 48, 64, (0, 0, 1, 1)) is None


def test_x_and_y_that_are_swapped():
    swapped = [rectangle(96, 128, 240, 320)]
    assert find_other_unit(swapped, HEIGHT, WIDTH, BOX) == (
        "its x and y are swapped",
        "write x before y",
    )
    for box in ((), (96, 128, 144, 192), (300, 300, 20, 20)):
        assert find_other_unit(swapped, HEIGHT, WIDTH, box) is None
    # Fits either way.
    assert (
        find_other_unit([rectangle(100, 100, 200, 200)], HEIGHT, WIDTH, (100, 100, 100, 100))
        is None
    )


def test_a_picture_of_one_pixel_has_no_other_unit():
    assert find_other_unit([rectangle(0, 0, 0.9, 0.9)], 1, 1) is None


def test_an_rle_and_malformed_polygons_tell_nothing():
    for segmentation in ({"size": [1, 1], "counts": [1]}, [], None, [["a", 1]]):
        assert find_other_unit(segmentation, HEIGHT, WIDTH) is None


def judged(
    regions: Sequence[tuple[float, float, float, float]],
    *,
    size: tuple[int, int] = (HEIGHT, WIDTH),
    pictures: int = 1000,
    known: bool = True,
) -> str:
    evidence = Evidence()
    for number, region in enumerate(regions):
        evidence.add([rectangle(*region)], number % pictures, size if known else None)
    return evidence.find(None if known else lambda picture: size)


MANY: Any = [(10 * n, 90 - 10 * n, 10 * n + 9.5, 99 - 10 * n) for n in range(9)]


@pytest.mark.parametrize("known", [True, False])
def test_files_of_shares(known: bool):
    assert "shares" in judged([(0.1, 0.1, 0.5, 0.6)], known=known)
    # The whole picture, which alone could be one pixel.
    assert "shares" in judged([(0, 0, 1, 1)], known=known)
    assert "shares" in judged([(0, 0, 1, 1), (0, 0, 0.5, 1), PIXELS], known=known)
    assert judged([(0, 0, 1, 1), PIXELS], known=known) == ""
    assert judged([], known=known) == ""


@pytest.mark.parametrize("known", [True, False])
def test_files_of_per_cent(known: bool):
    assert "per cent" in judged(MANY, known=known)
    assert "per cent" in judged([(50, 0, 100, 100)], known=known)
    assert "per cent" in judged([(0, 0, 100, 40), (20, 20, 30, 40)], known=known)
    assert "per cent" in judged([*MANY, (0, 0, 1, 1)], known=known)
    # Computed from pixels: 125 / 640 and the like.
    assert "per cent" in judged([(19.53125, 20.41667, 62.5, 78.125)], known=known)


def test_files_of_small_regions_in_pixels():
    assert judged([(20, 14, 60, 50)]) == ""
    assert judged([(20.25, 14.125, 60.5, 50.75)]) == ""
    assert judged([(2.03125, 3.0001, 40.5, 30)]) == ""
    assert judged([(19.53125, 20.41667, 62.5, 78.125), (1, 2, 3, 4)]) == ""
    assert judged([(19.53125, 20.41667, 62.5, 78.125)], size=(150, 640)) == ""
    assert judged([*MANY, PIXELS]) == ""
    assert judged(MANY[:7]) == ""
    assert judged(MANY, pictures=2) == ""
    assert judged(MANY, size=(150, 640)) == ""
    assert judged(9 * [(60, 60, 90, 90)]) == ""
    # Many in the corner of that range, such as logos.
    assert judged([(n, n, n + 30, n + 20) for n in range(20)]) == ""
    assert judged([(50, 0, 100, 100), PIXELS]) == ""
    assert judged([(50, 0, 100, 100)], size=(100, 200)) == ""
    assert judged([(50, 0, 99.5, 100)]) == judged([(50, 0, 90, 99)]) == ""


def test_the_first_small_region_is_kept():
    evidence = Evidence()
    evidence.add({"size": [4, 4], "counts": [16]}, "a")
    evidence.add([rectangle(*PIXELS)], "b")
    assert evidence.first is None
    evidence.add([IN_SHARES], "c")
    evidence.add([IN_SHARES], "d")
    assert evidence.first == "c"
    assert "if they are pixels, give RLE" in evidence.find()
