"""Batch normalisation against its formula, with rows that do not count."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from flax.errors import TraceContextError

from refseg_jax.layers.batch_norm import BatchNorm, Statistic, make_norm
from refseg_jax.layers.norm import GroupNorm

WIDTH = 6
SHAPES = [(7, WIDTH), (7, 5, WIDTH), (7, 3, 4, WIDTH)]
VALID = np.array([True, False, True, True, False, True, True])


def _normal(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def _norm(dtype=jnp.float32, **kwargs) -> BatchNorm:
    norm = BatchNorm(WIDTH, dtype=dtype, rngs=nnx.Rngs(0), **kwargs)
    norm.scale[...] = jnp.asarray(1.0 + 0.3 * _normal(WIDTH, seed=1))
    norm.bias[...] = jnp.asarray(_normal(WIDTH, seed=2))
    norm.mean[...] = jnp.asarray(_normal(WIDTH, seed=3))
    norm.variance[...] = jnp.asarray(0.5 + np.abs(_normal(WIDTH, seed=4)))
    return norm


def _plain(x, valid, scale, bias, epsilon=1e-5):
    """The formula over the rows that count, for automatic differentiation."""
    axes = tuple(range(x.ndim - 1))
    counted = x[np.flatnonzero(valid)]
    mean, variance = counted.mean(axes), counted.var(axes)
    return (x - mean) / jnp.sqrt(variance + epsilon) * scale + bias


@pytest.mark.parametrize("shape", SHAPES)
def test_two_steps_of_training_and_inference_follow_the_formula(shape):
    norm = _norm(momentum=0.7, epsilon=1e-3)
    scale, bias, mean, variance = (
        np.asarray(v[...], np.float64) for v in (norm.scale, norm.bias, norm.mean, norm.variance)
    )
    for seed in (10, 11):
        x = 2.0 + 3.0 * _normal(*shape, seed=seed)
        flat = x.reshape(-1, WIDTH).astype(np.float64)
        expected = (x - flat.mean(0)) / np.sqrt(flat.var(0) + 1e-3) * scale + bias
        np.testing.assert_allclose(
            norm(jnp.asarray(x), None, training=True), expected, rtol=1e-5, atol=1e-5
        )
        mean = 0.7 * mean + 0.3 * flat.mean(0)
        variance = 0.7 * variance + 0.3 * flat.var(0, ddof=1)
    np.testing.assert_allclose(norm.mean[...], mean, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(norm.variance[...], variance, rtol=1e-5)

    x = _normal(*shape, seed=12)
    expected = (x - mean) / np.sqrt(variance + 1e-3) * scale + bias
    inference = norm(jnp.asarray(x), None, training=False)
    np.testing.assert_allclose(inference, expected, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(norm.mean[...], mean, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("shape", SHAPES)
def test_rows_that_do_not_count_leave_no_trace(shape):
    norm, alone = _norm(), _norm()
    x = _normal(*shape, seed=10)
    x[~VALID] = np.nan
    ours = norm(jnp.asarray(x), jnp.asarray(VALID), training=True)
    expected = alone(jnp.asarray(x[VALID]), None, training=True)
    np.testing.assert_allclose(ours[VALID], expected, rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(norm.mean[...], alone.mean[...], rtol=1e-6)
    np.testing.assert_allclose(norm.variance[...], alone.variance[...], rtol=1e-6)


@pytest.mark.parametrize("shape", SHAPES)
def test_gradients_are_those_of_the_formula(shape):
    """The loss reads rows that do not count as well: they hang on the statistics of the others."""
    norm = _norm()
    x, weight = jnp.asarray(_normal(*shape, seed=10)), _normal(*shape, seed=11)
    graph, state = nnx.split(norm)

    def loss(state, x):
        y = nnx.merge(graph, state)(x, jnp.asarray(VALID), training=True)
        return jnp.sum(weight * jnp.sin(y))

    def plain(scale, bias, x):
        return jnp.sum(weight * jnp.sin(_plain(x, VALID, scale, bias)))

    gradient, d_x = jax.grad(loss, (0, 1))(state, x)
    expected = jax.grad(plain, (0, 1, 2))(norm.scale[...], norm.bias[...], x)
    found = gradient["scale"][...], gradient["bias"][...], d_x
    for ours, theirs in zip(found, expected, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-5)
    for name in ("mean", "variance"):
        np.testing.assert_array_equal(gradient[name][...], 0.0)


def test_without_a_row_that_counts_the_averages_stay():
    norm = _norm()
    before = np.asarray(norm.mean[...]), np.asarray(norm.variance[...])
    result = norm(jnp.asarray(_normal(7, WIDTH)), jnp.zeros(7, bool), training=True)
    assert np.isfinite(result).all()
    np.testing.assert_array_equal(norm.mean[...], before[0])
    np.testing.assert_array_equal(norm.variance[...], before[1])


def test_a_single_value_leaves_a_finite_variance():
    norm = _norm()
    norm(jnp.asarray(_normal(1, WIDTH)), None, training=True)
    assert np.isfinite(norm.variance[...]).all()


def test_a_frozen_module_uses_its_running_averages_in_training():
    norm = _norm()
    x = jnp.asarray(_normal(7, WIDTH, seed=10))
    expected = norm(x, None, training=False)
    before = np.asarray(norm.mean[...])
    norm.frozen = True
    np.testing.assert_array_equal(norm(x, None, training=True), expected)
    np.testing.assert_array_equal(norm.mean[...], before)


@pytest.mark.parametrize("wrapped", [jax.checkpoint, jax.vmap])
def test_a_call_whose_averages_would_be_lost_is_an_error(wrapped):
    norm, x = _norm(), jnp.asarray(_normal(2, 7, WIDTH))
    with pytest.raises(TraceContextError, match="Cannot mutate Statistic"):
        wrapped(lambda x: norm(x, None, training=True))(x)
    wrapped(lambda x: norm(x, None, training=False))(x)


def test_statistics_of_bf16_are_computed_in_f32():
    x = jnp.asarray(100.0 + _normal(64, 32, WIDTH, seed=10), jnp.bfloat16)
    norm = BatchNorm(WIDTH, momentum=0.0, dtype=jnp.bfloat16, rngs=nnx.Rngs(0))
    result = norm(x, None, training=True)
    assert result.dtype == jnp.bfloat16
    exact = np.asarray(x, np.float64).reshape(-1, WIDTH)
    np.testing.assert_allclose(norm.mean[...], exact.mean(0), rtol=1e-6)
    np.testing.assert_allclose(norm.variance[...], exact.var(0, ddof=1), rtol=1e-4)


def test_averages_are_statistics_and_the_rest_parameters():
    kinds = {p[-1]: type(v) for p, v in nnx.to_flat_state(nnx.state(_norm()))}
    parameters = {"scale": nnx.Param, "bias": nnx.Param}
    assert kinds == {**parameters, "mean": Statistic, "variance": Statistic}
    assert not issubclass(Statistic, nnx.Param)


@pytest.mark.parametrize("shape", [(4, 64), (4, 5, 64), (4, 3, 5, 64)])
def test_both_kinds_answer_the_same_call(shape):
    x, valid = jnp.asarray(_normal(*shape)), jnp.asarray([True, False, True, True])
    norms = [make_norm("batch", 64, dtype=jnp.float32), make_norm("group", 64, dtype=jnp.float32)]
    batch, group = (norm(x, valid, training=True) for norm in norms)
    assert batch.shape == group.shape == shape
    rows = np.asarray(x, np.float64).reshape(4, -1, 8, 8)
    rows = (rows - rows.mean((1, 3), keepdims=True)) / np.sqrt(
        rows.var((1, 3), keepdims=True) + 1e-5
    )
    np.testing.assert_allclose(group, rows.reshape(shape), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("width", "groups"), [(256, 32), (512, 32), (64, 8), (48, 4), (12, 1), (4, 1)]
)
def test_groups_keep_enough_channels(width, groups):
    norm = make_norm("group", width, dtype=jnp.float32)
    assert isinstance(norm, GroupNorm) and norm.groups == groups


def test_an_unknown_kind_is_refused():
    with pytest.raises(ValueError, match="norm='layer': must be 'batch' or 'group'"):
        make_norm("layer", 8, dtype=jnp.float32)  # pyright: ignore[reportArgumentType]
