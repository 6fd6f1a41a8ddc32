"""Batch normalisation beside torch's: values, running averages and gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx

from refseg_jax.layers.batch_norm import BatchNorm

pytestmark = pytest.mark.parity

WIDTH = 6


def _normal(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


@pytest.fixture
def norm() -> BatchNorm:
    norm = BatchNorm(WIDTH, momentum=0.7, epsilon=1e-3, dtype=jnp.float32)
    norm.scale[...] = jnp.asarray(1.0 + 0.3 * _normal(WIDTH, seed=1))
    norm.bias[...] = jnp.asarray(_normal(WIDTH, seed=2))
    norm.mean[...] = jnp.asarray(_normal(WIDTH, seed=3))
    norm.variance[...] = jnp.asarray(0.5 + np.abs(_normal(WIDTH, seed=4)))
    return norm


@pytest.fixture
def twin(norm: BatchNorm) -> torch.nn.BatchNorm2d:
    twin = torch.nn.BatchNorm2d(WIDTH, eps=norm.epsilon, momentum=1.0 - norm.momentum)
    for name, ours in (
        ("weight", norm.scale),
        ("bias", norm.bias),
        ("running_mean", norm.mean),
        ("running_var", norm.variance),
    ):
        getattr(twin, name).data.copy_(torch.tensor(np.asarray(ours[...])))
    return twin


def _channels_first(x: np.ndarray) -> torch.Tensor:
    return torch.tensor(np.moveaxis(x, -1, 1).copy())


@pytest.mark.parametrize("training", [True, False])
def test_values_running_averages_and_gradients(norm, twin, training):
    twin.train(training)
    graph, state = nnx.split(norm)
    for seed in (10, 11):
        x, weight = 2.0 + 3.0 * _normal(4, 5, 3, WIDTH, seed=seed), _normal(4, 5, 3, WIDTH, seed=9)

        def loss(state, x, weight=weight):
            module = nnx.merge(graph, state)
            y = module(x, None, training=training)
            return jnp.sum(weight * jnp.sin(y)), (y, nnx.state(module))

        (gradient, d_x), (ours, state) = jax.grad(loss, (0, 1), has_aux=True)(state, jnp.asarray(x))
        theirs = _channels_first(x).requires_grad_()
        twin.zero_grad()
        y = twin(theirs)
        (_channels_first(weight) * torch.sin(y)).sum().backward()

        assert theirs.grad is not None
        for found, expected in ((ours, y.detach()), (d_x, theirs.grad)):
            expected = np.moveaxis(expected.numpy(), 1, -1)
            np.testing.assert_allclose(found, expected, rtol=1e-4, atol=2e-5)
        for name, parameter in (("scale", twin.weight), ("bias", twin.bias)):
            assert parameter.grad is not None
            expected = parameter.grad.numpy()
            np.testing.assert_allclose(gradient[name][...], expected, rtol=1e-4, atol=1e-4)
    for name, expected in (("mean", twin.running_mean), ("variance", twin.running_var)):
        assert expected is not None
        np.testing.assert_allclose(state[name][...], expected.numpy(), rtol=1e-5, atol=1e-6)
