"""Whether anything is there: the head, and what the mask says."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from refseg_jax.decoders.presence import MaskEvidence, PresenceHead


def _normal(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def _head(dtype=jnp.float32):
    return PresenceHead(width=8, state_width=6, dtype=dtype, rngs=nnx.Rngs(0))


@pytest.mark.parametrize(("dtype", "error"), [(jnp.float32, 1e-5), (jnp.bfloat16, 0.05)])
def test_the_logit_is_the_mlp_of_mean_maximum_and_sentence(dtype, error):
    head = _head(dtype)
    tokens, sentence = _normal(5, 9, 8), _normal(5, 6, seed=1)
    found = head(jnp.asarray(tokens, dtype), jnp.asarray(sentence, dtype))
    assert found.shape == (5,) and found.dtype == jnp.float32
    inputs = np.concatenate([tokens.mean(1), tokens.max(1), sentence], 1)
    up, down = head.up, head.down
    hidden = np.maximum(inputs @ up.kernel[...] + up.bias[...], 0)  # pyright: ignore
    expected = hidden @ down.kernel[...] + down.bias[...]  # pyright: ignore
    np.testing.assert_allclose(found, expected[:, 0], atol=error)


def test_where_something_is_does_not_matter_and_one_patch_of_many_does():
    head = _head()
    tokens, sentence = _normal(1, 676, 8), _normal(1, 6, seed=1)
    plain = head(tokens, sentence)
    np.testing.assert_allclose(head(tokens[:, ::-1], sentence), plain, atol=1e-5)
    one = tokens.copy()
    one[0, 300] = 6.0
    # The mean of 676 tokens has moved by 0.01.
    assert abs(float((head(one, sentence) - plain)[0])) > 0.1


def _evidence() -> MaskEvidence:
    """With random numbers for all parameters: fresh ones say nothing."""
    module = MaskEvidence(rngs=nnx.Rngs(0))
    for number, layer in enumerate((module.up, module.down)):
        for leaf in (layer.kernel, layer.bias):
            leaf[...] = jnp.asarray(_normal(*leaf[...].shape, seed=10 * number + leaf[...].ndim))  # pyright: ignore
    return module


def test_evidence_is_the_mlp_of_area_peak_and_certainty():
    module, masks = _evidence(), 3 * _normal(5, 6, 7) - 2
    found = module(jnp.asarray(masks))
    assert found.shape == (5,) and found.dtype == jnp.float32
    wide = masks.reshape(5, -1).astype(np.float64)
    share = 1 / (1 + np.exp(-wide))
    certainty = (share * wide).sum(1) / share.sum(1)
    inputs = np.stack([np.log(share.mean(1)), wide.max(1), certainty], 1)
    up, down = module.up, module.down
    hidden = np.maximum(inputs @ up.kernel[...] + up.bias[...], 0)  # pyright: ignore
    expected = hidden @ down.kernel[...] + down.bias[...]  # pyright: ignore
    np.testing.assert_allclose(found, expected[:, 0], atol=1e-4)
    # Where the mask lies, and how finely it is cut, does not matter.
    np.testing.assert_allclose(module(jnp.asarray(masks[:, ::-1])), found, atol=1e-4)
    finer = jnp.asarray(masks.repeat(2, 1).repeat(2, 2))
    np.testing.assert_allclose(module(finer), found, atol=1e-4)


def test_evidence_of_a_mask_that_is_nowhere_or_everywhere_is_finite():
    masks = jnp.stack([jnp.full((4, 4), -1e4), jnp.full((4, 4), 1e4)])
    module = _evidence()
    assert np.isfinite(module(masks)).all()
    leaves = jax.tree.leaves(nnx.grad(lambda m: m(masks).sum())(module))
    assert len(leaves) == 4 and all(np.isfinite(leaf).all() for leaf in leaves)


def test_fresh_evidence_says_nothing_and_masks_are_not_taught_by_it():
    masks = jnp.asarray(_normal(2, 4, 4))
    np.testing.assert_array_equal(MaskEvidence(rngs=nnx.Rngs(0))(masks), np.zeros(2))
    np.testing.assert_array_equal(jax.grad(lambda m: _evidence()(m).sum())(masks), 0 * masks)
