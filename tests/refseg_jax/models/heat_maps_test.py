"""Heatmaps of a group, put back from the predictor's channels into the order of the images."""

import numpy as np
import pytest

from refseg_jax.models.heat_maps import HeatMaps, heat_map

CELLS = 4


def _maps(images: int, shown: list[list[int]], order: list[list[int]]) -> HeatMaps:
    """The heatmap of an expert is filled with its number plus a tenth of the image that it is in.

    `shown` and `order` have a list for each expression.
    """
    count = len(shown)
    channels = np.array(shown, np.int32).T
    n = np.arange(images)[:, None, None, None, None]
    vision = np.broadcast_to(
        channels.T[None, :, None, None] + 0.1 * n,
        (images, count, CELLS, CELLS, len(shown[0])),
    ).astype(np.float32)
    language = np.broadcast_to(
        np.arange(count)[None, :, None, None] + 0.1 * n[..., 0], (images, count, CELLS, CELLS)
    ).astype(np.float32)
    return HeatMaps(language, vision, channels, np.array(order, np.int32).T)


def _one(maps: HeatMaps, n: int, k: int):
    return heat_map(maps, (n, k), 64, np.eye(2, 3, dtype=np.float32), (30, 40))


def test_each_image_has_the_channel_that_shows_it() -> None:
    order = [[2, 0, 1], [1, 2, 0]]
    maps = _maps(3, order, order)
    for n in range(3):
        for k in range(2):
            one = _one(maps, n, k)
            assert one.vision.shape == (3, CELLS, CELLS)
            np.testing.assert_allclose(one.vision[:, 0, 0], np.arange(3) + 0.1 * n, atol=1e-6)
            np.testing.assert_array_equal(one.order, order[k])
            np.testing.assert_allclose(one.language, k + 0.1 * n, atol=1e-6)
            assert (one.image_size, one.size) == (64, (30, 40))


def test_channels_may_show_an_image_several_times() -> None:
    maps = _maps(2, [[1, 1, 0, 0], [0, 0, 1, 1]], [[1, 0], [0, 1]])
    for k in range(2):
        np.testing.assert_allclose(_one(maps, 0, k).vision[:, 0, 0], [0, 1])


def test_images_that_no_channel_shows_are_refused() -> None:
    maps = _maps(3, [[2, 0]], [[2, 0, 1]])
    with pytest.raises(ValueError, match="3 images of a row do not fit 2 channels"):
        _one(maps, 0, 0)
