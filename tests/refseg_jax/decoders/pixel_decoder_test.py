"""The pixel decoder's shapes, types and start; tests/parity holds it against transformers."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.extend.core import jaxprs_in_params

from refseg_jax.decoders.pixel_decoder import PixelDecoder, PixelDecoderConfig
from refseg_jax.layers.target import Target, compiling_for
from refseg_jax.models.forward import Forward

SMALL = PixelDecoderConfig(width=64, mask_width=12, layers=2, heads=2, points=2, hidden=24)
WIDTHS = (6, 8, 10)
SIZES = ((13, 16), (7, 8), (4, 4))


@functools.cache
def _decoder(config: PixelDecoderConfig = SMALL):
    forward: Forward[PixelDecoder] = Forward(lambda rngs: PixelDecoder(config, WIDTHS, rngs=rngs))
    return forward, jax.jit(lambda params, maps: forward.bind(params)(maps))


@functools.cache
def _params() -> dict[str, jax.Array]:
    return jax.jit(_decoder()[0].init)(jax.random.key(0))


def _maps(dtype=jnp.float32, rows=2):
    rng = np.random.default_rng(0)
    draw = lambda size, width: rng.standard_normal((rows, *size, width)).astype(np.float32)  # noqa: E731
    pairs = zip(SIZES, WIDTHS, strict=True)
    return [jnp.asarray(draw(size, width)).astype(dtype) for size, width in pairs]


def test_levels_come_the_coarsest_first_and_masks_at_the_first_maps_size():
    features = _decoder()[1](_params(), _maps())
    assert features.masks.shape == (2, 13, 16, 12)
    assert [x.shape for x in features.levels] == [(2, 4, 4, 64), (2, 7, 8, 64)]


def test_it_computes_in_f32_whatever_the_towers_do():
    half = _maps(jnp.bfloat16)
    run = _decoder()[1]
    ours = run(_params(), half)
    exact = run(_params(), [x.astype(jnp.float32) for x in half])
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(exact), strict=True):
        assert a.dtype == jnp.float32
        np.testing.assert_allclose(a, b, atol=1e-5)


def test_no_product_is_left_to_a_chips_own_precision():
    """TPUs multiply f32 in bf16 unless told otherwise."""
    products, seen = ("dot_general", "conv_general_dilated"), []

    def visit(jaxpr):
        for equation in jaxpr.eqns:
            if equation.primitive.name in products:
                seen.append(equation.params["precision"])
            for inner in jaxprs_in_params(equation.params):
                visit(inner)

    forward, _ = _decoder()

    def value(params, maps):
        return sum(jnp.sum(x) for x in jax.tree.leaves(forward.bind(params)(maps)))

    with compiling_for(Target("tpu")):
        visit(jax.make_jaxpr(jax.grad(value))(_params(), _maps()).jaxpr)
    assert len(seen) > 40
    high, highest = jax.lax.Precision.HIGH, jax.lax.Precision.HIGHEST
    assert set(seen) == {(high, high), (highest, highest)}


def test_every_level_sees_every_other():
    """Its own places in the other levels, with a fresh layer's offsets."""
    run = _decoder()[1]
    plain = run(_params(), _maps())
    for number in (1, 2):
        maps = _maps()
        maps[number] = maps[number].at[:, 0, 0].add(3.0)
        other = run(_params(), maps)
        for a, b in zip(plain.levels, other.levels, strict=True):
            assert np.abs(a - b).max() > 1e-3
    # The finest is no level: only the masks see it.
    maps = _maps()
    other = run(_params(), [maps[0] + 1.0, *maps[1:]])
    for a, b in zip(plain.levels, other.levels, strict=True):
        np.testing.assert_array_equal(a, b)


def test_rows_do_not_see_each_other():
    run = _decoder()[1]
    both = run(_params(), _maps())
    first = run(_params(), [x[:1] for x in _maps()])
    for a, b in zip(jax.tree.leaves(both), jax.tree.leaves(first), strict=True):
        np.testing.assert_allclose(a[:1], b, atol=1e-5)


def test_kernels_start_as_in_mask2former():
    params = _params()
    bounds = {
        "projections.0.linear.kernel": math.sqrt(6 / (10 + 64)),
        "layers.1.mlp.up.kernel": math.sqrt(6 / (64 + 24)),
        "lateral.linear.kernel": math.sqrt(3 / 6),
        "convolution.kernel": math.sqrt(3 / (9 * 64)),
        "mask_projection.kernel": math.sqrt(3 / 64),
    }
    for path, bound in bounds.items():
        most = float(jnp.abs(params[path]).max())
        assert 0.9 * bound < most <= bound, path
    assert 0.5 < float(jnp.std(params["level_embedding"])) < 1.5
    assert "lateral.linear.bias" not in params and "convolution.bias" not in params


def test_sizes_are_those_of_mask2former_behind_swin_b():
    """5,544,384 parameters: those of transformers' module of the same sizes."""
    forward: Forward[PixelDecoder] = Forward(
        lambda rngs: PixelDecoder(PixelDecoderConfig(), (128, 256, 512, 1024), rngs=rngs)
    )
    assert sum(math.prod(leaf.shape) for leaf in forward.shapes.values()) == 5_544_384


def test_remat_changes_neither_values_nor_gradients():
    def value(params, config):
        features = _decoder(config)[0].bind(params)(_maps())
        return sum(jnp.sum(jnp.sin(x)) for x in jax.tree.leaves(features))

    # Fresh offsets do not look at the query, hence not at levels and places.
    rng = np.random.default_rng(1)
    noisy = {p: v + 0.1 * rng.standard_normal(v.shape, np.float32) for p, v in _params().items()}
    results = []
    for remat in (False, True):
        config = PixelDecoderConfig(**{**vars(SMALL), "layers": 1, "remat": remat})
        params = {path: noisy[path] for path in _decoder(config)[0].shapes}
        results.append(jax.jit(jax.value_and_grad(functools.partial(value, config=config)))(params))
    (plain, gradient), (again, other) = results
    np.testing.assert_allclose(plain, again, rtol=1e-5)
    for path, leaf in gradient.items():
        assert np.abs(leaf).max() > 1e-6, path
        np.testing.assert_allclose(leaf, other[path], rtol=1e-3, atol=1e-3, err_msg=path)


def test_it_is_exported_for_any_number_of_rows():
    forward, _ = _decoder()
    rows = jax.export.symbolic_shape("rows")
    shapes = [jax.ShapeDtypeStruct((*rows, *x.shape[1:]), x.dtype) for x in _maps()]
    call = jax.jit(lambda maps: tuple(jax.tree.leaves(forward.bind(_params())(maps))))
    exported = jax.export.export(call)(shapes)
    loaded = jax.export.deserialize(exported.serialize())
    expected = _decoder()[1](_params(), _maps(rows=3))
    for a, b in zip(loaded.call(_maps(rows=3)), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"heads": 3}, "heads=3 does not divide width=256"),
        ({"layers": 0}, "layers=0 is less than 1"),
        ({"width": 6, "heads": 2}, "width=6 is not divisible by 4"),
    ],
)
def test_mistakes_in_the_config_are_told(fields, message):
    with pytest.raises(ValueError, match=message):
        PixelDecoderConfig(**fields)


def test_a_single_map_is_refused():
    with pytest.raises(ValueError, match="at least two strides"):
        Forward(lambda rngs: PixelDecoder(SMALL, (8,), rngs=rngs))
