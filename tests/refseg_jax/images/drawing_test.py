"""Regions drawn on pictures."""

import cv2
import numpy as np
import pytest

from refseg_jax.images.drawing import (
    PREDICTED_COLOUR,
    REGION_COLOURS,
    TARGET_COLOUR,
    dimmed,
    draw_regions,
)

SHAPES = [(100, 120), (40, 900), (900, 40), (1, 700), (700, 1), (480, 640)]


def photo(height: int, width: int, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return rng.integers(0, 256, (height, width, 3), dtype=np.uint8)


def box(shape: tuple[int, int], rows: slice, columns: slice) -> np.ndarray:
    mask = np.zeros(shape, bool)
    mask[rows, columns] = True
    return mask


def in_colour(picture: np.ndarray, colour: tuple[int, int, int]) -> np.ndarray:
    return np.abs(picture.astype(int) - colour).max(-1) < 12


def luma(picture: np.ndarray) -> np.ndarray:
    return picture @ np.array([0.299, 0.587, 0.114])


@pytest.mark.parametrize("shape", SHAPES)
def test_a_regions_pixels_stay_and_the_rest_is_dimmed(shape: tuple[int, int]) -> None:
    image = photo(*shape)
    height, width = shape
    mask = box(shape, slice(height // 3, height // 2 + 1), slice(width // 3, width // 2 + 1))
    before = image.copy()
    found = draw_regions(image, [mask])
    assert found.dtype == np.uint8 and found.shape == image.shape
    np.testing.assert_array_equal(image, before)
    np.testing.assert_array_equal(found[mask], image[mask])
    far = cv2.distanceTransform((~mask).astype(np.uint8), cv2.DIST_L2, 5) > max(shape) / 20
    assert far.any()
    np.testing.assert_array_equal(found[far], dimmed(image)[far])
    assert in_colour(found, PREDICTED_COLOUR).any()


def test_what_is_dimmed_is_darker_and_less_colourful_but_not_grey() -> None:
    colours = np.array([[[250, 20, 30], [20, 200, 40], [0, 0, 255], [255, 255, 255], [0, 0, 0]]])
    image = colours.astype(np.uint8)
    found = dimmed(image)
    np.testing.assert_allclose(luma(found), 0.5 * luma(image), atol=1)
    spread = np.ptp(found.astype(int), axis=-1)
    assert (spread[:, :3] > 40).all()
    assert (spread <= 0.31 * np.ptp(colours, axis=-1)).all()


@pytest.mark.parametrize("ground", [0, 128, 255])
@pytest.mark.parametrize("colour", [*REGION_COLOURS])
def test_an_outline_stands_out_from_its_region_and_from_what_is_around(
    ground: int, colour: tuple[int, int, int]
) -> None:
    """Also where the region has the colour of its outline: a dark rim lies between them."""
    image = np.full((200, 200, 3), ground, np.uint8)
    mask = box((200, 200), slice(60, 140), slice(60, 140))
    image[mask] = colour
    across = draw_regions(image, [mask], [colour])[100, :100]
    line = np.nonzero(in_colour(across[:60], colour))[0]
    assert len(line) >= 1
    inner, outer = across[line.max() + 1 : 60], across[: line.min()]
    assert luma(inner).min() < luma(np.array(colour)) - 40
    assert luma(outer).min() < luma(np.array(colour)) - 40


def test_holes_and_pieces_are_outlined() -> None:
    mask = box((200, 200), slice(20, 120), slice(20, 120))
    mask[50:90, 50:90] = False
    mask[150:170, 150:170] = True
    image = photo(200, 200)
    found = draw_regions(image, [mask], [TARGET_COLOUR])
    drawn = in_colour(found, TARGET_COLOUR) & ~mask
    for inside in [
        (slice(50, 90), slice(50, 90)),
        (slice(10, 20), slice(20, 120)),
        (slice(140, 150), slice(150, 170)),
    ]:
        assert drawn[inside].any()
    hole = drawn[50:90, 50:90]
    assert not hole[10:30, 10:30].any()
    for side in (hole[:10], hole[-10:], hole[:, :10], hole[:, -10:]):
        assert side.any()


@pytest.mark.parametrize("place", [(0, 0), (50, 70), (99, 119), (0, 60)])
def test_a_region_of_one_pixel_is_seen(place: tuple[int, int]) -> None:
    image = photo(100, 120)
    mask = np.zeros((100, 120), bool)
    mask[place] = True
    found = draw_regions(image, [mask])
    np.testing.assert_array_equal(found[place], image[place])
    assert in_colour(found, PREDICTED_COLOUR).sum() >= 2


@pytest.mark.parametrize("masks", [0, 1, 3])
def test_where_nothing_matches_the_whole_picture_is_dimmed(masks: int) -> None:
    image = photo(30, 40)
    found = draw_regions(image, [np.zeros((30, 40), bool)] * masks)
    np.testing.assert_array_equal(found, dimmed(image))


def test_a_region_that_is_the_whole_picture_is_framed() -> None:
    image = photo(100, 120)
    found = draw_regions(image, [np.ones((100, 120), bool)])
    same = (found == image).all(-1)
    assert same[5:-5, 5:-5].all()
    edge = np.ones_like(same)
    edge[5:-5, 5:-5] = False
    for side in (found[:5], found[-5:], found[:, :5], found[:, -5:]):
        assert in_colour(side, PREDICTED_COLOUR).sum() >= 90


@pytest.mark.parametrize("shape", [(1, 1), (1, 5), (2, 2), (3, 300)])
def test_the_whole_of_a_tiny_picture_is_not_taken_for_nothing(shape: tuple[int, int]) -> None:
    image = np.full((*shape, 3), 200, np.uint8)
    found = draw_regions(image, [np.ones(shape, bool)])
    assert (found == image).all(-1).any()


def test_several_regions_have_their_own_colours_and_the_smaller_lies_on_top() -> None:
    image = photo(300, 300)
    car = box((300, 300), slice(50, 250), slice(50, 150))
    wheel = box((300, 300), slice(100, 140), slice(80, 120))
    other = box((300, 300), slice(50, 250), slice(150, 200))
    for masks in ([car, wheel, other], [wheel, other, car]):
        colours = REGION_COLOURS[:3]
        found = draw_regions(image, masks, colours)
        of = {id(mask): colour for mask, colour in zip(masks, colours, strict=True)}
        for mask in (wheel, other):
            np.testing.assert_array_equal(found[mask], image[mask])
        inside = in_colour(found, of[id(wheel)]) & car & ~wheel
        assert inside.sum() > 100
        # They touch: the outline of the smaller parts them.
        assert in_colour(found[60:240, 140:150], of[id(other)]).any()
        assert in_colour(found[60:240, 40:50], of[id(car)]).any()
        deep = cv2.erode((car & ~wheel).astype(np.uint8), np.ones((15, 15), np.uint8)) > 0
        np.testing.assert_array_equal(found[deep & ~other], image[deep & ~other])


def test_colours_are_repeated() -> None:
    masks = [box((60, 200), slice(20, 40), slice(x, x + 10)) for x in (20, 60, 100, 140)]
    found = draw_regions(photo(60, 200), masks, [TARGET_COLOUR, PREDICTED_COLOUR])
    for place, x in enumerate((20, 60, 100, 140)):
        near = found[10:50, x - 10 : x + 20]
        assert in_colour(near, [TARGET_COLOUR, PREDICTED_COLOUR][place % 2]).sum() > 10


def test_outlines_grow_with_the_picture() -> None:
    def thickness(side: int) -> int:
        mask = box((side, side), slice(side // 2, side), slice(0, side))
        found = draw_regions(np.full((side, side, 3), 90, np.uint8), [mask])
        return int(in_colour(found, PREDICTED_COLOUR)[:, side // 2].sum())

    assert thickness(64) >= 1
    assert 6 <= thickness(1000) <= 10
    assert 1.8 < thickness(2000) / thickness(1000) < 2.2


def test_masks_may_be_numbers() -> None:
    image, mask = photo(50, 50), box((50, 50), slice(10, 20), slice(10, 20))
    found = draw_regions(image, [mask.astype(np.uint8) * 255])
    np.testing.assert_array_equal(found, draw_regions(image, [mask]))
