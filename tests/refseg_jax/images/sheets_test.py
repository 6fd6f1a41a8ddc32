"""Cells with captions, and sheets of them."""

import numpy as np
import pytest

from refseg_jax.images import sheets
from refseg_jax.images.drawing import PREDICTED_COLOUR, dimmed, draw_regions


def flat(height: int, width: int, value: int = 90) -> np.ndarray:
    return np.full((height, width, 3), value, np.uint8)


@pytest.mark.parametrize(
    ("shape", "size"),
    [((60, 100), (60, 100)), ((300, 200), (100, 67)), ((1, 1000), (1, 100)), ((1, 1), (100, 100))],
)
def test_the_longer_side_fits(shape: tuple[int, int], size: tuple[int, int]) -> None:
    image = flat(*shape)
    assert sheets.fit(image, 100).shape == (*size, 3)
    assert sheets.fit_regions(image, [np.ones(shape, bool)], 100).shape == (*size, 3)


def test_at_its_own_size_a_picture_stays_as_it_is() -> None:
    image = np.random.default_rng(0).integers(0, 256, (60, 100, 3), dtype=np.uint8)
    mask = np.zeros((60, 100), bool)
    mask[20:40, 30:60] = True
    np.testing.assert_array_equal(sheets.fit(image, 100), image)
    np.testing.assert_array_equal(
        sheets.fit_regions(image, [mask], 100), draw_regions(image, [mask])
    )


@pytest.mark.parametrize("side", [40, 70, 90, 150, 224, 1200])
@pytest.mark.parametrize("place", [(0, 0), (33, 47), (79, 79)])
def test_one_pixel_is_outlined_at_any_size(side: int, place: tuple[int, int]) -> None:
    mask = np.zeros((80, 80), bool)
    mask[place] = True
    found = sheets.fit_regions(flat(80, 80), [mask], side).astype(int)
    # Red is what the outline's colour has and the dimmed ground has not.
    assert found[..., 0].max() > dimmed(flat(1, 1))[0, 0, 0] + 60


def test_a_large_picture_shows_a_region_of_a_pixel() -> None:
    mask = np.zeros((2000, 3000), bool)
    mask[1000, 1500] = True
    found = sheets.fit_regions(flat(2000, 3000), [mask], 224).astype(int)
    assert (np.abs(found - PREDICTED_COLOUR).max(-1) < 100).any()


def test_views_stand_in_the_middle_of_squares() -> None:
    found = sheets.row([flat(50, 100), flat(100, 20, 7)], 100)
    assert found.shape == (100, 200 + sheets.GAP, 3)
    ink = (found != 255).all(-1)
    np.testing.assert_array_equal(np.nonzero(ink[:, :100].any(1))[0], np.arange(25, 75))
    columns = np.nonzero(ink[:, 100:].any(0))[0]
    np.testing.assert_array_equal(columns, np.arange(40, 60) + sheets.GAP)


def ink(caption: np.ndarray) -> int:
    return int((caption < 128).any(-1).sum())


def test_words_are_wrapped_and_what_is_too_long_is_cut() -> None:
    picture = flat(20, 200)
    one = sheets.captioned(picture, "the cup", lines=2)
    two = sheets.captioned(picture, "the saucer of the cup below the robot", lines=2)
    cut = sheets.captioned(picture, "the saucer of the cup below the robot " * 30, lines=2)
    assert one.shape[0] < two.shape[0] == cut.shape[0]
    for found in (one, two, cut):
        np.testing.assert_array_equal(found[:20], picture)
        # Nothing touches the edge of the caption: no letter is cut.
        edges = (found[20:, 0], found[20:, -1], found[20], found[-1])
        assert all((edge == 255).all() for edge in edges)
        assert ink(found[20:]) > 50
    np.testing.assert_array_equal(one, sheets.captioned(picture, " the\n cup ", lines=2))


@pytest.mark.parametrize(
    "words", ["x" * 1000, "日本 ☕ 👩‍👧 \u202eabc", "\x00", "", "x\u2028y\x0b"]
)
@pytest.mark.parametrize("width", [3, 50, 300])
def test_any_words_fit(words: str, width: int) -> None:
    found = sheets.captioned(flat(5, width), words, [words, words])
    assert found.shape == sheets.captioned(flat(5, width), "a", ["b"]).shape
    np.testing.assert_array_equal(found[:5], flat(5, width))


def test_notes_share_the_width() -> None:
    found = sheets.captioned(flat(5, 408), "", ["left", "right"])
    grey = (found[5:] < 200).any(-1)
    plain = (sheets.captioned(flat(5, 408), "", ["left"])[5:] < 200).any(-1)
    np.testing.assert_array_equal(grey[:, :204], plain[:, :204])
    assert not plain[:, 204:].any() and grey[:, 208:260].any()


def test_letters_may_be_larger() -> None:
    small, large = (sheets.captioned(flat(5, 400), "the cup", size=size) for size in (16, 32))
    assert ink(large[5:]) > 2 * ink(small[5:])


def test_a_grid_has_room_for_the_widest_cell_and_each_rows_highest() -> None:
    cells = [flat(10, 20, 1), flat(15, 10, 2), flat(5, 5, 3)]
    found = sheets.grid(cells, 2, 4)
    assert found.shape == (15 + 5 + 3 * 4, 2 * 20 + 3 * 4, 3)
    for cell, (top, left) in zip(cells, [(4, 4), (4, 28), (23, 4)], strict=True):
        height, width, _ = cell.shape
        np.testing.assert_array_equal(found[top : top + height, left : left + width], cell)
    assert (found != 255).all(-1).sum() == sum(cell[..., 0].size for cell in cells)
