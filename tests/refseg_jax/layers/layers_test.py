"""The small modules against formulas written another way."""

import functools
import math
import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special
from flax import nnx

from refseg_jax.images.resize import upsample_bilinear
from refseg_jax.layers.convolution import Conv3x3, UpsampleConv3x3, dynamic_conv3x3
from refseg_jax.layers.dropout import drop_path, dropout
from refseg_jax.layers.linear import Linear, contract, gaussian
from refseg_jax.layers.norm import GroupNorm, LayerNorm, instance_norm
from refseg_jax.layers.positions import (
    sine_positions_1d,
    sine_positions_2d,
    sine_positions_centred,
    sine_positions_relative,
    sine_positions_words,
)
from refseg_jax.layers.transformer import Mlp, exact_gelu, quick_gelu


def _normal(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def _plain_conv(x, kernel):
    dimensions = ("NHWC", "HWIO", "NHWC")
    return jax.lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=dimensions)


def test_linear_in_bf16_accumulates_in_f32():
    x, kernel = _normal(4, 3, 2048), _normal(2048, 5, seed=1)
    exact = x.astype(jnp.bfloat16).astype(np.float64) @ kernel.astype(jnp.bfloat16).astype(
        np.float64
    )
    result = contract(jnp.asarray(x), jnp.asarray(kernel), jnp.bfloat16)
    assert result.dtype == jnp.bfloat16 and result.shape == (4, 3, 5)
    # One rounding to 8 bits at the end; sums held in bf16 would be off by far more.
    np.testing.assert_allclose(np.asarray(result, np.float64), exact, rtol=2**-7, atol=0.05)


def test_linear_gradient_sums_over_all_leading_axes():
    layer = Linear(3, 2, dtype=jnp.float32, rngs=nnx.Rngs(0))
    graph, state = nnx.split(layer)
    x, weight = _normal(2, 4, 3), _normal(2, 4, 2, seed=1)
    gradient = jax.grad(lambda s: jnp.sum(weight * nnx.merge(graph, s)(x)))(state)
    np.testing.assert_allclose(gradient["kernel"][...], np.einsum("abi,abo->io", x, weight), 1e-5)
    np.testing.assert_allclose(gradient["bias"][...], weight.sum((0, 1)), rtol=1e-5)


def test_layer_norm_does_not_cancel_on_a_large_mean():
    x = 1000.0 + _normal(4, 16)
    norm = LayerNorm(16, dtype=jnp.float32)
    exact = x.astype(np.float64)
    exact = exact - exact.mean(-1, keepdims=True)
    exact /= np.sqrt((exact**2).mean(-1, keepdims=True) + 1e-5)
    np.testing.assert_allclose(norm(jnp.asarray(x)), exact, atol=1e-3)


def test_layer_norm_adds_its_own_epsilon():
    x = 1e-3 * _normal(4, 16)
    centred = x - x.mean(-1, keepdims=True)
    for epsilon in (1e-12, 1e-5):
        norm = LayerNorm(16, dtype=jnp.float32, epsilon=epsilon)
        expected = centred / np.sqrt((centred**2).mean(-1, keepdims=True) + epsilon)
        np.testing.assert_allclose(norm(jnp.asarray(x)), expected, rtol=1e-4, atol=1e-6)


def test_exact_gelu_keeps_its_tail_in_bf16():
    """`1 + erf` cancels there unless it is computed in f32."""
    x = np.linspace(-5, 3, 801, dtype=np.float32)
    expected = x * scipy.special.ndtr(x.astype(np.float64))
    np.testing.assert_allclose(exact_gelu(jnp.asarray(x)), expected, rtol=0, atol=1e-6)
    half = jnp.asarray(x, jnp.bfloat16)
    rounded = np.asarray(half, np.float64)
    expected = rounded * scipy.special.ndtr(rounded)
    found = jax.jit(exact_gelu)(half)
    assert found.dtype == jnp.bfloat16
    np.testing.assert_allclose(np.asarray(found, np.float64), expected, rtol=2**-8, atol=1e-6)


def _standardised(x, axes):
    return (x - x.mean(axes, keepdims=True)) / jnp.sqrt(x.var(axes, keepdims=True) + 1e-5)


def test_the_gradients_of_norms_are_those_of_their_formulas():
    x, weight = 3.0 + _normal(2, 5, 4, 6), _normal(2, 5, 4, 6, seed=1)
    group = GroupNorm(6, groups=2, dtype=jnp.float32)
    pairs = {
        "layer": (LayerNorm(6, dtype=jnp.float32), lambda x: _standardised(x, (3,))),
        "group": (
            group,
            lambda x: _standardised(x.reshape(2, 20, 2, 3), (1, 3)).reshape(x.shape),
        ),
        "instance": (
            lambda x: instance_norm(x.reshape(2, 20, 6), dtype=jnp.float32).reshape(x.shape),
            lambda x: _standardised(x, (1, 2)),
        ),
    }
    for name, (ours, formula) in pairs.items():
        found = jax.grad(lambda x, norm=ours: jnp.sum(weight * norm(x)))(jnp.asarray(x))
        expected = jax.grad(lambda x, norm=formula: jnp.sum(weight * norm(x)))(jnp.asarray(x))
        np.testing.assert_allclose(found, expected, atol=1e-5, err_msg=name)


@pytest.mark.parametrize("activation", [exact_gelu, quick_gelu])
def test_of_an_mlp_one_hidden_map_is_kept_and_its_activation_computed_twice(activation):
    init = gaussian(0.2)
    mlp = Mlp(
        *(7, 11),
        activation=activation,
        up_init=init,
        down_init=init,
        dtype=jnp.float32,
        rngs=nnx.Rngs(0),
    )
    x, weight = jnp.asarray(_normal(3, 7)), _normal(3, 7, seed=1)
    kept = jax.tree.leaves(jax.vjp(mlp, x)[1])
    assert sum(k.shape == (3, 11) for k in kept) == 1

    def loss(x):
        return jnp.sum(weight * mlp(x))

    slope = (loss(x + 1e-2 * weight) - loss(x - 1e-2 * weight)) / 2e-2
    np.testing.assert_allclose(jnp.sum(jax.grad(loss)(x) * weight), slope, rtol=1e-3)
    text = str(jax.make_jaxpr(jax.value_and_grad(loss))(x))
    assert len(re.findall(" erf | logistic ", text)) == 2


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("layer", ["layer", "group", "instance"])
def test_of_a_norm_one_map_of_its_inputs_type_is_kept_for_the_backward_pass(layer, dtype):
    norm: Any = {
        "layer": LayerNorm(4, dtype=dtype),
        "group": GroupNorm(4, groups=2, dtype=dtype),
        "instance": lambda x: instance_norm(x, dtype=dtype),
    }[layer]
    x = jnp.asarray(_normal(2, 30, 4), dtype)
    kept = [k for k in jax.tree.leaves(jax.vjp(norm, x)[1]) if k.size >= x.size]
    assert [(k.size, k.dtype) for k in kept] == [(x.size, dtype)]


def test_the_gradients_of_a_norm_in_bf16_are_those_in_f32_up_to_rounding():
    x, weight = 1.0 + _normal(4, 50, 16), _normal(4, 50, 16, seed=1)
    found = {}
    for dtype in (jnp.float32, jnp.bfloat16):
        graph, parameters = nnx.split(LayerNorm(16, dtype=dtype))

        def loss(parameters, x, graph=graph):
            return jnp.sum(weight * nnx.merge(graph, parameters)(x).astype(jnp.float32))

        found[dtype] = jax.grad(loss, (0, 1))(
            parameters, jnp.asarray(x, jnp.bfloat16).astype(dtype)
        )
    wide, narrow = (jax.tree.leaves(found[dtype]) for dtype in (jnp.float32, jnp.bfloat16))
    for ours, expected in zip(narrow, wide, strict=True):
        scale = np.abs(expected).max()
        np.testing.assert_allclose(ours.astype(jnp.float32), expected, atol=2**-7 * scale)


def test_group_norm_normalises_groups_over_the_area():
    x = 3.0 + 2.0 * _normal(2, 5, 4, 6)
    y = np.asarray(GroupNorm(6, groups=2, dtype=jnp.float32)(jnp.asarray(x)))
    for row in range(2):
        for group in (slice(0, 3), slice(3, 6)):
            part = x[row, :, :, group].astype(np.float64)
            expected = (part - part.mean()) / np.sqrt(part.var() + 1e-5)
            np.testing.assert_allclose(y[row, :, :, group], expected, atol=1e-5)


def test_group_norm_refuses_groups_that_do_not_divide():
    with pytest.raises(ValueError, match="4 groups do not divide 6 channels"):
        GroupNorm(6, groups=4, dtype=jnp.float32)


def test_instance_norm_normalises_each_channel_of_each_row():
    x = 3.0 + 2.0 * _normal(2, 7, 5)
    y = np.asarray(instance_norm(jnp.asarray(x), dtype=jnp.bfloat16))
    assert y.dtype == jnp.bfloat16
    for row, channel in np.ndindex(2, 5):
        values = x[row, :, channel].astype(np.float64)
        expected = (values - values.mean()) / np.sqrt(values.var() + 1e-5)
        np.testing.assert_allclose(y[row, :, channel].astype(np.float64), expected, rtol=1e-2)


def test_convolution_and_its_gradient_equal_the_plain_one():
    layer = Conv3x3(5, 7, dtype=jnp.float32, rngs=nnx.Rngs(0))
    x, weight = jnp.asarray(_normal(2, 4, 6, 5)), _normal(2, 4, 6, 7, seed=1)
    graph, state = nnx.split(layer)
    kernel = state["kernel"][...]
    np.testing.assert_allclose(layer(x), _plain_conv(x, kernel), atol=1e-5)
    d_state, d_x = jax.grad(lambda s, x: jnp.sum(weight * nnx.merge(graph, s)(x)), (0, 1))(state, x)
    plain = jax.grad(lambda k, x: jnp.sum(weight * _plain_conv(x, k)), (0, 1))(kernel, x)
    np.testing.assert_allclose(d_state["kernel"][...], plain[0], atol=1e-4)
    np.testing.assert_allclose(d_x, plain[1], atol=1e-5)


def test_upsampling_convolution_equals_the_plain_order():
    layer = UpsampleConv3x3(5, 7, dtype=jnp.float32, rngs=nnx.Rngs(0))
    x = jnp.asarray(_normal(2, 4, 6, 5))
    graph, state = nnx.split(layer)
    weight = _normal(2, 8, 12, 7, seed=1)

    def ours(state, x):
        return jnp.sum(weight * nnx.merge(graph, state)(x))

    def plain(kernel, x):
        return jnp.sum(weight * _plain_conv(upsample_bilinear(x, 2), kernel))

    kernel = state["kernel"][...]
    np.testing.assert_allclose(layer(x), _plain_conv(upsample_bilinear(x, 2), kernel), atol=1e-5)
    d_state, d_x = jax.grad(ours, (0, 1))(state, x)
    d_kernel, d_plain_x = jax.grad(plain, (0, 1))(kernel, x)
    np.testing.assert_allclose(d_state["kernel"][...], d_kernel, atol=1e-4)
    np.testing.assert_allclose(d_x, d_plain_x, atol=1e-5)


def test_dynamic_convolution_is_a_convolution_of_each_row():
    x, kernel, channel = _normal(3, 5, 4, 6), _normal(3, 9, 6, seed=1), _normal(3, 9, seed=2)
    result = dynamic_conv3x3(jnp.asarray(x), jnp.asarray(kernel), jnp.asarray(channel))
    for row in range(3):
        # A constant channel of ones carries the offsets: zero outside the map like any other.
        padded = np.concatenate([x[row], np.ones((5, 4, 1), np.float32)], -1)[None]
        taps = np.concatenate([kernel[row], channel[row][:, None]], -1).reshape(3, 3, 7, 1)
        np.testing.assert_allclose(result[row], _plain_conv(padded, taps)[0, :, :, 0], atol=1e-5)


def test_positions_in_one_dimension():
    table = sine_positions_1d(9, 8)
    for place in (0, 3, 8):
        for pair in range(4):
            angle = place / 10000 ** (2 * pair / 8)
            assert table[place, 2 * pair] == pytest.approx(math.sin(angle), abs=1e-6)
            assert table[place, 2 * pair + 1] == pytest.approx(math.cos(angle), abs=1e-6)


def test_positions_in_two_dimensions_have_x_before_y():
    table = sine_positions_2d(3, 5, 8).reshape(3, 5, 8)
    np.testing.assert_array_equal(table[1, :, :4], sine_positions_1d(5, 4))
    np.testing.assert_array_equal(table[:, 2, 4:], sine_positions_1d(3, 4))


def test_relative_positions_have_y_before_x_and_end_after_one_turn():
    table = sine_positions_relative(3, 5, 8).reshape(3, 5, 8)
    for row, column, pair in np.ndindex(3, 5, 2):
        for part, place in ((0, (row + 1) / 3), (4, (column + 1) / 5)):
            angle = 2 * math.pi * place / 10000 ** (2 * pair / 4)
            cell = table[row, column, part + 2 * pair :]
            assert cell[0] == pytest.approx(math.sin(angle), abs=1e-5)
            assert cell[1] == pytest.approx(math.cos(angle), abs=1e-5)


def test_centred_positions_lie_half_a_cell_before_the_relative_ones():
    table = sine_positions_centred(3, 5, 8, dtype=jnp.float32).reshape(3, 5, 8)
    twice = sine_positions_relative(6, 10, 8).reshape(6, 10, 8)
    # The centre of a cell is the end of the first half of it.
    np.testing.assert_allclose(table, twice[::2, ::2], atol=1e-5)


def test_positions_of_words_end_after_one_turn_at_the_end_of_the_padding():
    table = sine_positions_words(4, 6)
    for place, pair in np.ndindex(4, 3):
        angle = 2 * math.pi * (place + 1) / 4 / 10000 ** (2 * pair / 6)
        assert table[place, 2 * pair] == pytest.approx(math.sin(angle), abs=1e-5)
        assert table[place, 2 * pair + 1] == pytest.approx(math.cos(angle), abs=1e-5)


def test_positions_refuse_widths_that_do_not_split():
    for line in (sine_positions_1d, sine_positions_words):
        with pytest.raises(ValueError, match="even width"):
            line(3, 5)
    centred = functools.partial(sine_positions_centred, dtype=jnp.float32)
    for make in (sine_positions_2d, sine_positions_relative, centred):
        with pytest.raises(ValueError, match="divisible by 4"):
            make(3, 3, 6)


def test_dropout_keeps_the_mean_and_needs_a_key():
    x = jnp.ones((100, 100))
    assert dropout(x, 0.3, None) is x
    dropped = np.asarray(dropout(x, 0.3, jax.random.key(0)))
    assert set(np.unique(dropped)) == {np.float32(0.0), np.float32(1 / 0.7)}
    assert dropped.mean() == pytest.approx(1.0, abs=0.02)


def test_drop_path_keeps_or_drops_whole_rows_and_needs_a_key():
    x = jnp.ones((4000, 2, 3))
    assert drop_path(x, 0.3, None) is x
    dropped = np.asarray(drop_path(x, 0.3, jax.random.key(0)))
    assert set(np.unique(dropped)) == {np.float32(0.0), np.float32(1 / 0.7)}
    np.testing.assert_array_equal(dropped, np.broadcast_to(dropped[:, :1, :1], dropped.shape))
    assert dropped.mean() == pytest.approx(1.0, abs=0.04)
