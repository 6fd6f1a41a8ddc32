"""Resizes against independent formulas."""

import jax.numpy as jnp
import numpy as np
import pytest

from refseg_jax.images.resize import resize_bilinear, resize_position_embedding, upsample_bilinear


def _bilinear(x, size):
    """Half-pixel bilinear, one output cell after the other."""
    batch, height, width, channels = x.shape
    out = np.zeros((batch, *size, channels), np.float64)
    for i in range(size[0]):
        for j in range(size[1]):
            y = min(max((i + 0.5) * height / size[0] - 0.5, 0), height - 1)
            z = min(max((j + 0.5) * width / size[1] - 0.5, 0), width - 1)
            y0, z0 = int(y), int(z)
            y1, z1 = min(y0 + 1, height - 1), min(z0 + 1, width - 1)
            fy, fz = y - y0, z - z0
            top = (1 - fz) * x[:, y0, z0] + fz * x[:, y0, z1]
            low = (1 - fz) * x[:, y1, z0] + fz * x[:, y1, z1]
            out[:, i, j] = (1 - fy) * top + fy * low
    return out


@pytest.mark.parametrize("factor", [1, 2, 3, 4, 7])
def test_upsampling_is_half_pixel_bilinear(factor):
    x = np.random.default_rng(0).standard_normal((2, 3, 5, 4)).astype(np.float32)
    size = (3 * factor, 5 * factor)
    np.testing.assert_allclose(upsample_bilinear(x, factor), _bilinear(x, size), atol=1e-6)


@pytest.mark.parametrize("size", [(8, 12), (16, 6), (9, 13), (2, 3), (5, 2), (4, 6), (1, 1)])
def test_any_size_is_half_pixel_bilinear_without_antialiasing(size):
    x = np.random.default_rng(0).standard_normal((2, 4, 6, 3)).astype(np.float32)
    resized = resize_bilinear(jnp.asarray(x), size)
    np.testing.assert_allclose(resized, _bilinear(x, size), atol=1e-6)


def _cubic(distance, a=-0.75):
    d = abs(distance)
    if d <= 1:
        return (a + 2) * d**3 - (a + 3) * d**2 + 1
    return a * d**3 - 5 * a * d**2 + 8 * a * d - 4 * a if d < 2 else 0.0


def _cubic_matrix(old, new):
    matrix = np.zeros((new, old))
    for i in range(new):
        centre = (i + 0.5) * old / new - 0.5
        for tap in range(int(np.floor(centre)) - 1, int(np.floor(centre)) + 3):
            matrix[i, min(max(tap, 0), old - 1)] += _cubic(centre - tap)
    return matrix


@pytest.mark.parametrize("grid", [26, 7])
def test_position_embeddings_are_resized_as_torch_does(grid):
    table = np.random.default_rng(0).standard_normal((1 + 14 * 14, 3)).astype(np.float32)
    matrix = _cubic_matrix(14, grid)
    cells = np.einsum("yi,xj,ijc->yxc", matrix, matrix, table[1:].reshape(14, 14, 3))
    resized = np.asarray(resize_position_embedding(table, grid))
    np.testing.assert_array_equal(resized[0], table[0])
    np.testing.assert_allclose(resized[1:], cells.reshape(-1, 3), atol=1e-5)


def test_a_position_embedding_of_the_right_size_stays():
    table = np.random.default_rng(0).standard_normal((1 + 9, 3)).astype(np.float32)
    np.testing.assert_array_equal(resize_position_embedding(table, 3), table)


def test_a_table_that_is_no_square_is_refused():
    with pytest.raises(ValueError, match="11 rows"):
        resize_position_embedding(np.zeros((11, 3), np.float32), 4)
