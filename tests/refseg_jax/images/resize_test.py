"""Resizes against independent formulas, and OpenCV."""

import functools

import cv2
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from refseg_jax.errors import UserError
from refseg_jax.images.preprocess import Resize, letterbox_affine, make_affine
from refseg_jax.images.resize import (
    check_resample,
    logits_on_canvas,
    resize_bilinear,
    resize_position_embedding,
    upsample_bilinear,
)


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


def _sigmoid(x):
    return 1.0 / (1.0 + np.exp(-np.asarray(x, np.float64)))


def _slow_bilinear(logits, affine, stride, height, width):
    """Our own rule, one native pixel after the other: half-pixel centres, edges clamped."""
    cells = logits.shape[0]
    out = np.zeros((height, width))
    for y in range(height):
        for x in range(width):
            i, j = (
                np.clip(
                    (affine[axis, axis] * p + affine[axis, 2] + 0.5) / stride - 0.5, 0, cells - 1
                )
                for axis, p in ((1, y), (0, x))
            )
            i0, j0 = min(int(i), cells - 2), min(int(j), cells - 2)
            top, low = ((1 - (j - j0)) * r[j0] + (j - j0) * r[j0 + 1] for r in logits[i0 : i0 + 2])
            out[y, x] = (1 - (i - i0)) * top + (i - i0) * low
    return out


def _cubic_at(values, place, outside):
    """The value of a row of numbers at a place between them; `outside` a number, or None: clamped."""
    first, total = int(np.floor(place)), 0.0
    for tap in range(first - 1, first + 3):
        if 0 <= tap < len(values):
            value = values[tap]
        else:
            value = values[min(max(tap, 0), len(values) - 1)] if outside is None else outside
        total = total + _cubic(place - tap) * value
    return total


def _slow_cris(logits, affine, stride, height, width):
    """CRIS's steps on one mask: sigmoid, aligned corners to the network's size, the inverse warp."""
    cells, size = logits.shape[0], logits.shape[0] * stride
    share = (cells - 1) / (size - 1)
    rows = np.stack([_cubic_at(_sigmoid(logits), share * y, None) for y in range(size)])
    full = np.stack([_cubic_at(rows.T, share * x, None) for x in range(size)], 1)
    return _slow_warp(full, affine, height, width)


def _slow_unilseg(logits, affine, stride, height, width):
    """UniLSeg's steps on one mask: aligned corners by two blends, sigmoid, the inverse warp."""
    size, known = logits.shape[0] * stride, np.arange(logits.shape[0])
    places = np.linspace(0, len(known) - 1, size)
    rows = np.stack([np.interp(places, known, column) for column in logits.T], 1)
    full = np.stack([np.interp(places, known, row) for row in rows])
    return _slow_warp(_sigmoid(full), affine, height, width)


def _slow_warp(full, affine, height, width):
    """The inverse warp of both: a cubic of a map, which is zero outside."""
    size = len(full)
    nothing = np.zeros(size)
    rows = [_cubic_at(full, affine[1, 1] * y + affine[1, 2], nothing) for y in range(height)]
    columns = np.stack(rows).T
    nothing = np.zeros(height)
    places = [affine[0, 0] * x + affine[0, 2] for x in range(width)]
    return np.stack([_cubic_at(columns, place, nothing) for place in places], 1)


#: Native height and width: enlarged, shrunk, both ways of a letterbox, of odd sides, one pixel.
SHAPES = ((24, 24), (7, 31), (50, 13), (33, 20), (61, 90), (1, 1), (2, 9))


def _case(seed, size, stride, resize: Resize = "letterbox"):
    rng = np.random.default_rng(seed)
    cells = size // stride
    logits = rng.normal(0, 4, (1, len(SHAPES), 2, cells, cells)).astype(np.float32)
    affine = np.stack([make_affine(*shape, size, resize) for shape in SHAPES])[None]
    return logits, affine


@functools.lru_cache
def _compiled(stride, canvas, resample):
    return jax.jit(lambda x, affine: logits_on_canvas(x, affine, stride, canvas, resample))


@pytest.mark.parametrize("resize", ["letterbox", "stretch"])
@pytest.mark.parametrize(("size", "stride"), [(24, 4), (20, 2), (12, 1)])
def test_logits_are_resampled_as_the_definition_says(size, stride, resize):
    logits, affine = _case(0, size, stride, resize)
    found = np.asarray(_compiled(stride, (64, 96), "logits")(logits, affine))
    for n, (height, width) in enumerate(SHAPES):
        for k in range(2):
            slow = _slow_bilinear(logits[0, n, k], affine[0, n], stride, height, width)
            mine = found[0, n, k, :height, :width]
            np.testing.assert_allclose(mine, slow, atol=1e-4, err_msg=f"{height} x {width}")


@pytest.mark.parametrize("resize", ["letterbox", "stretch"])
@pytest.mark.parametrize(("size", "stride"), [(24, 4), (20, 2), (12, 1)])
@pytest.mark.parametrize(("resample", "steps"), [("cris", _slow_cris), ("unilseg", _slow_unilseg)])
def test_probabilities_are_resampled_as_the_public_codes_do(size, stride, resize, resample, steps):
    logits, affine = _case(1, size, stride, resize)
    found = np.asarray(_compiled(stride, (64, 96), resample)(logits, affine))
    overshoot = 0
    for n, (height, width) in enumerate(SHAPES):
        for k in range(2):
            slow = steps(logits[0, n, k], affine[0, n], stride, height, width)
            mine = _sigmoid(found[0, n, k, :height, :width])
            wanted = np.clip(slow, 0, 1)
            np.testing.assert_allclose(mine, wanted, atol=2e-5, err_msg=f"{height} x {width}")
            sure = np.abs(slow - 0.35) > 2e-5
            np.testing.assert_array_equal((mine > 0.35)[sure], (slow > 0.35)[sure])
            overshoot += ((slow < 0) | (slow > 1)).sum()
    assert overshoot > 100


@pytest.mark.parametrize("shape", [(480, 640), (333, 500), (37, 91), (600, 200), (416, 416)])
def test_the_inverse_warp_is_opencvs(shape):
    """At stride 1 the first resize changes nothing, in CRIS too. Positions are rounded to 1/32 pixel
    by OpenCV 4, which moves a value by the slope of the map over 1/64 pixel at most."""
    rng = np.random.default_rng(2)
    height, width = shape
    smooth = cv2.GaussianBlur(rng.normal(0, 60, (416, 416)).astype(np.float32), (0, 0), 5)
    affine = letterbox_affine(height, width, 416)
    inverse = cv2.invertAffineTransform(affine.astype(np.float64))
    likely = _sigmoid(smooth).astype(np.float32)
    theirs = cv2.warpAffine(
        likely, inverse, (width, height), flags=cv2.INTER_CUBIC, borderValue=0.0
    )
    found = _compiled(1, (640, 640), "cris")(smooth[None, None, None], affine[None, None])
    mine = _sigmoid(np.asarray(found)[0, 0, 0, :height, :width])
    steepest = max(np.abs(np.diff(likely, axis=axis)).max() for axis in (0, 1))
    bound = 5e-4 if int(cv2.__version__.split(".")[0]) >= 5 else 2 * steepest / 64 + 5e-4
    np.testing.assert_allclose(mine, np.clip(theirs, 0, 1), atol=bound)
    assert (mine > 0.35).any() and (mine < 0.35).any()
    assert ((mine > 0.35) != (theirs > 0.35)).mean() < (1e-3 if bound > 1e-3 else 1e-4)


@pytest.mark.parametrize("resample", ["logits", "cris", "unilseg"])
def test_a_native_pixel_depends_on_neither_canvas_nor_batch(resample):
    logits, affine = _case(3, 24, 4)
    found = np.asarray(_compiled(4, (64, 96), resample)(logits, affine))
    wider = np.asarray(_compiled(4, (100, 128), resample)(logits[:, 2:], affine[:, 2:]))
    for n, (height, width) in enumerate(SHAPES[2:]):
        mine, other = (x[0, m, :, :height, :width] for x, m in ((found, n + 2), (wider, n)))
        # Sums over all pixels of the network, as `unilseg` has, are not always in the same order.
        bar = 1e-6 if resample == "unilseg" else 0.0
        np.testing.assert_allclose(_sigmoid(mine), _sigmoid(other), rtol=0, atol=bar)


def test_an_unknown_way_of_resampling_is_one_line():
    check_resample("cris")
    with pytest.raises(
        UserError, match=r"unknown config\.eval\.resample 'criss': did you mean 'cris'"
    ):
        check_resample("criss")
