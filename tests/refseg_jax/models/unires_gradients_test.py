"""UniRES in training: gradients, and what rematerialisation leaves as it is."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.refseg_jax.layers.compiling import quick_jit
from tests.refseg_jax.models.micro import micro, micro_batch, micro_params


@pytest.fixture(scope="module")
def params():
    return micro_params(micro())


def _loss(params, key, *, dtype="float32", remat=False):
    batch = micro_batch()
    logits = micro(dtype=dtype, remat=remat).apply(params, batch, key).mask_logits
    target = batch.mask / 255.0
    return jnp.mean(jnp.logaddexp(0.0, logits) - target * logits)


@functools.partial(quick_jit, static_argnames=("dtype", "remat"))
def _loss_and_gradients(params, key=None, *, dtype="float32", remat=False):
    return jax.value_and_grad(_loss)(params, key, dtype=dtype, remat=remat)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_every_parameter_that_matters_gets_a_finite_gradient(params, dtype):
    _, gradients = _loss_and_gradients(params, dtype=dtype)
    for path, gradient in gradients.items():
        assert gradient.dtype == jnp.float32, path
        assert np.isfinite(gradient).all(), path
        # A key's bias moves all scores of a query alike: softmax does not see it.
        if not path.endswith("attention.key.bias"):
            assert np.abs(gradient).max() > 0.0, path


@pytest.mark.long
def test_remat_changes_nothing_but_memory(params):
    plain, remat = (_loss_and_gradients(params, remat=remat) for remat in (False, True))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), plain, remat)
    always, with_remat = (
        str(jax.make_jaxpr(lambda p, remat=remat: _loss(p, None, remat=remat))(params)).count(
            "remat2["
        )
        for remat in (False, True)
    )
    # The activations of 3 CLIP blocks are computed again in any case. With remat so are those 2 vision
    # blocks and 1 text block, and 2 branches of each of the 2 + 1 decoder layers.
    assert (always, with_remat - always) == (3, 9)


@pytest.mark.long
def test_remat_with_dropout_keeps_its_pattern(params):
    key = jax.random.key(3)
    plain, remat = (_loss_and_gradients(params, key, remat=remat) for remat in (False, True))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), plain, remat)
