"""Masks and steps of the masked decoder layer; tests/parity holds it against transformers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from refseg_jax.decoders.masked_attention import MaskedAttentionLayer, visible_cells

QUERIES, CELLS, WIDTH = 3, 6, 8


def _normal(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape).astype(np.float32))


@pytest.fixture(scope="module")
def layer():
    return MaskedAttentionLayer(WIDTH, 2, 16, dtype=jnp.float32, rngs=nnx.Rngs(0))


def _inputs():
    """Queries, their places, memory, its places."""
    shapes = (2, QUERIES, WIDTH), (QUERIES, WIDTH), (2, CELLS, WIDTH), (CELLS, WIDTH)
    return [_normal(*shape, seed=seed) for seed, shape in enumerate(shapes)]


def test_a_query_sees_the_cells_of_its_mask():
    """Half as fine by means of the two middle pixels of four, per axis."""
    logits = np.full((1, 2, 4, 8), -1.0, np.float32)
    logits[0, 0, 1:3, 5:7] = 8.0
    logits[0, 1, 0, 0] = 100.0
    visible = np.asarray(visible_cells(jnp.asarray(logits), (1, 2)))
    # The corner lies in no middle, so that the second mask is empty there.
    np.testing.assert_array_equal(visible, [[[False, True], [True, True]]])
    fine = np.asarray(visible_cells(jnp.asarray(logits), (4, 8)))
    np.testing.assert_array_equal(fine.reshape(logits.shape), logits > 0.0)


def test_a_logit_of_zero_is_foreground_and_masks_get_no_gradient():
    logits = jnp.zeros((1, 1, 2, 2)).at[0, 0, 0, 0].set(-1e-3)
    visible = np.asarray(visible_cells(logits, (2, 2)))
    np.testing.assert_array_equal(visible, [[[False, True, True, True]]])
    value = lambda x: jnp.sum(jnp.where(visible_cells(x, (2, 2)), x.reshape(1, 1, 4), 0.0))  # noqa: E731
    np.testing.assert_array_equal(jax.grad(value)(logits), visible.reshape(1, 1, 2, 2))


def test_cells_outside_a_querys_mask_do_not_matter_to_it(layer):
    x, places, memory, memory_places = _inputs()
    visible = jnp.ones((2, QUERIES, CELLS), bool).at[1, 2, 3:].set(False)
    look = jax.jit(layer.look_at_memory)
    plain = look(x, places, memory, memory_places, visible)
    other = look(x, places, memory.at[1, 3:].add(5.0), memory_places, visible)
    np.testing.assert_allclose(plain[1, 2], other[1, 2], atol=1e-6)
    np.testing.assert_allclose(plain[0], other[0], atol=1e-6)
    assert np.abs(plain[1, :2] - other[1, :2]).max() > 1e-2
    everything = look(x, places, memory, memory_places)
    np.testing.assert_allclose(everything[:, :2], plain[:, :2], atol=1e-6)


def test_the_layer_is_its_three_steps(layer):
    x, places, memory, memory_places = _inputs()
    visible = jnp.asarray(np.random.default_rng(9).random((2, QUERIES, CELLS)) < 0.6)
    result = layer(x, places, memory, memory_places, visible)
    mixed = layer.cross_attention(x + places, memory + memory_places, memory, visible=visible)
    y = layer.cross_attention_norm(x + mixed)
    y = layer.self_attention_norm(y + layer.self_attention(y + places, y + places, y))
    y = layer.mlp_norm(y + layer.mlp.down(jax.nn.relu(layer.mlp.up(y))))
    np.testing.assert_allclose(result, y, atol=1e-5)


def test_norms_stand_behind_the_sums(layer):
    result = np.asarray(layer(*_inputs()))
    np.testing.assert_allclose(result.mean(-1), 0.0, atol=1e-5)
    np.testing.assert_allclose(result.var(-1), 1.0, atol=1e-3)


def test_bf16_is_close_to_f32(layer):
    half = MaskedAttentionLayer(WIDTH, 2, 16, dtype=jnp.bfloat16, rngs=nnx.Rngs(0))
    ours, exact = half(*_inputs()), layer(*_inputs())
    assert ours.dtype == jnp.bfloat16
    assert np.abs(np.asarray(ours, np.float32) - exact).max() < 0.1
