"""The stems that make patch tokens out of pixels."""

import jax.numpy as jnp
import numpy as np
from flax import nnx

from refseg_jax.encoders.stem import ConvolutionalStem, cut
from refseg_jax.images.colours import CLIP_MEAN, CLIP_STD

IMAGE = np.random.default_rng(0).integers(0, 256, (2, 32, 32, 3), dtype=np.uint8)


def _stem():
    return ConvolutionalStem(16, 6, stem_width=4, dtype=jnp.float32, rngs=nnx.Rngs(0))


def test_squares_are_cut_row_by_row():
    x = np.arange(2 * 4 * 6 * 3).reshape(2, 4, 6, 3)
    squares = np.asarray(cut(jnp.asarray(x), 2))
    np.testing.assert_array_equal(squares[1, 1, 2], x[1, 2:4, 4:6])


def test_each_patch_gets_a_token_and_its_cells_features_with_their_own_colours():
    tokens, pixels = _stem()(jnp.asarray(IMAGE))
    assert pixels is not None
    assert tokens.shape == (2, 4, 6) and pixels.shape == (2, 4, 16, 4 + 48)
    # Cell 6 of the patch at the right bottom lies in its second row and third column.
    cell = IMAGE[1, 16 + 4 : 16 + 8, 16 + 8 : 16 + 12] / 255.0
    expected = ((cell - np.array(CLIP_MEAN)) / np.array(CLIP_STD)).reshape(-1)
    np.testing.assert_allclose(pixels[1, 3, 6, 4:], expected, atol=1e-5)
    assert (np.asarray(pixels)[..., :4] >= 0).all()


def test_a_pixel_is_felt_near_it_and_not_far_away():
    """Two coarse blocks reach two cells of 8 pixels, the fine one makes a cell reach one more."""
    changed = IMAGE.copy()
    changed[0, 0, 0] = 255 - changed[0, 0, 0]
    stem = _stem()
    _, before = stem(jnp.asarray(IMAGE))
    _, after = stem(jnp.asarray(changed))
    assert before is not None and after is not None
    felt = np.abs(np.asarray(after) - np.asarray(before)).max(-1)
    assert felt[0, 0, 0] > 1e-3, "its own cell"
    assert felt[0, 0, 15] > 1e-7, "a cell that only convolutions reach"
    assert felt[0, 3, 10:].max() < 1e-6, "beyond their reach"
    assert felt[1].max() == 0.0, "another image"
