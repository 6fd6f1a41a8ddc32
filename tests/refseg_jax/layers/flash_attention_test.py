"""The kernel for TPUs, run by Pallas' interpreter, beside plain attention."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.pallas import tpu as pltpu
from jax.sharding import Mesh

from refseg_jax.layers import flash_attention as module
from refseg_jax.layers.attention import FLASH_MIN_KEYS, attention
from refseg_jax.layers.target import PORTABLE, Cut, Target, compiling_for
from refseg_jax.sharding import AXES, tracing_over

TPU = Target("tpu", "TPU v5 lite")


def _attended(target, arrays, valid):
    def loss(query, key, value):
        out = attention(query, key, value, key_valid=valid)
        return jnp.sum(out.astype(jnp.float32) * jnp.cos(out.astype(jnp.float32))), out

    with compiling_for(target), pltpu.force_tpu_interpret_mode():
        both = jax.jit(jax.value_and_grad(loss, (0, 1, 2), has_aux=True))
        (_, out), gradients = both(*arrays)
    return out, *gradients


@pytest.mark.parametrize(
    ("queries", "keys", "dtype", "tolerance"),
    [
        (5, 130, jnp.float32, 1e-5),
        # More queries than a block, and several blocks of keys.
        (150, 40, jnp.float32, 1e-5),
        (5, 130, jnp.bfloat16, 2**-7),
    ],
)
def test_it_is_plain_attention_forward_and_backward(monkeypatch, queries, keys, dtype, tolerance):
    monkeypatch.setattr("refseg_jax.layers.attention.FLASH_MIN_KEYS", 1)
    rng = np.random.default_rng(0)
    sizes = (queries, keys, keys)
    arrays = [jnp.asarray(rng.normal(size=(2, n, 2, 16)), dtype) for n in sizes]
    valid = rng.random((2, keys)) < 0.7
    # A query without any key.
    valid[0] = False
    ours = _attended(TPU, arrays, jnp.asarray(valid))
    plain = _attended(PORTABLE, arrays, jnp.asarray(valid))
    for one, other in zip(ours, plain, strict=True):
        assert one.dtype == other.dtype == dtype
        one, other = (np.asarray(x, np.float32) for x in (one, other))
        np.testing.assert_allclose(one, other, atol=tolerance * np.abs(other).max())
    values = np.asarray(arrays[2], np.float32)
    mean = np.broadcast_to(values[0].mean(0), ours[0][0].shape)
    np.testing.assert_allclose(np.asarray(ours[0][0], np.float32), mean, atol=max(tolerance, 1e-5))


def test_long_rows_of_keys_come_in_blocks(monkeypatch):
    monkeypatch.setattr(module, "ONE_BLOCK", 128)
    monkeypatch.setattr(module, "BLOCKS", (256, 128))
    rng = np.random.default_rng(1)
    arrays = [jnp.asarray(rng.normal(size=(1, n, 1, 8)), jnp.float32) for n in (3, 300, 300)]
    assert module._blocks(300) == (384, 128)
    for one, other in zip(
        _attended(TPU, arrays, None), _attended(PORTABLE, arrays, None), strict=True
    ):
        np.testing.assert_allclose(one, other, atol=1e-5)


@pytest.mark.parametrize(
    ("length", "blocks"),
    [
        (1, (128, 128)),
        (741, (768, 768)),
        (1024, (1024, 1024)),
        (1025, (1152, 384)),
        (2048, (2048, 512)),
        # The cells of 480 pixels at stride 8.
        (3600, (3840, 384)),
    ],
)
def test_keys_are_padded_to_whole_blocks(length, blocks):
    assert module._blocks(length) == blocks


@pytest.mark.parametrize(
    ("length", "blocks"),
    [(1, (16, 16)), (17, (32, 32)), (128, (128, 128)), (129, (256, 256)), (741, (768, 384))],
)
def test_queries_are_padded_to_whole_blocks(length, blocks):
    assert module._query_blocks(length) == blocks


def test_the_rule():
    """A bias, a mask of its own for each query and short rows have plain attention."""
    long, short = (jnp.ones((1, n, 2, 8)) for n in (FLASH_MIN_KEYS, FLASH_MIN_KEYS - 1))
    square = (FLASH_MIN_KEYS, FLASH_MIN_KEYS)

    def kernels(x, **fields):
        with compiling_for(TPU):
            return str(jax.make_jaxpr(lambda x: attention(x, x, x, **fields))(x)).count("pallas")

    assert kernels(long)
    assert kernels(long, key_valid=jnp.ones((1, FLASH_MIN_KEYS), bool))
    assert not kernels(short)
    assert not kernels(long, causal=True)
    assert not kernels(long, bias=jnp.zeros((2, *square)))
    assert not kernels(long, visible=jnp.ones((1, *square), bool))


def test_each_device_runs_it_on_its_rows_and_heads():
    """As far as they are divisible; otherwise, all devices run it on all of them."""
    mesh = jax.sharding.AbstractMesh((2, 2, 3), AXES)
    cut = Cut(mesh, ("data", "fsdp"), "tensor")
    assert module._axes(cut, 8, 6) == (("data", "fsdp"), "tensor")
    assert module._axes(cut, 6, 4) == (None, None)


def test_on_one_device_nothing_is_cut():
    mesh = Mesh(np.array(jax.devices()[:1]).reshape(1, 1, 1), AXES)
    x = jnp.ones((1, FLASH_MIN_KEYS, 2, 8))
    with compiling_for(TPU), tracing_over(mesh):
        assert "shard_map" not in str(jax.make_jaxpr(lambda x: attention(x, x, x))(x))
