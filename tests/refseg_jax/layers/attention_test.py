"""Every attention kernel against the formula in float64."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from refseg_jax.layers import attention as attention_module
from refseg_jax.layers.attention import attention
from refseg_jax.layers.chunked_attention import CHUNK_SCORES, chunked_attention
from refseg_jax.layers.target import PORTABLE, Target, compiling_for


def _arrays(batch=3, queries=5, keys=4, heads=2, width=6, dtype=np.float32):
    rng = np.random.default_rng(0)
    draw = lambda length: rng.standard_normal((batch, length, heads, width)).astype(dtype)  # noqa: E731
    return draw(queries), draw(keys), draw(keys)


def _reference(query, key, value, mask=None, bias=None):
    query, key, value = (np.asarray(x, np.float64) for x in (query, key, value))
    scores = np.einsum("bthd,bshd->bhts", query, key) / np.sqrt(query.shape[-1])
    if bias is not None:
        scores = scores + bias
    if mask is not None:
        scores = np.where(mask, scores, -1e30)
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    weights /= weights.sum(-1, keepdims=True)
    return np.einsum("bhts,bshd->bthd", weights, value)


@pytest.mark.parametrize("target", [Target("cpu"), PORTABLE])
def test_plain(target):
    arrays = _arrays()
    with compiling_for(target):
        result = attention(*arrays)
    np.testing.assert_allclose(result, _reference(*arrays), atol=1e-6)


@pytest.mark.parametrize("target", [Target("cpu"), PORTABLE])
def test_invalid_keys_are_not_seen(target):
    arrays = _arrays()
    valid = np.array([[1, 1, 0, 0], [1, 1, 1, 1], [0, 0, 0, 0]], bool)
    with compiling_for(target):
        result = attention(*arrays, key_valid=jnp.asarray(valid))
    np.testing.assert_allclose(result, _reference(*arrays, valid[:, None, None]), atol=1e-6)
    np.testing.assert_allclose(result[2], np.broadcast_to(arrays[2][2].mean(0), (5, 2, 6)), 1e-5)


@pytest.mark.parametrize("target", [Target("cpu"), PORTABLE])
def test_causal(target):
    arrays = _arrays(queries=5, keys=5)
    with compiling_for(target):
        result = attention(*arrays, causal=True)
    np.testing.assert_allclose(
        result, _reference(*arrays, np.tril(np.ones((5, 5), bool))), atol=1e-6
    )


@pytest.mark.parametrize("target", [Target("cpu"), PORTABLE])
@pytest.mark.parametrize("keys", [4, attention_module.FLASH_MIN_KEYS])
def test_a_query_sees_the_valid_keys_that_are_visible_to_it(target, keys):
    arrays = _arrays(keys=keys)
    rng = np.random.default_rng(1)
    visible, valid = rng.random((3, 5, keys)) < 0.5, rng.random((3, keys)) < 0.8
    visible[0, 1] = False
    with compiling_for(target):
        alone = attention(*arrays, visible=jnp.asarray(visible))
        both = attention(*arrays, visible=jnp.asarray(visible), key_valid=jnp.asarray(valid))
    np.testing.assert_allclose(alone, _reference(*arrays, visible[:, None]), atol=1e-6)
    expected = _reference(*arrays, visible[:, None] & valid[:, None, None])
    np.testing.assert_allclose(both, expected, atol=1e-6)
    np.testing.assert_allclose(alone[0, 1], arrays[2][0].mean(0), atol=1e-6)


@pytest.mark.parametrize("target", [Target("cpu"), PORTABLE])
@pytest.mark.parametrize("keys", [4, attention_module.FLASH_MIN_KEYS])
def test_a_row_sees_what_is_visible_at_its_place_in_the_group(target, keys):
    arrays = _arrays(batch=6, keys=keys)
    rng = np.random.default_rng(1)
    visible, valid = rng.random((3, 5, keys)) < 0.5, rng.random((6, keys)) < 0.8
    bias = rng.standard_normal((2, 5, keys)).astype(np.float32)
    with compiling_for(target):
        biased = attention(*arrays, bias=jnp.asarray(bias))
        shown = attention(*arrays, bias=jnp.asarray(bias), visible=jnp.asarray(visible))
        one = attention(*arrays, visible=jnp.asarray(visible[:1]), key_valid=jnp.asarray(valid))
        masked = attention(
            *arrays,
            bias=jnp.asarray(bias),
            visible=jnp.asarray(visible),
            key_valid=jnp.asarray(valid),
        )
    tiled = np.concatenate([visible, visible])[:, None]
    valid = valid[:, None, None]
    np.testing.assert_allclose(biased, _reference(*arrays, bias=bias), atol=1e-6)
    np.testing.assert_allclose(shown, _reference(*arrays, tiled, bias), atol=1e-6)
    np.testing.assert_allclose(one, _reference(*arrays, visible[0] & valid), atol=1e-6)
    np.testing.assert_allclose(masked, _reference(*arrays, tiled & valid, bias), atol=1e-6)


@pytest.mark.parametrize("groups", [None, 1, 3, 6])
@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize("chunk", [1, 2 * 128 * 130, CHUNK_SCORES])
def test_chunked_attention_and_its_gradient(monkeypatch, chunk, biased, groups):
    monkeypatch.setattr("refseg_jax.layers.chunked_attention.CHUNK_SCORES", chunk)
    arrays = tuple(jnp.asarray(x) for x in _arrays(batch=6, queries=128, keys=130))
    rng = np.random.default_rng(1)
    weight = rng.standard_normal((6, 128, 2, 6)).astype(np.float32)
    bias = jnp.asarray(rng.standard_normal((2, 128, 130)), jnp.float32) if biased else None
    mask = None
    if groups is not None:
        mask = rng.random((groups, 128, 130)) < 0.5
        mask[0, 3] = False

    def ours(inputs, bias):
        return chunked_attention(*inputs, mask if mask is None else jnp.asarray(mask), bias)

    def plain(inputs, bias):
        return attention_module._batched(*inputs, mask, bias)

    tiled = None if mask is None else np.tile(mask, (6 // len(mask), 1, 1))[:, None]
    expected = _reference(*arrays, tiled, bias)
    np.testing.assert_allclose(ours(arrays, bias), expected, atol=1e-6)
    found, wanted = (
        jax.tree.leaves(jax.grad(lambda *a: jnp.sum(weight * f(*a)), (0, 1))(arrays, bias))  # noqa: B023
        for f in (ours, plain)
    )
    assert len(found) == 3 + biased
    for a, b in zip(found, wanted, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)


@pytest.mark.parametrize("queries", [128, 140])
@pytest.mark.parametrize("biased", [False, True])
def test_no_piece_of_chunked_attention_copies_more_than_itself(monkeypatch, biased, queries):
    """A copy of the whole in each piece would make the backward pass quadratic in the batch."""
    monkeypatch.setattr("refseg_jax.layers.chunked_attention.CHUNK_SCORES", 2 * queries * 128)
    arrays = tuple(jnp.asarray(x) for x in _arrays(batch=6, queries=queries, keys=128))
    bias = jnp.zeros((2, queries, 128)) if biased else None

    def loss(inputs, bias):
        return jnp.sum(jnp.sin(chunked_attention(*(2 * x for x in inputs), None, bias)))

    text = jax.jit(jax.grad(loss, (0, 1))).lower(arrays, bias).compile().as_text()
    assert text is not None
    bodies = re.findall(r"body=%([\w.-]+)", text)
    assert len(bodies) == 2
    for body in bodies:
        (inside,) = re.findall(rf"^%{re.escape(body)} .*?^}}", text, re.MULTILINE | re.DOTALL)
        copied = re.findall(r"= \w+\[([\d,]*)\]\S* copy\(", inside)
        assert all(shape.count(",") < 3 for shape in copied), copied


def test_long_rows_of_keys_take_the_chunked_kernel_and_exports_do_not():
    arrays = _arrays(queries=8, keys=attention_module.FLASH_MIN_KEYS)
    assert "custom_vjp_call" in str(jax.make_jaxpr(attention)(*arrays))
    with compiling_for(PORTABLE):
        assert "custom_vjp_call" not in str(jax.make_jaxpr(attention)(*arrays))


def test_the_gpu_rule_takes_cudnn_only_where_it_can(monkeypatch):
    chosen = []
    monkeypatch.setattr(
        jax.nn, "dot_product_attention", lambda q, *_, **k: chosen.append(k["implementation"]) or q
    )
    long = _arrays(queries=128, keys=128, width=8, dtype=jnp.bfloat16)
    attention(*long)
    with compiling_for(PORTABLE):
        attention(*long)
    assert chosen == []
    with compiling_for(Target("gpu")):
        attention(*long)
        assert chosen == ["cudnn"]
        attention(*(x.astype(np.float32) for x in long))
        attention(*long, key_valid=jnp.ones((3, 128), bool))
        attention(*long, bias=jnp.zeros((2, 128, 128)))
        attention(*_arrays(keys=20, width=8, dtype=jnp.bfloat16))
        attention(*_arrays(queries=128, keys=128, width=6, dtype=jnp.bfloat16))
    assert chosen == ["cudnn"]


def test_bf16_accumulates_in_f32():
    arrays = tuple(x.astype(jnp.bfloat16) for x in _arrays(queries=128, keys=256))
    result = np.asarray(attention(*arrays), np.float32)
    expected = _reference(*(np.asarray(x, np.float32) for x in arrays))
    np.testing.assert_allclose(result, expected, atol=0.01)
