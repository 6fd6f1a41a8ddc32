"""The kernel for TPUs, run by Pallas' interpreter, beside plain attention."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.pallas import tpu as pltpu
from jax.sharding import Mesh

from refseg_jax.layers import flash_attention as module
from refseg_jax.layers.attention import attention
from refseg_jax.layers.flash_plan import LIMIT, plan
from refseg_jax.layers.target import PORTABLE, Cut, Target, compiling_for
from refseg_jax.sharding import AXES, tracing_over
from tests.devices import run_on_devices

TPU = Target("tpu", "TPU v5 lite")


def _attended(target, arrays, bias, masks):
    """The result and the gradients of query, key, value and, if there is one, the bias."""

    def loss(query, key, value, bias):
        out = attention(query, key, value, bias=bias, **masks)
        return jnp.sum(out.astype(jnp.float32) * jnp.cos(out.astype(jnp.float32))), out

    wanted = (0, 1, 2) if bias is None else (0, 1, 2, 3)
    with compiling_for(target), pltpu.force_tpu_interpret_mode():
        both = jax.jit(jax.value_and_grad(loss, wanted, has_aux=True))
        (_, out), gradients = both(*arrays, bias)
    return out, *gradients


def _drawn(rows, queries, keys, heads, width, dtype=jnp.float32):
    rng = np.random.default_rng(0)
    return [
        jnp.asarray(rng.normal(size=(rows, n, heads, width)), dtype) for n in (queries, keys, keys)
    ]


def _masks(*, key_valid=None, visible=None):
    """Random masks of two shapes, the first row of each false."""
    rng = np.random.default_rng(1)
    found = {}
    for name, shape in (("key_valid", key_valid), ("visible", visible)):
        if shape is not None:
            mask = rng.random(shape) < 0.7
            mask[(0,) * (len(shape) - 1)] = False
            found[name] = jnp.asarray(mask)
    return found


@pytest.mark.parametrize(
    ("sizes", "biased", "masks", "tolerance"),
    [
        # Rows, queries, keys, heads, channels of a head: two heads a block, two rows a block.
        ((2, 20, 33, 2, 64), False, {"key_valid": (2, 33)}, 1e-5),
        # Swin's: a bias, and a mask for each window of an image.
        ((6, 9, 9, 4, 32), True, {"visible": (3, 9, 9)}, 1e-5),
        # Several blocks of queries, and a mask for each row.
        ((2, 600, 40, 2, 16), False, {"key_valid": (2, 40), "visible": (2, 600, 40)}, 1e-5),
        ((2, 16, 128, 1, 128, jnp.bfloat16), True, {"visible": (1, 16, 128)}, 2**-6),
    ],
)
def test_it_is_plain_attention_forward_and_backward(sizes, biased, masks, tolerance):
    arrays, masks = _drawn(*sizes), _masks(**masks)
    shape = (sizes[3], sizes[1], sizes[2])
    bias = jnp.asarray(np.random.default_rng(2).normal(size=shape), jnp.float32) if biased else None
    ours = _attended(TPU, arrays, bias, masks)
    plain = _attended(PORTABLE, arrays, bias, masks)
    for one, other in zip(ours, plain, strict=True):
        assert one.dtype == other.dtype
        one, other = (np.asarray(x, np.float32) for x in (one, other))
        np.testing.assert_allclose(one, other, atol=tolerance * np.abs(other).max())


def _planned(
    rows, queries, keys, heads, width, *, dtype=jnp.bfloat16, groups=0, biased=False, kind=""
):
    shapes = [(rows, queries, heads, width), (rows, keys, heads, width)]
    query, key = (jax.ShapeDtypeStruct(shape, dtype) for shape in shapes)
    visible = jax.ShapeDtypeStruct((groups, queries, keys), bool) if groups else None
    bias = jax.ShapeDtypeStruct((heads, queries, keys), jnp.float32) if biased else None
    with compiling_for(Target("tpu", kind)):
        return plan(query, key, visible, bias)


def test_blocks_fill_registers_and_fit_on_the_chip():
    vit = _planned(8, 741, 741, 12, 64)
    assert vit and (vit.heads, vit.lanes, vit.queries, vit.keys, vit.rows) == (2, 128, 384, 768, 1)
    swin = _planned(800, 144, 144, 4, 32, groups=100, biased=True)
    assert swin and (swin.heads, swin.queries, swin.keys) == (4, 144, 256)
    # Rows of a block belong to one image, and each has its mask.
    assert swin.rows == 5 and swin.groups % swin.rows == 0
    narrow = _planned(2, 10, 10, 3, 24)
    assert narrow and narrow.heads == 3
    wide = _planned(8, 100, 3600, 8, 32, groups=8)
    assert wide and wide.memory < LIMIT
    # A v4 has a quarter of the memory.
    assert _planned(8, 100, 3600, 8, 32, groups=8, kind="TPU v4") is None


def test_what_does_not_fit_has_plain_attention():
    assert _planned(1, 100, 40_000, 8, 32) is None
    # The gradient of a bias needs all queries in one block.
    assert _planned(1, 600, 40, 8, 32, biased=True) is None

    def kernels(x, **fields):
        with compiling_for(TPU):
            return str(jax.make_jaxpr(lambda x: attention(x, x, x, **fields))(x)).count("pallas")

    x = jnp.ones((1, 600, 2, 8))
    assert kernels(x)
    assert not kernels(x, causal=True)
    assert not kernels(x, bias=jnp.zeros((2, 600, 600)))


def test_each_device_runs_it_on_its_rows_and_heads():
    """As far as they are divisible; otherwise, all devices run it on all of them."""
    mesh = jax.sharding.AbstractMesh((2, 2, 3), AXES)
    cut = Cut(mesh, ("data", "fsdp"), "tensor")
    assert module._axes(cut, 8, 6, 1) == (("data", "fsdp"), "tensor")
    assert module._axes(cut, 6, 4, 1) == (None, None)
    # Each device has whole images, whose windows have 3 masks.
    assert module._axes(cut, 12, 6, 3) == (("data", "fsdp"), "tensor")
    assert module._axes(cut, 8, 6, 4) == (None, "tensor")


def test_each_devices_share_has_to_fit():
    """12 heads of 32 channels are 4 a block; of 6 on each of two devices, all are."""
    shape = jax.ShapeDtypeStruct((4, 100, 12, 32), jnp.bfloat16)
    keys = jax.ShapeDtypeStruct((4, 3600, 12, 32), jnp.bfloat16)
    bias = jax.ShapeDtypeStruct((12, 100, 3600), jnp.float32)
    for tensor, whether in ((1, True), (2, False), (3, True)):
        mesh = jax.sharding.AbstractMesh((1, 1, tensor), AXES)
        with compiling_for(Target("tpu", "TPU v5 lite", Cut(mesh, ("data", "fsdp"), "tensor"))):
            assert module.takes(shape, keys, None, bias) == whether


#: Run in a process with eight devices, where plain attention stands in for the kernel.
ON_EIGHT = """
import jax, jax.numpy as jnp, numpy as np
from refseg_jax.layers import flash_attention as module
from refseg_jax.layers.attention import attention
from refseg_jax.layers.target import PORTABLE, Target, compiling_for, current
from refseg_jax.sharding import AXES, tracing_over
from tests.refseg_jax.layers.flash_attention_test import TPU, _attended, _drawn, _masks

def plain(query, key, value, extra):
    seen.append((query.shape[0], query.shape[2]))
    with compiling_for(PORTABLE):
        return attention(query, key, value, **extra)

seen = []
module._local = plain
mesh = jax.make_mesh((2, 2, 2), AXES, (jax.sharding.AxisType.Auto,) * 3)
bias = jnp.asarray(np.random.default_rng(2).normal(size=(4, 5, 6)), jnp.float32)
# 6 rows are not cut into four, nor 8 into four images of 4 windows.
for rows, groups in ((8, 2), (8, 8), (8, 4), (6, 2), (6, 6)):
    arrays = _drawn(rows, 5, 6, 4, 8)
    masks = _masks(key_valid=(rows, 6), visible=(groups, 5, 6))
    with compiling_for(TPU), tracing_over(mesh):
        cut = current()
    found = _attended(cut, arrays, bias, masks)
    for one, other in zip(found, _attended(PORTABLE, arrays, bias, masks), strict=True):
        np.testing.assert_allclose(one, other, atol=1e-5)
assert set(seen) == {(2, 2), (8, 2), (6, 2)}, seen
"""


def test_the_gradients_of_all_devices_add_up():
    run_on_devices(8, ON_EIGHT)


def test_on_one_device_nothing_is_cut():
    mesh = Mesh(np.array(jax.devices()[:1]).reshape(1, 1, 1), AXES)
    x = jnp.ones((1, 130, 2, 8))
    with compiling_for(TPU), tracing_over(mesh):
        assert "shard_map" not in str(jax.make_jaxpr(lambda x: attention(x, x, x))(x))
