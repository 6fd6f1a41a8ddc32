"""One context chooses the kernels of all layers, whatever has been traced before."""

import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from refseg_jax.layers.attention import FLASH_MIN_KEYS, attention
from refseg_jax.layers.convolution import Conv3x3
from refseg_jax.layers.deformable_attention import CHUNK_NUMBERS, weighted_rows
from refseg_jax.layers.linear import contract
from refseg_jax.layers.target import PORTABLE, Target, compiling_for, current
from tests.layout_test import MODULES

CPU, TPU = Target("cpu"), Target("tpu", "TPU v5 lite")


def _linear(x):
    return contract(x, x, jnp.bfloat16)


def _convolved(x):
    graph, kernel = nnx.split(Conv3x3(4, 4, dtype=jnp.float32, rngs=nnx.Rngs(0)))
    maps = jnp.broadcast_to(x[0, 0], (1, 8, 8, 4))
    return jax.grad(lambda k: nnx.merge(graph, k)(maps).sum())(kernel)


def _attended(x):
    long = jnp.broadcast_to(x[0, :4], (1, FLASH_MIN_KEYS, 2, 4))
    return attention(long, long, long)


def _sampled(x):
    pieces = 4
    table = jnp.broadcast_to(x[0, 0], (1, 8, CHUNK_NUMBERS["cpu"] // 4096))
    weights = jnp.ones((1, 4096 * pieces, 1))
    entries = jnp.zeros(weights.shape, jnp.int32)
    return jax.grad(lambda t: weighted_rows(t, entries, weights).sum())(table)


#: Function of an f32 `[8, 8]` -> a word of its trace on a CPU, which no other target has.
KERNELS = {
    _linear: "preferred_element_type=float32",
    _convolved: "dot_general",
    _attended: "name=chunked_attention",
    _sampled: "scan",
}


@pytest.mark.parametrize("function", KERNELS)
def test_the_target_chooses_the_kernel(function):
    x, word = jnp.ones((8, 8)), KERNELS[function]
    traced = {}
    # Twice, and the first one again: what is cached for one target is of no use for the other.
    for target in (CPU, TPU, CPU):
        with compiling_for(target):
            text = str(jax.jit(function).trace(x).jaxpr)
        assert traced.setdefault(target, text) == text
        assert (word in text) == (target is CPU)


def test_a_jitted_function_is_traced_once_for_each_target():
    seen = []

    @jax.jit
    def run(x):
        seen.append(current())
        return _linear(x)

    x = jnp.full((8, 8), 1.0)
    plain = run(x)
    seen.clear()
    for target in (TPU, PORTABLE, TPU, PORTABLE):
        with compiling_for(target):
            np.testing.assert_array_equal(run(x), plain)
    run(x)
    assert seen == [TPU, PORTABLE]


def test_a_target_ends_with_its_block_even_by_an_error():
    before = current()
    with pytest.raises(KeyError), compiling_for(TPU), compiling_for(PORTABLE):
        assert current() == PORTABLE
        raise KeyError
    assert current() == before


def test_without_a_choice_it_is_the_running_backend():
    here = jax.devices()[0]
    assert current() == Target(here.platform, here.device_kind)


def test_platforms_of_gpus_are_one():
    card = types.SimpleNamespace(platform="cuda", device_kind="NVIDIA H200")
    assert Target.of(card) == Target("gpu", "NVIDIA H200")
    with pytest.raises(ValueError, match=r"platform 'vulkan' is none of cpu, gpu, tpu, any"):
        Target("vulkan")


def test_what_is_portable_runs_on_all_platforms():
    x = jnp.ones((8, 8))
    with compiling_for(PORTABLE):
        for function in KERNELS:
            assert "custom_vjp_call" not in str(jax.make_jaxpr(function)(x)) or function is _sampled
        # On a CPU, a product of bf16 is slow unless it is asked for in f32.
        assert "preferred_element_type=float32" in str(jax.make_jaxpr(_linear)(x))


def test_no_other_module_asks_for_the_running_backend():
    asking = [name for name, path in MODULES.items() if "default_backend" in path.read_text()]
    assert asking == []
