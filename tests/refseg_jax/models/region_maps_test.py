"""Maps of regions over pictures of other shapes than the network's square."""

import numpy as np
import pytest

from refseg_jax.images import preprocess
from refseg_jax.models.region_maps import RegionMap, RegionMaps, highest_regions
from refseg_jax.reporting.pictures import lay_over

SIDE, CELLS, SQUARE = 4, 16, 64


def _maps(count: int = 2) -> RegionMaps:
    """Every region's mask is filled with its own number."""
    rng = np.random.default_rng(0)
    minimap = rng.permutation(count * SIDE**2).reshape(count, SIDE, SIDE) / (count * SIDE**2)
    numbers = np.arange(SIDE**2, dtype=np.float32)[None, :, None, None]
    masks = np.broadcast_to(numbers, (count, SIDE**2, CELLS, CELLS))
    return RegionMaps(minimap.astype(np.float32), masks, np.linspace(0, 1, count, dtype=np.float32))


def _one(size: tuple[int, int], resize: preprocess.Resize) -> RegionMap:
    _, affine = preprocess.prepare_image(np.zeros((*size, 3), np.uint8), SQUARE, resize)
    found, _ = highest_regions(_maps(), 3, affine, SQUARE, size)
    return found


def test_the_highest_regions_come_first_with_their_masks():
    maps = _maps()
    found = highest_regions(maps, 3, np.eye(2, 3, dtype=np.float32), SQUARE, (64, 64))
    assert len(found) == 2
    for one, minimap, present in zip(found, np.asarray(maps.minimap), (0.0, 1.0), strict=True):
        np.testing.assert_array_equal(one.regions, np.argsort(minimap.ravel())[:-4:-1])
        np.testing.assert_array_equal(one.masks[:, 0, 0], one.regions)
        assert one.masks.shape == (3, CELLS, CELLS)
        assert one.present == present
    (few, _) = highest_regions(maps, 99, np.eye(2, 3, dtype=np.float32), SQUARE, (64, 64))
    assert len(few.regions) == SIDE**2


@pytest.mark.parametrize(("size", "unseen"), [((60, 120), "rows"), ((120, 60), "columns")])
def test_the_border_of_a_letterbox_is_not_in_the_picture(size: tuple[int, int], unseen: str):
    one = _one(size, "letterbox")
    numbers = np.arange(SIDE**2, dtype=np.float32).reshape(SIDE, SIDE)
    seen = lay_over(numbers, one, size, smooth=False)
    assert seen.shape == size
    # Half of the square is border, the first and the last quarter.
    middle = numbers[1:3] if unseen == "rows" else numbers[:, 1:3]
    assert set(np.unique(seen)) == set(middle.ravel())
    cell = 30
    expected = np.kron(middle, np.ones((cell, cell)))
    assert (seen == expected).mean() > 0.95


@pytest.mark.parametrize("size", [(32, 100), (100, 32), (64, 64)])
def test_stretched_pictures_have_the_whole_minimap(size: tuple[int, int]):
    one = _one(size, "stretch")
    numbers = np.arange(SIDE**2, dtype=np.float32).reshape(SIDE, SIDE)
    expected = np.kron(numbers, np.ones((size[0] // SIDE, size[1] // SIDE)))
    assert (lay_over(numbers, one, size, smooth=False) == expected).mean() > 0.95


def test_smooth_maps_are_where_the_mask_of_a_prediction_would_be():
    """A ramp along x comes back as one, at the pixels' centres, in the picture and in a small copy."""
    one = _one((60, 120), "letterbox")
    ramp = np.tile((np.arange(CELLS, dtype=np.float32) + 0.5) / CELLS, (CELLS, 1))
    for height, width in ((60, 120), (15, 30)):
        seen = lay_over(ramp, one, (height, width), smooth=True)
        expected = (np.arange(width) + 0.5) / width
        inside = slice(width // 20, -width // 20)
        error = np.abs(seen - expected)[:, inside]
        # OpenCV interpolates at 1/32 of a cell.
        assert error.max() < 1 / CELLS / 16
