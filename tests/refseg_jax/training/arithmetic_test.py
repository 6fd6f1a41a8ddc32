"""Arithmetic that is counted in traced functions, against XLA's count and by hand."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from refseg_jax.training.arithmetic import count_flops
from tests.refseg_jax.training.normed_model import normed_batch, normed_trainer

WIDTH = 32
PRODUCT = 2 * 8 * WIDTH * WIDTH


def _shapes(*shapes: tuple[int, ...]) -> list[jax.ShapeDtypeStruct]:
    return [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]


def _by_xla(function: Any, *shapes: tuple[int, ...]) -> float:
    """What XLA counts before it changes anything."""
    cost: Any = jax.jit(function).lower(*_shapes(*shapes)).cost_analysis()
    return cost["flops"]


@pytest.mark.parametrize(
    "options",
    [
        {"padding": "SAME"},
        {"padding": "VALID", "window_strides": (2, 3)},
        {"padding": ((2, 0), (1, 3)), "rhs_dilation": (2, 1)},
        {"padding": ((1, 2), (2, 2)), "lhs_dilation": (2, 3)},
        {"padding": "SAME", "feature_group_count": 2},
    ],
)
@pytest.mark.parametrize("gradient", [None, 0, 1])
def test_a_convolution_and_its_gradients_are_counted_as_xla_counts_them(
    options: dict[str, Any], gradient: int | None
) -> None:
    """The gradients have holes in their input, and as many taps as the result has cells."""
    groups = options.get("feature_group_count", 1)
    convolve = functools.partial(
        jax.lax.conv_general_dilated,
        **{"window_strides": (1, 1), "dimension_numbers": ("NHWC", "HWIO", "NHWC"), **options},
    )
    shapes = (2, 9, 8, 4), (3, 2, 4 // groups, 6)
    out = jax.eval_shape(convolve, *_shapes(*shapes))

    def function(*args: jax.Array) -> jax.Array:
        if gradient is None:
            return convolve(*args)
        return jax.vjp(convolve, *args)[1](jnp.ones(out.shape))[gradient]

    assert count_flops(function, *_shapes(*shapes)) == _by_xla(function, *shapes) > 0


def test_a_product_is_counted_as_xla_counts_it() -> None:
    def multiply(a: jax.Array, b: jax.Array) -> jax.Array:
        return jax.lax.dot_general(a, b, (((1,), (2,)), ((0,), (0,))))

    shapes = (3, 8, 5), (3, 7, 8)
    assert count_flops(multiply, *_shapes(*shapes)) == _by_xla(multiply, *shapes)
    assert count_flops(multiply, *_shapes(*shapes)) == 2 * 3 * 8 * 5 * 7


def _layers(x: jax.Array, weights: jax.Array, *, unroll: bool | int) -> jax.Array:
    def layer(x: jax.Array, w: jax.Array) -> tuple[jax.Array, None]:
        return jnp.tanh(x @ w), None

    return jax.grad(lambda x: jax.lax.scan(layer, x, weights, unroll=unroll)[0].sum())(x)


@pytest.mark.parametrize("unroll", [1, 3, True])
def test_a_loop_counts_as_what_it_is_unrolled_to(unroll: bool | int) -> None:
    layers = functools.partial(_layers, unroll=unroll)
    assert count_flops(layers, *_shapes((8, WIDTH), (12, WIDTH, WIDTH))) == 2 * 12 * PRODUCT


def _twice(x: jax.Array, w: jax.Array) -> jax.Array:
    return jax.lax.fori_loop(0, 2, lambda _, y: y @ w, x)


def _branches(x: jax.Array, w: jax.Array) -> jax.Array:
    return jax.lax.cond(x.sum() > 0, lambda: x @ w, lambda: x @ w @ w)


def _recomputed(x: jax.Array, w: jax.Array) -> jax.Array:
    block = jax.checkpoint(lambda x, w: jnp.tanh(x @ w))
    # The first block forward, both again, and two gradients of each.
    gradients = jax.grad(lambda x, w: block(block(x, w), w).sum(), (0, 1))(x, w)
    return gradients[0].sum() + gradients[1].sum()


def _needless(x: jax.Array, w: jax.Array) -> jax.Array:
    """A loop whose products nothing needs, as those of the weights of accumulated microbatches."""
    counts = jax.lax.map(lambda row: ((row @ w).sum(), row.sum()), x)[1]
    return counts + (x @ w).sum()


@pytest.mark.parametrize(
    ("function", "products"), [(_twice, 2), (_branches, 2), (_recomputed, 7), (_needless, 1)]
)
def test_loops_branches_and_what_is_recomputed_or_needless(function: Any, products: int) -> None:
    assert count_flops(function, *_shapes((8, WIDTH), (WIDTH, WIDTH))) == products * PRODUCT


def test_a_step_does_the_same_arithmetic_however_it_is_accumulated() -> None:
    batch = normed_batch(4)
    whole = normed_trainer().step_flops(batch)
    cut = normed_trainer(accumulation=2, microbatch_statistics=True).step_flops(batch)
    assert whole == cut > 0


def test_shapes_suffice_and_nothing_is_compiled() -> None:
    trainer, batch = normed_trainer(), normed_batch(2)
    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(np.shape(x), x.dtype), batch)
    compiled: list[str] = []

    def note(event: str, duration_secs: float, **details: Any) -> None:
        del duration_secs, details
        compiled.append(event)

    jax.monitoring.register_event_duration_secs_listener(note)
    try:
        assert trainer.step_flops(shapes) == trainer.step_flops(batch)
    finally:
        jax.monitoring.unregister_event_duration_listener(note)
    assert "/jax/core/compile/jaxpr_trace_duration" in compiled
    assert "/jax/core/compile/backend_compile_duration" not in compiled
