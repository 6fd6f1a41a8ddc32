"""Deformable attention against its definition, one sample after the other."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from refseg_jax.layers import deformable_attention
from refseg_jax.layers.deformable_attention import (
    DeformableAttention,
    own_places,
    sample_levels,
    weighted_rows,
)
from tests.devices import run_on_devices

SHAPES = ((2, 3), (4, 5))
TOKENS = 2 * 3 + 4 * 5
HEADS, WIDTH, POINTS = 2, 3, 2


def _inputs(rows=2, spread=2.0):
    rng = np.random.default_rng(0)
    split = (rows, TOKENS, HEADS, len(SHAPES), POINTS)
    value = rng.standard_normal((rows, TOKENS, HEADS, WIDTH))
    places = own_places(SHAPES)[:, None, :, None] + spread * rng.standard_normal((*split, 2))
    return [x.astype(np.float32) for x in (value, places, rng.random(split))]


def _read(level, x, y):
    """Bilinear, zeros beyond the border; `level` `[h, w, D]`."""
    total = np.zeros(level.shape[-1])
    for row in range(level.shape[0]):
        for column in range(level.shape[1]):
            share = max(1 - abs(x - column), 0) * max(1 - abs(y - row), 0)
            total += share * level[row, column]
    return total


def _reference(value, places, weights):
    starts = np.cumsum([0] + [h * w for h, w in SHAPES])
    result = np.zeros(value.shape)
    for row, token, head, number, point in np.ndindex(*weights.shape):
        size = SHAPES[number]
        level = value[row, starts[number] : starts[number + 1], head].reshape(*size, -1)
        read = _read(level, *places[row, token, head, number, point])
        result[row, token, head] += weights[row, token, head, number, point] * read
    return result


def test_sampling_is_bilinear_with_zeros_beyond_the_border():
    value, places, weights = _inputs()
    # Exactly on a cell, on a corner, on the border's outside, and far away.
    places[0, :5, 0, 0, 0] = [(0, 0), (2, 1), (-1, 0.5), (2.5, 1.5), (1e6, -1e6)]
    result = jax.jit(lambda *x: sample_levels(*x, SHAPES))(value, places, weights)
    np.testing.assert_allclose(result, _reference(value, places, weights), atol=1e-5)


@pytest.mark.parametrize("nowhere", [np.nan, np.inf, -np.inf])
def test_a_place_that_is_no_number_reads_nothing(nowhere):
    value, places, weights = _inputs()
    sample = jax.jit(lambda *x: sample_levels(*x, SHAPES))
    without = weights.copy()
    without[0, 3, 1, 0, 0] = 0.0
    expected = sample(value, places, without)
    places[0, 3, 1, 0, 0, 1] = nowhere
    np.testing.assert_array_equal(sample(value, places, weights), expected)


@pytest.mark.parametrize("numbers", [1, 200, 1 << 20])
def test_gradients_are_those_of_the_plain_gather(monkeypatch, numbers):
    """Whether the backward pass works in pieces or at once."""
    monkeypatch.setitem(deformable_attention.CHUNK_NUMBERS, "cpu", numbers)
    rng = np.random.default_rng(0)
    table, weights = rng.standard_normal((2, 7, 3)), rng.standard_normal((2, 12, 5))
    entries = rng.integers(0, 7, (2, 12, 5), np.int32)
    cotangent = rng.standard_normal((2, 12, 3)).astype(np.float32)
    inputs = table.astype(np.float32), weights.astype(np.float32)

    def plain(table, weights):
        rows = jnp.take_along_axis(table[:, :, None], entries.reshape(2, -1, 1, 1), 1)
        return jnp.einsum("bmk,bmkd->bmd", weights, rows.reshape(2, 12, 5, 3))

    def both(function):
        result, pull = jax.vjp(function, *inputs)
        return result, *pull(cotangent)

    ours = jax.jit(lambda: both(lambda t, w: weighted_rows(t, jnp.asarray(entries), w)))()
    for a, b in zip(ours, jax.jit(lambda: both(plain))(), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)


def test_the_rows_that_are_read_are_never_stored():
    rows, tokens, entries, width = 1, 32768, 48, 32
    table = jax.ShapeDtypeStruct((rows, tokens, width), jnp.float32)
    indices = jax.ShapeDtypeStruct((rows, tokens, entries), jnp.int32)
    weights = jax.ShapeDtypeStruct(indices.shape, jnp.float32)

    def both(table, indices, weights):
        result, pull = jax.vjp(lambda t, w: weighted_rows(t, indices, w), table, weights)
        return pull(result)

    stored = rows * tokens * entries * width * 4
    for function in (weighted_rows, both):
        compiled = jax.jit(function).lower(table, indices, weights).compile()
        assert compiled.memory_analysis().temp_size_in_bytes < 0.2 * stored


def test_own_places_are_centres_seen_from_every_level():
    places = own_places(((2, 2), (4, 8)))
    assert places.shape == (4 + 32, 2, 2) and places.dtype == np.float32
    np.testing.assert_allclose(places[1], [(1, 0), (5.5, 0.5)])
    np.testing.assert_allclose(places[4 + 8 + 3], [(3.5 / 8 * 2 - 0.5, 1.5 / 4 * 2 - 0.5), (3, 1)])


def _layer(heads=8, width=16, points=4):
    return DeformableAttention(
        width, heads, levels=2, points=points, dtype=jnp.float32, rngs=nnx.Rngs(0)
    )


def test_fresh_heads_look_in_eight_directions_and_farther_at_each_point():
    layer = _layer()
    offsets = np.asarray(layer.offsets.bias[...]).reshape(8, 2, 4, 2)
    around = [(1, 0), (1, 1), (0, 1), (-1, 1), (-1, 0), (-1, -1), (0, -1), (1, -1)]
    for point in range(4):
        for level in range(2):
            expected = (point + 1) * np.array(around)
            np.testing.assert_allclose(offsets[:, level, point], expected, atol=1e-5)
    for name in ("offsets", "shares"):
        np.testing.assert_array_equal(getattr(layer, name).kernel[...], 0.0)
    for name in ("value", "out"):
        kernel = np.asarray(getattr(layer, name).kernel[...])
        bound = np.sqrt(6 / (16 + 16))
        assert 0.9 * bound < np.abs(kernel).max() <= bound


def test_a_fresh_layer_averages_what_lies_in_its_heads_directions():
    layer = _layer(heads=4, width=8, points=1)
    shapes = ((3, 3), (3, 3))
    tokens = jnp.asarray(np.random.default_rng(0).standard_normal((1, 18, 8)), jnp.float32)
    result = jax.jit(lambda x: layer(x + 5.0, x, shapes))(tokens)
    value = np.asarray(layer.value(tokens)).reshape(2, 3, 3, 4, 2)
    right, below, left, above = (
        value[:, 1, 2, 0],
        value[:, 2, 1, 1],
        value[:, 1, 0, 2],
        value[:, 0, 1, 3],
    )
    mixed = np.concatenate([x.mean(0) for x in (right, below, left, above)])
    np.testing.assert_allclose(result[0, 4], layer.out(jnp.asarray(mixed)), atol=1e-5)


def test_heads_that_do_not_divide_the_width_are_refused():
    with pytest.raises(ValueError, match="3 heads do not divide the width 16"):
        _layer(heads=3)


CODE = """
import re
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from refseg_jax.layers import deformable_attention
from tests.refseg_jax.layers.deformable_attention_test import SHAPES, _inputs

def both(*inputs):
    mixed, pull = jax.vjp(lambda *x: deformable_attention.sample_levels(*x, SHAPES), *inputs)
    return mixed, pull(jnp.sin(mixed))

inputs = _inputs(rows=8)
mesh = jax.make_mesh((4,), ("data",), axis_types=(AxisType.Auto,))
rows = NamedSharding(mesh, PartitionSpec("data"))
# Small enough for pieces.
deformable_attention.CHUNK_NUMBERS["cpu"] = 1 << 10
one = jax.jit(both).lower(*inputs).compile()
four = jax.jit(both, in_shardings=(rows,) * 3).lower(*inputs).compile()
assert not re.search(r"all-|collective|reduce-scatter", four.as_text())
share = four.memory_analysis().temp_size_in_bytes / one.memory_analysis().temp_size_in_bytes
assert share < 0.3, share
parts = four(*(jax.device_put(x, rows) for x in inputs))
for a, b in zip(jax.tree.leaves(parts), jax.tree.leaves(one(*inputs)), strict=True):
    assert a.sharding.is_equivalent_to(rows, a.ndim)
    np.testing.assert_allclose(a, b, atol=1e-6)
"""


def test_devices_that_share_a_batch_sample_without_talking_to_each_other():
    run_on_devices(4, CODE)
