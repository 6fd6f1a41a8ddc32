"""Region filter, decoder layer and heads."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from refseg_jax.decoders.heads import FOREGROUND_PRIOR, PixelKernelHead, build_head
from refseg_jax.decoders.region_filter import RegionFilter
from refseg_jax.decoders.vision_language import VisionLanguageDecoder
from refseg_jax.layers.rows import repeat_rows


def _normal(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape).astype(np.float32))


def _decoder(layers=2, remat=False):
    return VisionLanguageDecoder(
        layers=layers,
        width=8,
        heads=2,
        hidden=16,
        dropout=0.5,
        dtype=jnp.float32,
        remat=remat,
        rngs=nnx.Rngs(0),
    )


def _head(name, factor, width=8):
    return build_head(
        name, width=width, state_width=6, factor=factor, dtype=jnp.float32, rngs=nnx.Rngs(0)
    )


def _filter(input_norm=True):
    return RegionFilter(
        token_width=12,
        width=8,
        heads=2,
        hidden=16,
        input_norm=input_norm,
        dtype=jnp.float32,
        rngs=nnx.Rngs(0),
    )


def test_rows_repeat_in_place():
    np.testing.assert_array_equal(
        repeat_rows(jnp.asarray([[1], [2]]), 3), [[1], [1], [1], [2], [2], [2]]
    )


def test_memories_of_one_row_equal_rows_of_their_own():
    decoder = _decoder()
    x, memory, positions = _normal(2, 5, 8), _normal(6, 4, 8, seed=1), _normal(5, 8, seed=2)
    valid = jnp.asarray(np.arange(4) < np.array([[4], [1], [2], [3], [4], [2]]))
    shared = decoder(x, positions, memory, memory, valid=valid)
    apart = decoder(repeat_rows(x, 3), positions, memory, memory, valid=valid)
    assert shared.shape == (6, 5, 8)
    np.testing.assert_allclose(shared, apart, atol=1e-5)


def test_decoder_ignores_masked_memory():
    decoder = _decoder()
    x, memory, positions = _normal(1, 5, 8), _normal(1, 4, 8, seed=1), _normal(5, 8, seed=2)
    valid = jnp.asarray([[True, True, False, False]])
    other = memory.at[:, 2:].add(9.0)
    plain = decoder(x, positions, memory, memory, valid=valid)
    np.testing.assert_allclose(plain, decoder(x, positions, other, other, valid=valid), atol=1e-6)
    assert np.abs(plain - decoder(x, positions, other, other)).max() > 1e-3


def test_values_carry_no_positions():
    layer = _decoder(layers=1).layers[0]
    x, positions = _normal(1, 5, 8), _normal(5, 8, seed=2)
    normed = layer.self_attention_norm(x)
    expected = x + layer.self_attention_output_norm(
        layer.self_attention(normed + positions, normed + positions, normed)
    )
    np.testing.assert_allclose(layer.look_at_itself(x, positions, None), expected, atol=1e-6)


def test_the_filter_keeps_the_count_and_ignores_padding():
    level = _filter()
    projected = level.project(_normal(2, 3, 12))
    words, valid = _normal(2, 4, 8, seed=1), jnp.asarray([[1, 1, 0, 0], [1, 1, 1, 1]], bool)
    filtered = level(projected, words, valid)
    assert filtered.shape == (2, 3, 8)
    other = level(projected, words.at[0, 2:].add(5.0), valid)
    np.testing.assert_allclose(filtered, other, atol=1e-6)
    assert np.abs(filtered - level(projected, words.at[:, :2].add(5.0), valid)).max() > 1e-3


def test_the_filters_input_norm_takes_the_scale_off():
    tokens = _normal(1, 3, 12)
    np.testing.assert_allclose(
        _filter().project(tokens), _filter().project(100.0 * tokens), atol=1e-3
    )
    assert _filter(input_norm=False).input_norm is None


def test_projector_equals_its_plain_form():
    """The dynamic convolution, after the 1x1 convolution that the head folds away."""
    head = _head("projector", 2)
    rng = nnx.Rngs(1)
    head.projection.bias[...] = jax.random.normal(rng.params(), (4,))
    tokens, state = _normal(3, 9, 8), _normal(3, 6, seed=1)
    x = jax.nn.relu(head.norms[0](head.convolutions[0](tokens.reshape(3, 3, 3, 8))))
    x = head.projection(x)
    written = head.text(state)
    for row in range(3):
        # As torch reads it: the first 9 * C numbers are a kernel [C, 3, 3], the last is the bias.
        kernel = written[row, :-1].reshape(4, 3, 3).transpose(1, 2, 0)[..., None]
        expected = jax.lax.conv_general_dilated(
            x[row : row + 1], kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )
        np.testing.assert_allclose(
            head(tokens, state)[row], expected[0, :, :, 0] + written[row, -1], atol=1e-5
        )


def test_pixel_shuffle_puts_a_tokens_cells_where_its_patch_is():
    head = _head("pixel_shuffle", 3)
    tokens = jnp.zeros((1, 4, 8)).at[0, 1].set(1.0)
    logits = np.asarray(head(tokens, _normal(1, 6)))[0]
    own = tokens[0, 1] @ head.projection.kernel[...] + head.projection.bias[...]
    np.testing.assert_allclose(logits[:3, 3:], own.reshape(3, 3), atol=1e-6)
    np.testing.assert_allclose(logits[3:], logits[0, 0], atol=1e-6)


def test_pixel_kernel_multiplies_each_cell_by_what_its_patch_and_expression_wrote():
    """Two images, three expressions each; patches of 2x2 pixel cells, each with 2x2 mask cells."""
    head = PixelKernelHead(
        width=8, pixel_width=5, kernel_width=4, subcells=2, dtype=jnp.float32, rngs=nnx.Rngs(0)
    )
    tokens, pixels = _normal(6, 9, 8), _normal(2, 9, 4, 5, seed=1)
    logits = np.asarray(head(tokens, head.project(pixels)))
    assert logits.shape == (6, 12, 12)
    written = np.asarray(head.kernel(tokens))
    features = np.asarray(head.pixel_projection(pixels)).reshape(2, 9, 2, 2, 2, 2, 4)
    for row, y, x in np.ndindex(logits.shape):
        patch = (y // 4) * 3 + x // 4
        cell = features[row // 3, patch, y % 4 // 2, x % 4 // 2, y % 2, x % 2]
        *kernel, bias = written[row, patch]
        assert logits[row, y, x] == pytest.approx(cell @ kernel / 2 + bias, abs=1e-5)


@pytest.mark.parametrize("name", ["projector", "pixel_shuffle", "linear"])
def test_heads_start_at_the_foreground_prior(name):
    head = _head(name, 4, width=32)
    logits = head(_normal(4, 16, 32), _normal(4, 6, seed=1))
    assert logits.shape == (4, 16, 16) and logits.dtype == jnp.float32
    expected = math.log(FOREGROUND_PRIOR / (1 - FOREGROUND_PRIOR))
    assert float(logits.mean()) == pytest.approx(expected, abs=0.7)
    assert 0.05 < float(logits.std()) < 2.0


@pytest.mark.parametrize("factor", [1, 3, 6, 7])
def test_projector_refuses_factors_that_are_no_power_of_two(factor):
    with pytest.raises(ValueError, match="is not 2, 4, 8"):
        _head("projector", factor)
