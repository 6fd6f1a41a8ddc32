"""The presence head."""

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from refseg_jax.decoders.presence import PresenceHead


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
