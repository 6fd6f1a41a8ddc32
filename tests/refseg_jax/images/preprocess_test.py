"""The two ways of resizing, and the masks of the network's size, against slow formulas."""

from collections.abc import Callable

import numpy as np
import pytest

from refseg_jax.images import preprocess

RNG = np.random.default_rng(0)


def _cris_affine(height: int, width: int, size: int) -> np.ndarray:
    """CRIS's `getTransformMat`: the map that takes these three points to those, by equations."""
    scale = min(size / height, size / width)
    new_height, new_width = height * scale, width * scale
    x, y = (size - new_width) / 2.0, (size - new_height) / 2.0
    source = np.array([[0, 0, 1], [width, 0, 1], [0, height, 1]], np.float64)
    target = np.array([[x, y], [new_width + x, y], [x, new_height + y]], np.float64)
    return np.linalg.solve(source, target).T


@pytest.mark.parametrize("shape", [(480, 640), (640, 427), (37, 1000), (1, 1), (416, 416)])
def test_letterbox_is_the_map_of_cris(shape: tuple[int, int]) -> None:
    found = preprocess.letterbox_affine(*shape, 416)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, _cris_affine(*shape, 416), rtol=1e-6, atol=1e-4)


@pytest.mark.parametrize("shape", [(480, 640), (3, 5)])
def test_stretch_takes_edges_to_edges(shape: tuple[int, int]) -> None:
    """A pixel is a square of side 1 around its index, so an image begins at -0.5."""
    affine = preprocess.stretch_affine(*shape, 416)
    corners = np.array([[-0.5, -0.5, 1], [shape[1] - 0.5, shape[0] - 0.5, 1]])
    np.testing.assert_allclose(corners @ affine.T, [[-0.5, -0.5], [415.5, 415.5]], atol=1e-4)


def test_another_way_of_resizing_is_an_error() -> None:
    with pytest.raises(ValueError, match="squeeze"):
        preprocess.make_affine(4, 4, 8, "squeeze")  # pyright: ignore[reportArgumentType]


def _cubic(distance: np.ndarray) -> np.ndarray:
    """Keys' kernel with a = -0.75."""
    d, a = np.abs(distance), -0.75
    near = (a + 2) * d**3 - (a + 3) * d**2 + 1
    far = a * (d**3 - 5 * d**2 + 8 * d - 4)
    return np.where(d <= 1, near, np.where(d < 2, far, 0.0))


def _linear(distance: np.ndarray) -> np.ndarray:
    return np.maximum(1.0 - np.abs(distance), 0.0)


def _warp(
    image: np.ndarray,
    affine: np.ndarray,
    size: int,
    kernel: Callable[[np.ndarray], np.ndarray],
    border: np.ndarray,
) -> np.ndarray:
    """Every output pixel as the sum over all input pixels; beyond the image it is `border`."""
    pad = 2 * size
    height, width = image.shape[:2]
    wide = np.tile(border.astype(np.float64), (height + 2 * pad, width + 2 * pad, 1))
    wide[pad : pad + height, pad : pad + width] = image
    steps = np.arange(size)
    source_x = (steps - affine[0, 2]) / affine[0, 0]
    source_y = (steps - affine[1, 2]) / affine[1, 1]
    rows = kernel(source_y[:, None] - (np.arange(wide.shape[0]) - pad))
    columns = kernel(source_x[:, None] - (np.arange(wide.shape[1]) - pad))
    return np.einsum("yi,ijc,xj->yxc", rows, wide, columns, optimize=True)


def _waves(height: int, width: int) -> np.ndarray:
    y, x = np.mgrid[:height, :width]
    waves = [np.sin(x / width * 5), np.cos(y / height * 6), np.sin((x + y) / (height + width) * 9)]
    return (127 + 120 * np.stack(waves, -1)).astype(np.uint8)


@pytest.mark.parametrize("shape", [(9, 16), (24, 10), (90, 120)])
def test_letterboxed_images_are_warped_bicubically(shape: tuple[int, int]) -> None:
    """OpenCV 4 rounds positions to 1/32 pixel, hence a smooth image and 3 levels; a shift of half a
    native pixel would be off by 4 to 77."""
    image = _waves(*shape)
    found, affine = preprocess.prepare_image(image, 64, "letterbox")
    mean = np.array([0.48145466, 0.4578275, 0.40821073]) * 255
    expected = _warp(image, preprocess.letterbox_affine(*shape, 64), 64, _cubic, mean)
    assert (found.dtype, found.shape) == (np.uint8, (64, 64, 3))
    np.testing.assert_array_equal(affine, preprocess.letterbox_affine(*shape, 64))
    assert np.abs(found - expected.clip(0, 255)).max() < 3


def _triangle(length: int, size: int) -> np.ndarray:
    """Pillow's bilinear weights `[size, length]`: a triangle around the output pixel's centre, one
    input pixel wide on either side where the image grows, one output pixel where it shrinks."""
    ratio = length / size
    centres = (np.arange(size) + 0.5) * ratio
    distance = np.abs(np.arange(length) + 0.5 - centres[:, None])
    weights = np.maximum(1 - distance / max(ratio, 1.0), 0)
    return weights / weights.sum(1, keepdims=True)


@pytest.mark.parametrize("shape", [(9, 16), (24, 10), (90, 120), (300, 64), (1, 1)])
def test_stretched_images_are_resized_as_pillow_does(shape: tuple[int, int]) -> None:
    """Noise, of which a kernel that skips pixels would keep the whole contrast. Pillow rounds after
    each axis: one level."""
    image = RNG.integers(0, 256, (*shape, 3), np.uint8)
    found, affine = preprocess.prepare_image(image, 64, "stretch")
    rows, columns = _triangle(shape[0], 64), _triangle(shape[1], 64)
    expected = np.einsum("yi,ijc,xj->yxc", rows, image, columns, optimize=True)
    assert (found.dtype, found.shape) == (np.uint8, (64, 64, 3))
    np.testing.assert_array_equal(affine, preprocess.stretch_affine(*shape, 64))
    assert np.abs(found - expected).max() <= 1.01


def test_letterbox_borders_have_the_mean_colour() -> None:
    found, _ = preprocess.prepare_image(np.zeros((10, 40, 3), np.uint8), 64, "letterbox")
    np.testing.assert_array_equal(found[:20], np.broadcast_to([123, 117, 104], (20, 64, 3)))
    assert not found[27:36, :62].any()


@pytest.mark.parametrize("resize", ["letterbox", "stretch"])
@pytest.mark.parametrize("wide", [True, False])
def test_sides_may_exceed_16_bits(wide: bool, resize: preprocess.Resize) -> None:
    """OpenCV 4 warps nothing with a side above 32,766. The second half is white, in both axes."""
    image = np.zeros((600, 40_000, 3), np.uint8)
    image[:, 20_000:] = 255
    turned = image if wide else np.ascontiguousarray(image.transpose(1, 0, 2))
    found, affine = preprocess.prepare_image(turned, 64, resize)
    mask = preprocess.prepare_mask((turned[..., 0] > 0).astype(np.uint8), affine, 64, 1)
    across = found[32] if wide else found[:, 32]
    covered = mask[32] if wide else mask[:, 32]
    assert (across[:31] <= 1).all()
    assert (across[33:63] >= 254).all()
    assert not covered[:31].any()
    assert (covered[33:63] >= 250).all()


def test_an_image_of_the_right_size_is_left_alone() -> None:
    square = RNG.integers(0, 256, (64, 64, 3), np.uint8)
    for resize in ("letterbox", "stretch"):
        found, affine = preprocess.prepare_image(square, 64, resize)
        np.testing.assert_array_equal(found, square)
        np.testing.assert_array_equal(affine, np.eye(2, 3))


@pytest.mark.parametrize("shape", [(9, 16), (50, 37), (64, 64)])
def test_a_nearest_mask_cell_holds_its_upper_left_pixel(shape: tuple[int, int]) -> None:
    mask = (RNG.random(shape) < 0.5).astype(np.uint8)
    affine = preprocess.letterbox_affine(*shape, 64)
    fine = preprocess.prepare_mask(mask, affine, 64, 1)
    found = preprocess.prepare_mask(mask, affine, 64, 4, "nearest")
    expected = [[fine[4 * i, 4 * j] for j in range(16)] for i in range(16)]
    np.testing.assert_array_equal(found, expected)
    assert found.flags.c_contiguous and found.dtype == np.uint8


@pytest.mark.parametrize("resize", ["letterbox", "stretch"])
@pytest.mark.parametrize("shape", [(9, 16), (50, 37), (64, 64)])
def test_a_mask_cell_holds_its_mean_coverage(
    shape: tuple[int, int], resize: preprocess.Resize
) -> None:
    y, x = np.mgrid[: shape[0], : shape[1]]
    mask = ((x / shape[1] - 0.6) ** 2 + (y / shape[0] - 0.4) ** 2 < 0.1).astype(np.uint8)
    affine = preprocess.make_affine(*shape, 64, resize)
    found = preprocess.prepare_mask(mask, affine, 64, 4)
    full = _warp(255 * mask[..., None], affine, 64, _linear, np.zeros(1))[..., 0]
    expected = full.reshape(16, 4, 16, 4).mean((1, 3))
    assert (found.dtype, found.shape) == (np.uint8, (16, 16))
    assert np.abs(found - expected).max() < 6
    assert abs(found.mean() - expected.mean()) < 0.5


@pytest.mark.parametrize("shape", [(9, 16), (50, 37), (1, 8), (8, 1)])
def test_masks_stored_by_columns_are_as_those_by_rows(shape: tuple[int, int]) -> None:
    """A read-only one as well: COCO's masks are stored by columns."""
    mask = (RNG.random(shape) < 0.5).astype(np.uint8)
    affine = preprocess.letterbox_affine(*shape, 64)
    by_columns = np.asfortranarray(mask)
    by_columns.flags.writeable = False
    found = preprocess.prepare_mask(by_columns, affine, 64, 4)
    np.testing.assert_array_equal(found, preprocess.prepare_mask(mask, affine, 64, 4))
    assert found.any()


def test_masks_of_nothing_and_of_everything() -> None:
    affine = preprocess.letterbox_affine(32, 64, 64)
    assert not preprocess.prepare_mask(np.zeros((32, 64), np.uint8), affine, 64, 4).any()
    found = preprocess.prepare_mask(np.ones((32, 64), np.uint8), affine, 64, 4)
    np.testing.assert_array_equal(found[4:12], 255)
    assert not found[:4].any()
    assert not found[12:].any()
