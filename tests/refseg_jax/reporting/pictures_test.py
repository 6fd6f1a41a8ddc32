"""Panels, the page, and maps."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from refseg_jax.evaluation.picture import Picture
from refseg_jax.images import preprocess
from refseg_jax.images.drawing import PREDICTED_COLOUR, TARGET_COLOUR, dimmed, draw_regions
from refseg_jax.images.sheets import fit
from refseg_jax.models.heat_maps import HeatMap
from refseg_jax.models.region_maps import RegionMap
from refseg_jax.reporting import pictures

WORDS = "the red one"


def _photo(height: int, width: int) -> np.ndarray:
    """Smooth, so that warping there and back changes little."""
    y, x = np.mgrid[:height, :width]
    return np.stack([200 * x / width, 200 * y / height, 0 * x + 220], -1).astype(np.uint8)


def _picture(height: int, width: int, words: str = WORDS, **masks: np.ndarray) -> Picture:
    image, affine = preprocess.prepare_image(_photo(height, width), 128, "letterbox")
    empty = np.zeros((height, width), bool)
    return Picture(
        image=image,
        affine=affine,
        expression=words,
        granularity="object",
        target=masks.get("target", empty),
        predicted=masks.get("predicted", empty),
        iou=0.5,
    )


def _views(panel: np.ndarray) -> list[np.ndarray]:
    """Image, target and prediction of a panel, without the words."""
    side = (panel.shape[1] - 16) // 3
    return [panel[:side, start : start + side] for start in (0, side + 8, 2 * side + 16)]


def _amount(view: np.ndarray, colour: tuple[int, int, int]) -> int:
    """Pixels of (nearly) that colour: the outline."""
    return int((np.abs(view.astype(int) - colour).max(-1) < 12).sum())


@pytest.mark.parametrize("resize", ["letterbox", "stretch"])
@pytest.mark.parametrize("shape", [(60, 100), (100, 60), (300, 200)])
def test_an_image_comes_back_at_its_native_size(
    shape: tuple[int, int], resize: preprocess.Resize
) -> None:
    photo = _photo(*shape)
    image, affine = preprocess.prepare_image(photo, 128, resize)
    empty = np.zeros(shape, bool)
    found = Picture(image, affine, "x", "object", empty, empty, 0.0).native_image()
    assert found.shape == photo.shape
    inner = (slice(4, -4), slice(4, -4))
    assert np.abs(found[inner].astype(int) - photo[inner]).max() <= 4


def test_a_panel_shows_image_target_and_prediction_in_this_order() -> None:
    left, right = np.zeros((60, 100), bool), np.zeros((60, 100), bool)
    left[10:50, 10:40], right[10:50, 60:90] = True, True
    panel = pictures.panel(_picture(60, 100, target=left, predicted=right))
    assert panel.dtype == np.uint8
    image, target, predicted = _views(panel)
    half = image.shape[1] // 2
    for colour, view, side in [(TARGET_COLOUR, target, 0), (PREDICTED_COLOUR, predicted, 1)]:
        halves = (view[:, :half], view[:, half:])
        assert _amount(halves[side], colour) > 100
        assert _amount(halves[1 - side], colour) == 0
        assert _amount(image, colour) == 0


def test_what_the_words_name_keeps_its_colour() -> None:
    """At a picture's own size, to the bit."""
    picture = _picture(224, 224)
    inside = np.zeros((224, 224), bool)
    inside[60:120, 30:150] = True
    picture = dataclasses.replace(picture, target=inside, predicted=~inside)
    image, target, predicted = _views(pictures.panel(picture))
    native = picture.native_image()
    np.testing.assert_array_equal(image, native)
    np.testing.assert_array_equal(target, draw_regions(native, [inside], [TARGET_COLOUR]))
    np.testing.assert_array_equal(target[inside], native[inside])
    np.testing.assert_array_equal(predicted[~inside], native[~inside])
    far = slice(140, None)
    np.testing.assert_array_equal(target[far], dimmed(native)[far])


def test_nothing_is_shown_dimmed_and_said() -> None:
    mask = np.zeros((60, 100), bool)
    mask[20:40, 20:40] = True
    nothing = _picture(60, 100)
    panel = pictures.panel(nothing)
    image, target, predicted = _views(panel)
    np.testing.assert_array_equal(target, predicted)
    dark = dimmed(fit(nothing.native_image(), len(image)))
    top = (len(image) - len(dark)) // 2
    np.testing.assert_array_equal(target[top : top + len(dark)], dark)
    side = len(image)
    for place, masks in [(1, {"target": mask}), (2, {"predicted": mask})]:
        other = pictures.panel(_picture(60, 100, **masks))
        note = slice(place * (side + 8), place * (side + 8) + side)
        assert (other[side:, note] != panel[side:, note]).any()


@pytest.mark.parametrize("shape", [(1, 1), (1, 1000), (1000, 1), (480, 640), (200, 200)])
def test_all_panels_have_one_size(shape: tuple[int, int]) -> None:
    mask = np.ones(shape, bool)
    found = pictures.panel(_picture(*shape, target=mask, predicted=mask))
    assert found.shape == pictures.panel(_picture(60, 100)).shape
    assert (_views(found)[0] != 255).any()


def test_the_words_are_written_below() -> None:
    panels = [pictures.panel(_picture(60, 100, words)) for words in (WORDS, "the blue one")]
    side = (panels[0].shape[1] - 16) // 3
    np.testing.assert_array_equal(panels[0][:side], panels[1][:side])
    assert (panels[0][side:] != panels[1][side:]).any()


@pytest.mark.parametrize(
    "words", ["word " * 1000, "日本 ☕ 👩‍👧 \u202eabc", "two\nlines", "\x00", ""]
)
def test_any_words_can_be_drawn(words: str) -> None:
    panel = pictures.panel(_picture(60, 100, words))
    plain = pictures.panel(_picture(60, 100))
    assert panel.shape == plain.shape
    side = (panel.shape[1] - 16) // 3
    np.testing.assert_array_equal(panel[:side], plain[:side])


@pytest.mark.parametrize(
    ("number", "columns", "rows"), [(1, 2, 1), (4, 2, 2), (5, 2, 3), (2, 1, 2)]
)
def test_a_page_holds_every_panel(tmp_path: Path, number: int, columns: int, rows: int) -> None:
    shown = [_picture(60, 100 + 20 * i, f"number {i}") for i in range(number)]
    path = tmp_path / "pictures.png"
    pictures.page(shown, path, columns)
    assert list(tmp_path.iterdir()) == [path]
    with Image.open(path) as image:
        sheet = np.asarray(image)
    panels = [pictures.panel(picture) for picture in shown]
    height, width = panels[0].shape[:2]
    gap = (sheet.shape[0] - rows * height) // (rows + 1)
    assert sheet.shape[:2] == (rows * (height + gap) + gap, columns * (width + gap) + gap)
    for place, panel in enumerate(panels):
        top, left = (
            (n * (size + gap) + gap)
            for n, size in zip(divmod(place, columns), (height, width), strict=True)
        )
        np.testing.assert_array_equal(sheet[top : top + height, left : left + width], panel)


def test_an_assignment_map_colours_cells_by_their_best_token() -> None:
    similarity = np.zeros((3, 2, 2), np.float32)
    similarity[[0, 1, 2, 1], [0, 0, 1, 1], [0, 1, 0, 1]] = 1.0
    found = pictures.assignment_map(np.full((40, 60, 3), 80, np.uint8), similarity)
    assert found.shape == (40, 60, 3)
    cells = [found[y : y + 20, x : x + 30].reshape(-1, 3) for y in (0, 20) for x in (0, 30)]
    assert all((cell == cell[0]).all() for cell in cells)
    colours = [tuple(cell[0].tolist()) for cell in cells]
    assert colours[1] == colours[3]
    assert len(set(colours)) == 3


def _regions(shape: tuple[int, int], present: float = 0.9) -> RegionMap:
    """Of 2 x 2 cells; the highest is the lower right one, and its mask the right half."""
    _, affine = preprocess.prepare_image(_photo(*shape), 64, "stretch")
    minimap = np.array([[0.0, 0.3], [0.1, 1.0]], np.float32)
    right = np.zeros((16, 16), np.float32)
    right[:, 8:] = 1.0
    # However faint, a mask shows.
    masks = np.stack([right, 0.51 - 0.01 * right])
    return RegionMap(minimap, np.array([3, 1]), masks, present, affine, 64, shape)


@pytest.mark.parametrize("shape", [(300, 200), (1, 1), (1, 1000), (1000, 1)])
def test_panels_of_regions_have_one_size(shape: tuple[int, int]) -> None:
    drawn = [
        pictures.region_panel(_photo(*s), np.ones(s, bool), _regions(s), "x")
        for s in (shape, (100, 100))
    ]
    assert drawn[0].shape == drawn[1].shape
    assert drawn[0].dtype == np.uint8


def test_a_panel_of_regions_shows_mask_minimap_and_region_masks() -> None:
    image, mask = np.full((100, 100, 3), 100, np.uint8), np.zeros((100, 100), bool)
    mask[:50] = True
    panel = pictures.region_panel(image, mask, _regions((100, 100)), "x")
    large, small = 360, 176
    first, second = (panel[8 : 8 + large, x : x + large] for x in (8, 16 + large))
    below = 8 + large + 8 + 8
    strips = [panel[below : below + small, x : x + small] for x in (8, 16 + small)]
    np.testing.assert_array_equal(first[200:], dimmed(np.full_like(first[200:], 100)))
    assert (first[:178] == 100).all()
    assert _amount(first[178:200], PREDICTED_COLOUR) > 300
    # The ends of the colour map, dark violet and yellow, mixed with the grey of the image.
    np.testing.assert_allclose(second[20, 20], 40 + 0.6 * np.array([68, 1, 84]), atol=1)
    np.testing.assert_allclose(second[-20, -20], 40 + 0.6 * np.array([253, 231, 37]), atol=1)
    # A mask's least value is dark, its highest has the picture's own colours.
    assert [strip[20, 20].tolist() for strip in strips] == [[30] * 3, [100] * 3]
    assert [strip[20, -20].tolist() for strip in strips] == [[100] * 3, [30] * 3]


def test_a_panel_of_regions_says_the_words_and_how_sure_it_is() -> None:
    image, mask = _photo(100, 100), np.zeros((100, 100), bool)
    plain = pictures.region_panel(image, mask, _regions((100, 100)), "x")
    others = [
        pictures.region_panel(image, mask, _regions((100, 100)), "another"),
        pictures.region_panel(image, mask, _regions((100, 100), present=0.1), "x"),
    ]
    for other in others:
        differ = np.nonzero((other != plain).any((1, 2)))[0]
        assert len(differ)
        assert differ.min() > 360 + 176 + 16


def _heat(shape: tuple[int, int], images: int) -> HeatMap:
    """The heatmap of image i is hot in row i of 4, the words' in the last; the order is reversed."""
    _, affine = preprocess.prepare_image(_photo(*shape), 64, "stretch")
    vision = np.full((images, 4, 4), -1.0, np.float32)
    vision[np.arange(images), np.arange(images)] = 0.5
    order = np.arange(images, dtype=np.int32)[::-1]
    return HeatMap(np.roll(vision[0], -1, 0), vision, order, affine, 64, shape)


@pytest.mark.parametrize("shape", [(300, 200), (1, 1), (1, 1000), (1000, 1)])
@pytest.mark.parametrize("images", [1, 3])
def test_panels_of_heatmaps_have_one_size(shape: tuple[int, int], images: int) -> None:
    names = [str(image) for image in range(images)]
    drawn = [
        pictures.heat_panel(_photo(*s), np.ones(s, bool), _heat(s, images), names, "x")
        for s in (shape, (100, 100))
    ]
    assert drawn[0].shape == drawn[1].shape
    assert drawn[0].dtype == np.uint8


def test_a_panel_without_a_mask_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[str] = []
    captioned = pictures.captioned

    def writing(picture: np.ndarray, words: str, *notes: Any, **sizes: Any) -> np.ndarray:
        told.append(words)
        return captioned(picture, words, *notes, **sizes)

    monkeypatch.setattr(pictures, "captioned", writing)
    image, mask = _photo(40, 60), np.zeros((40, 60), bool)
    empty = pictures.heat_panel(image, mask, _heat((40, 60), 1), ["a"], "x")
    assert told.pop(-2) == "no match"
    mask[0, 0] = True
    full = pictures.heat_panel(image, mask, _heat((40, 60), 1), ["a"], "x")
    assert "no match" not in told and full.shape == empty.shape
    # Below the image, on the left.
    rows, columns = np.nonzero((full != empty).any(-1))
    assert rows.max() > 2 * 8 + 300 and columns.max() < 300


def test_a_panel_of_heatmaps_has_both_orders() -> None:
    image, mask = np.full((100, 100, 3), 100, np.uint8), np.zeros((100, 100), bool)
    mask[:50] = True
    panel = pictures.heat_panel(image, mask, _heat((100, 100), 3), ["a", "b", "c"], "x")
    shown = panel[16:316, :300]
    assert (shown[:148] == 100).all()
    np.testing.assert_array_equal(shown[200:], dimmed(np.full_like(shown[200:], 100)))
    # Yellow, the end of the colour map, mixed with the grey of the image: the middle of the hot row.
    hot = np.round(40 + 0.6 * np.array([253, 231, 37]))
    yellow = (np.abs(panel.astype(int) - hot) <= 1).all(-1)
    above, below = [], []
    # Without the caption of all.
    half = (panel.shape[0] - 46) // 2
    for column in range(4):
        left = 308 + 8 + column * (150 + 8)
        rows = np.nonzero(yellow[:, left + 75])[0]
        above.append(rows[rows < half].mean())
        below.append(rows[rows > half].mean())
    # The words first; then the images, and the other way round.
    assert above[1] < above[2] < above[3] < above[0]
    # A row of cells apart; the first one reaches up to the edge.
    assert above[3] - above[2] == pytest.approx(37.5, abs=1)
    assert below[3] < below[2] < below[1] < below[0]
    # Each with its name, which moves with it.
    other = pictures.heat_panel(image, mask, _heat((100, 100), 3), ["a", "b", "d"], "x")
    for part, column in ((slice(half), 3), (slice(half, None), 1)):
        differ = np.nonzero((panel[part] != other[part]).any((0, 2)))[0]
        left = 316 + column * 158
        assert left <= differ.min() and differ.max() < left + 150
