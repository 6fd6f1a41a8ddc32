"""BERT's own properties; tests/parity holds it against transformers."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from refseg_jax.encoders.bert import Bert, BertLayer, bert_config
from refseg_jax.models.forward import Forward

LENGTHS = np.array([[9], [4], [1]])
VALID = np.arange(9) < LENGTHS
IDS = np.random.default_rng(0).integers(1, 64, (3, 9)).astype(np.int32)


@functools.cache
def _tower(**fields) -> tuple[Forward[Bert], dict[str, jax.Array]]:
    config = bert_config({"preset": "tiny", **fields})
    return Forward(lambda rngs: Bert(config, rngs=rngs)), _params()


@functools.cache
def _params() -> dict[str, jax.Array]:
    tiny = bert_config({"preset": "tiny"})
    return jax.jit(Forward(lambda rngs: Bert(tiny, rngs=rngs)).init)(jax.random.key(0))


@functools.cache
def _jitted(forward):
    return jax.jit(lambda params, ids, valid, options: forward.bind(params)(ids, valid, **options))


def _run(forward, params, ids=IDS, valid=VALID, **options):
    return _jitted(forward)(params, ids, valid, options)


def test_padding_cannot_change_words():
    forward, params = _tower()
    words = _run(forward, params)
    assert words.shape == (3, 9, 32) and words.dtype == jnp.float32 and np.isfinite(words).all()
    other = _run(forward, params, ids=np.where(VALID, IDS, 63 - IDS))
    np.testing.assert_array_equal(words[VALID], other[VALID])
    short = _run(forward, params, ids=IDS[:, :4], valid=VALID[:, :4])
    np.testing.assert_allclose(words[1, :4], short[1], atol=1e-6)


def test_words_see_each_other_in_both_directions():
    forward, params = _tower()
    changed = IDS.copy()
    changed[0, 4] = 63 - changed[0, 4]
    moved = np.abs(_run(forward, params) - _run(forward, params, ids=changed)).max(-1)
    assert (moved[0] > 1e-4).all() and (moved[1:] == 0).all()


def test_types_of_words_count_and_are_the_first_if_absent():
    forward, params = _tower()
    words = _run(forward, params)
    zeros = _run(forward, params, types=np.zeros_like(IDS))
    np.testing.assert_array_equal(words, zeros)
    ones = _run(forward, params, types=np.ones_like(IDS))
    assert np.abs(words - ones).max() > 1e-3


def test_norms_stand_behind_the_sums():
    config = bert_config({"preset": "tiny"})
    layer = BertLayer(config, rngs=nnx.Rngs(0))
    x = jnp.asarray(np.random.default_rng(0).standard_normal((3, 9, 32)), jnp.float32)
    y = np.asarray(layer(x, jnp.asarray(VALID)))
    np.testing.assert_allclose(y.mean(-1), 0.0, atol=1e-5)
    np.testing.assert_allclose(y.std(-1), 1.0, atol=1e-4)


def test_remat_changes_neither_words_nor_gradients():
    def value(params, forward):
        words = forward.bind(params)(IDS, VALID, key=jax.random.key(1))
        return jnp.sum(jnp.sin(words) * VALID[..., None])

    results = []
    for remat in (False, True):
        forward, params = _tower(remat=remat)
        results.append(
            jax.jit(jax.value_and_grad(functools.partial(value, forward=forward)))(params)
        )
    (plain, gradient), (again, other) = results
    np.testing.assert_allclose(plain, again, rtol=1e-5)
    for path, leaf in gradient.items():
        # Softmax does not see what all keys share.
        assert np.isfinite(leaf).all()
        assert np.abs(leaf).max() > 1e-6 or path.endswith("key.bias"), path
        np.testing.assert_allclose(leaf, other[path], rtol=1e-3, atol=1e-4)


def test_dropout_is_random_in_training_and_absent_without_a_key():
    forward, params = _tower(dropout=0.5)
    one, same, two = (_run(forward, params, key=jax.random.key(seed)) for seed in (0, 0, 1))
    np.testing.assert_array_equal(one, same)
    assert np.abs(one - two).max() > 0.1
    plain, _ = _tower(dropout=0.0)
    np.testing.assert_array_equal(_run(forward, params), _run(plain, params))


def test_bf16_is_close_to_f32():
    forward, params = _tower(dtype="bfloat16")
    exact, _ = _tower()
    words = _run(forward, params)
    assert words.dtype == jnp.bfloat16
    np.testing.assert_allclose(
        np.asarray(words, np.float32)[VALID], _run(exact, params)[VALID], atol=0.1
    )


def test_the_tower_has_the_published_size():
    config = bert_config({})
    shapes = Forward(lambda rngs: Bert(config, rngs=rngs)).shapes
    # 109,482,240 with the pooler's 768 * 768 + 768.
    assert sum(int(np.prod(leaf.shape)) for leaf in shapes.values()) == 109_482_240 - 590_592


def test_more_words_than_positions_are_refused():
    forward, params = _tower()
    with pytest.raises(ValueError, match="25 text positions"):
        forward.bind(params)(jnp.zeros((1, 25), jnp.int32), jnp.ones((1, 25), bool))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"dtype": "float16"}, "unknown dtype"),
        ({"dropout": 1.0}, "dropout=1.0"),
        ({"layers": 0}, "layers=0 is less than 1"),
        ({"heads": 7}, "heads=7 does not divide width=768"),
        ({"preset": "bse"}, "did you mean 'base'"),
        ({"vocabsize": 7}, "did you mean 'vocab_size'"),
    ],
)
def test_mistakes_in_the_config_are_told(fields, message):
    with pytest.raises(ValueError, match=message):
        bert_config(fields)
