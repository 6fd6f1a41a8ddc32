"""LAVT's fusion against its definition written another way."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from scipy.special import erf

from refseg_jax.encoders.language_swin import (
    LanguageGate,
    LanguageSwin,
    LanguageSwinConfig,
    WordFusion,
)
from refseg_jax.encoders.swin import Swin, swin_config
from refseg_jax.models.forward import Forward

SMALL = {"preset": "tiny", "depths": (1, 1), "heads": (1, 2), "width": 8, "word_width": 6}

RNG = np.random.default_rng(0)
IMAGE = RNG.integers(0, 256, (2, 26, 37, 3), dtype=np.uint8)
WORDS = RNG.standard_normal((2, 4, 6)).astype(np.float32)
VALID = np.array([[1, 1, 1, 0], [1, 1, 0, 0]], bool)


@functools.cache
def _tower(**fields) -> tuple[Forward[LanguageSwin], dict[str, jax.Array]]:
    config = swin_config({**SMALL, **fields}, LanguageSwinConfig)
    forward: Forward[LanguageSwin] = Forward(lambda rngs: LanguageSwin(config, rngs=rngs))
    return forward, {path: _params()[path] for path in forward.shapes}


@functools.cache
def _params() -> dict[str, jax.Array]:
    config = swin_config(SMALL, LanguageSwinConfig)
    params = jax.jit(Forward(lambda rngs: LanguageSwin(config, rngs=rngs)).init)(jax.random.key(0))
    # Kernels of 0.02 and channels of 8 would let through next to nothing.
    return {p: 10.0 * v if p.startswith("gates.") else v for p, v in params.items()}


@functools.cache
def _fusion() -> tuple[Forward[WordFusion], dict[str, np.ndarray]]:
    """With biases that are not zero."""
    forward: Forward[WordFusion] = Forward(
        lambda rngs: WordFusion(8, 6, dtype=jnp.float32, rngs=rngs)
    )
    rng = np.random.default_rng(2)
    draw = lambda shape: 0.5 * rng.standard_normal(shape).astype(np.float32)  # noqa: E731
    return forward, {path: draw(leaf.shape) for path, leaf in forward.shapes.items()}


@functools.cache
def _jitted(forward):
    return jax.jit(lambda params, *inputs: forward.bind(params)(*inputs))


def _run(forward, params, image=IMAGE, words=WORDS, valid=VALID, key=None):
    return _jitted(forward)(params, image, words, valid, key)


def _difference(ours, others) -> list[float]:
    return [float(np.abs(a - b).max()) for a, b in zip(ours, others, strict=True)]


@pytest.mark.parametrize("gate", ["live", "closed"])
def test_any_image_gives_maps_at_strides_rounded_up(gate):
    features = _run(*_tower(gate=gate))
    assert [x.shape for x in features] == [(2, 7, 10, 8), (2, 4, 5, 16)]
    for x in features:
        assert x.dtype == jnp.float32 and np.isfinite(x).all()


def test_with_a_closed_gate_the_stages_are_a_plain_swins():
    forward, params = _tower(gate="closed")
    config = swin_config(SMALL, LanguageSwinConfig)
    plain: Forward[Swin] = Forward(lambda rngs: Swin(config, rngs=rngs))

    @jax.jit
    def fused_afterwards(params):
        tower = forward.bind(params)
        swin = plain.bind({path: params[f"swin.{path}"] for path in plain.shapes})
        x = swin.embed(jnp.asarray(IMAGE))
        features = []
        for number, stage in enumerate(swin.stages):
            x = stage(x)
            fused = tower.fusions[number](x, jnp.asarray(WORDS), jnp.asarray(VALID))
            features.append(swin.norms[number](fused))
            x = x if stage.downsample is None else stage.downsample(x)
        return features

    expected = fused_afterwards(params)
    assert not [path for path in params if path.startswith("gates.")]
    assert max(_difference(_run(forward, params), expected)) < 1e-4
    live, all_params = _tower(gate="live")
    first, second = _difference(_run(live, all_params), expected)
    assert first < 1e-4 and second > 1e-2


def test_a_gate_of_zero_kernels_is_closed_and_stays_so():
    """What ReLA's official code starts with: no gradient ever moves it."""
    live, params = _tower(gate="live")
    params = {p: jnp.zeros_like(v) if p.startswith("gates.") else v for p, v in params.items()}
    closed, others = _tower(gate="closed")
    assert max(_difference(_run(live, params), _run(closed, others))) < 1e-5

    def value(params):
        return sum(jnp.sum(jnp.sin(x)) for x in live.bind(params)(IMAGE, WORDS, VALID))

    gradient = jax.jit(jax.grad(value))(params)
    gates = [path for path in gradient if path.startswith("gates.")]
    assert len(gates) == 2
    for path in gates:
        np.testing.assert_array_equal(gradient[path], 0.0)


@pytest.mark.parametrize("gate", ["live", "closed"])
def test_padding_says_nothing_and_words_do(gate):
    forward, params = _tower(gate=gate)
    plain = _run(forward, params)
    padding = np.where(VALID[..., None], WORDS, 9.0).astype(np.float32)
    assert max(_difference(plain, _run(forward, params, words=padding))) == 0.0
    cut = _run(forward, params, words=WORDS[:, :3], valid=VALID[:, :3])
    assert max(_difference(plain, cut)) < 1e-4
    other = WORDS.copy()
    other[:, 0] += 1.0
    assert min(_difference(plain, _run(forward, params, words=other))) > 1e-2


def test_where_all_words_are_padding_none_matters():
    forward, params = _fusion()
    x = RNG.standard_normal((2, 3, 4, 8)).astype(np.float32)
    nothing = np.zeros((2, 4), bool)
    result = _jitted(forward)(params, x, WORDS, nothing)
    np.testing.assert_array_equal(result, _jitted(forward)(params, x, WORDS + 1.0, nothing))


@pytest.mark.parametrize("gate", ["live", "closed"])
def test_expressions_of_one_image_equal_images_of_their_own(gate):
    forward, params = _tower(gate=gate)
    words = np.random.default_rng(1).standard_normal((6, 4, 6)).astype(np.float32)
    valid = np.arange(4) < np.array([[4], [1], [2], [3], [4], [2]])
    shared = _run(forward, params, words=words, valid=valid)
    apart = _run(forward, params, np.repeat(IMAGE, 3, 0), words, valid)
    assert [x.shape[0] for x in shared] == [6, 6]
    assert max(_difference(shared, apart)) < 1e-3


def test_a_closed_gate_works_on_an_image_once_for_all_its_expressions():
    def flops(gate: str, count: int) -> float:
        forward, params = _tower(gate=gate)
        words = np.zeros((count, 4, 6), np.float32)
        call = _jitted(forward).lower(params, IMAGE[:1], words, words[..., 0] == 0.0, None)
        return call.cost_analysis()["flops"]

    closed = flops("closed", 5) - flops("closed", 1)
    live = flops("live", 5) - flops("live", 1)
    assert closed < 0.8 * live


def _gelu(x):
    return x * (1.0 + erf(x / np.sqrt(2.0))) / 2.0


def _standardised(x):
    """Over axis 0, the pixels of one image."""
    return (x - x.mean(0)) / np.sqrt(x.var(0) + 1e-5)


def test_fusion_is_lavts_formula():
    forward, params = _fusion()
    x = RNG.standard_normal((2, 3, 4, 8)).astype(np.float32)
    result = _jitted(forward)(params, x, WORDS, VALID)

    def apply(name, y):
        return y @ params[f"{name}.kernel"].astype(np.float64) + params[f"{name}.bias"]

    for row in range(2):
        pixels, words = x[row].reshape(12, 8), WORDS[row][VALID[row]]
        scores = _standardised(apply("query", pixels)) @ apply("key", words).T / np.sqrt(8.0)
        weights = np.exp(scores) / np.exp(scores).sum(-1, keepdims=True)
        language = _standardised(apply("out", weights @ apply("value", words)))
        expected = _gelu(apply("join", _gelu(apply("vision", pixels)) * language))
        np.testing.assert_allclose(result[row].reshape(12, 8), expected, atol=1e-4)


def test_gate_is_a_tanh_of_two_products_without_biases():
    gate = LanguageGate(8, dtype=jnp.float32, rngs=nnx.Rngs(0))
    x = RNG.standard_normal((5, 8)).astype(np.float32)
    hidden = np.maximum(x @ np.asarray(gate.up.kernel[...]), 0.0)
    expected = np.tanh(hidden @ np.asarray(gate.down.kernel[...])) * x
    np.testing.assert_allclose(gate(jnp.asarray(x)), expected, atol=1e-6)
    assert gate.up.bias is None and gate.down.bias is None


def test_remat_changes_neither_features_nor_gradients():
    def value(params, forward):
        features = forward.bind(params)(IMAGE, WORDS, VALID)
        return sum(jnp.sum(jnp.sin(x)) for x in features)

    results = []
    for remat in (False, True):
        forward, params = _tower(remat=remat)
        gradient = jax.value_and_grad(functools.partial(value, forward=forward))
        results.append(jax.jit(gradient)(params))
    (plain, gradient), (again, other) = results
    np.testing.assert_allclose(plain, again, rtol=1e-5)
    # Softmax does not see what all keys share, nor a norm what all pixels do.
    blind = ("key.bias", "query.bias", "out.bias", "value.bias")
    for path, leaf in gradient.items():
        assert np.isfinite(leaf).all()
        assert np.abs(leaf).max() > 1e-6 or path.endswith(blind), path
        np.testing.assert_allclose(leaf, other[path], rtol=1e-3, atol=1e-3, err_msg=path)


def test_bf16_is_close_to_f32():
    ours, expected = _run(*_tower(dtype="bfloat16")), _run(*_tower())
    for a, b in zip(ours, expected, strict=True):
        assert a.dtype == jnp.bfloat16
        assert np.linalg.norm(np.asarray(a, np.float32) - b) / np.linalg.norm(b) < 0.03


def test_fusion_and_gates_have_the_published_sizes():
    """Besides Swin-B's: 4 C^2 + 2 * 768 C and biases a fusion, 2 C^2 a gate (LAVT)."""
    squares = sum((128 << s) ** 2 for s in range(4))
    fusions = 4 * squares + 2 * 768 * 128 * 15 + 6 * 128 * 15
    gates = 2 * (squares - 1024**2)
    for gate, extra in (("live", fusions + gates), ("closed", fusions)):
        config = swin_config({"gate": gate, "depths": (1, 1, 1, 1)}, LanguageSwinConfig)
        tower = Forward(lambda rngs, config=config: LanguageSwin(config, rngs=rngs)).shapes
        count = sum(int(np.prod(leaf.shape)) for leaf in tower.values())
        swin = sum(int(np.prod(leaf.shape)) for p, leaf in tower.items() if p.startswith("swin."))
        assert count - swin == extra


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"gate": "close"}, "did you mean 'closed'"),
        ({"word_width": 0}, "word_width=0"),
        ({"gates": "live"}, "did you mean 'gate'"),
        ({"window": 1}, "window at least 2"),
        ({"preset": "C"}, "unknown preset"),
    ],
)
def test_mistakes_in_the_config_are_told(fields, message):
    with pytest.raises(ValueError, match=message):
        swin_config(fields, LanguageSwinConfig)
