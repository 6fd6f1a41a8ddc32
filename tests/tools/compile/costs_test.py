"""Figures that are read from the text of a compiled program, against XLA's own and by hand."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tools.compile import costs, hlo
from tools.compile.costs import Moved

#: As XLA writes it for TPUs, cut down: a loop of 10 that gathers a matrix beside its product and adds up
#: what it scatters; and an all-reduce of two arrays.
TPU = """
HloModule jit_step, is_scheduled=true, entry_computation_layout={(bf16[256,1024]{1,0})->f32[]}

%add (a: f32[], b: f32[]) -> f32[] {
  %a = f32[] parameter(0)
  %b = f32[] parameter(1)
  ROOT %sum = f32[] add(%a, %b)
}

%starts (p: bf16[256,1024]) -> (bf16[1024,1024], u32[]) {
  %p = bf16[256,1024]{1,0:T(8,128)(2,1)S(1)} parameter(0)
  %all-gather.1 = bf16[1024,1024]{1,0:T(8,128)(2,1)} all-gather(%p), channel_id=6, dimensions={0}
  ROOT %call = (bf16[1024,1024]{1,0}, /*index=1*/u32[]{:S(2)}) custom-call(%all-gather.1)
}

%ends (p: bf16[256,1024]) -> bf16[1024,1024] {
  %p = bf16[256,1024]{1,0:T(8,128)(2,1)S(1)} parameter(0)
  ROOT %all-gather.2 = bf16[1024,1024]{1,0:T(8,128)(2,1)} all-gather(%p), channel_id=6, dimensions={0}
}

%all-reduce-scatter.clone (input: f32[1024,1024]) -> f32[256,1024] {
  %input = f32[1024,1024]{1,0} parameter(0)
  %zero = s32[] constant(0)
  %all-reduce.5 = f32[1024,1024]{1,0} all-reduce(%input), channel_id=4, to_apply=%add
  ROOT %slice = f32[256,1024]{1,0} dynamic-slice(%all-reduce.5, %zero, %zero)
}

%condition (s: (s32[], bf16[256,1024], f32[256,1024])) -> pred[] {
  %limit = s32[]{:T(128)} constant(10)
  %s = (s32[]{:T(128)}, bf16[256,1024]{1,0}, f32[256,1024]{1,0}) parameter(0)
  %number = s32[]{:T(128)} get-tuple-element(%s), index=0
  ROOT %less = pred[]{:T(512)} compare(%number, %limit), direction=LT
}

%body (s: (s32[], bf16[256,1024], f32[256,1024])) -> (s32[], bf16[256,1024], f32[256,1024]) {
  %s = (s32[], bf16[256,1024]{1,0}, f32[256,1024]{1,0}) parameter(0)
  %number = s32[] get-tuple-element(%s), index=0
  %part = bf16[256,1024]{1,0} get-tuple-element(%s), index=1
  %one = s32[] constant(1)
  %next = s32[] add(%number, %one)
  %begun = (bf16[1024,1024]{1,0}, u32[]{:S(2)}) fusion(%part), kind=kCustom, calls=%starts
  %whole = bf16[1024,1024]{1,0} fusion(%part), kind=kCustom, calls=%ends
  %product = f32[1024,1024]{1,0} convolution(%whole, %whole), dim_labels=bf_io->bf
  %scattered = f32[256,1024]{1,0} fusion(%product), kind=kCustom, calls=%all-reduce-scatter.clone
  ROOT %all = (s32[], bf16[256,1024]{1,0}, f32[256,1024]{1,0}) tuple(%next, %part, %scattered)
}

ENTRY %main (p: bf16[256,1024]) -> f32[] {
  %p = bf16[256,1024]{1,0:T(8,128)(2,1)} parameter(0)
  %zero = s32[] constant(0)
  %start = f32[256,1024]{1,0} convert(%p)
  %begin = (s32[], bf16[256,1024]{1,0}, f32[256,1024]{1,0}) tuple(%zero, %p, %start)
  %loop = (s32[], bf16[256,1024], f32[256,1024]) while(%begin), condition=%condition, body=%body
  %last = f32[256,1024]{1,0} get-tuple-element(%loop), index=2
  %sums = (f32[256,1024]{1,0}, bf16[256,1024]{1,0}) all-reduce(%last, %p), channel_id=9, to_apply=%add
  ROOT %sum = f32[] custom-call(%sums), custom_call_target="sum"
}
"""


def test_collectives_of_a_tpu_are_counted_once_and_in_every_turn_of_a_loop():
    program = hlo.read(TPU)
    assert program.entry == "main"
    assert program.runs == {"main": 1, "condition": 10, "body": 10}
    assert program.endless == 0
    matrix = 1024 * 1024
    assert costs.collectives(program) == {
        "all-reduce": Moved(1, matrix * 4 / 4 + matrix * 2 / 4),
        "all-gather": Moved(10, 10 * matrix * 2),
        "reduce-scatter": Moved(10, 10 * matrix * 4),
    }
    # All products are in the loop, but not all traffic.
    arithmetic, traffic = costs.loop_factors(program)
    assert arithmetic == 10
    assert 5 < traffic < 10


#: A copy to the chip in two steps, a part of an array, a fusion that reads both and writes to memory.
ON_CHIP = """
%body (x: f32[8,128], y: f32[4,128]) -> f32[8,128] {
  %x = f32[8,128]{1,0:T(8,128)S(1)} parameter(0)
  %y = f32[4,128]{1,0:T(8,128)S(1)} parameter(1)
  ROOT %z = f32[8,128]{1,0:T(8,128)} custom-call(%x, %y)
}

ENTRY %main (p: f32[8,128], q: f32[16,128]) -> f32[8,128] {
  %p = f32[8,128]{1,0:T(8,128)} parameter(0)
  %q = f32[16,128]{1,0:T(8,128)} parameter(1)
  %c = (f32[8,128]{1,0:T(8,128)S(1)}, f32[8,128]{1,0:T(8,128)}, u32[]{:S(2)}) copy-start(%p)
  %copied = f32[8,128]{1,0:T(8,128)S(1)} copy-done(%c)
  %s = ((f32[16,128]{1,0:T(8,128)}), f32[4,128]{1,0:T(8,128)S(1)}, s32[]{:S(2)}) slice-start(%q)
  %part = f32[4,128]{1,0:T(8,128)S(1)} slice-done(%s)
  ROOT %z = f32[8,128]{1,0:T(8,128)} fusion(%copied, %part), kind=kCustom, calls=%body
}
"""


def test_what_stays_on_the_chip_is_no_traffic_of_memory():
    row = 128 * 4
    program = hlo.read(ON_CHIP)
    assert costs.memory_traffic(program) == 8 * row + 4 * row + 8 * row
    nowhere = hlo.read(ON_CHIP.replace("S(1)", ""))
    assert costs.memory_traffic(nowhere) == 2 * 8 * row + 2 * 4 * row + (8 + 4 + 8) * row


def test_a_loop_of_unknown_length_is_told():
    program = hlo.read(TPU.replace("direction=LT", "direction=NE"))
    assert program.endless == 1
    assert program.runs["body"] == 1


def test_an_asynchronous_gather_is_as_large_as_what_it_gathers():
    line = "%g = (f32[2,8], f32[8,8]) all-gather-start(%p), channel_id=1, dimensions={0}"
    done = "ROOT %d = f32[8,8] all-gather-done(%g)"
    text = f"ENTRY %m (p: f32[2,8]) -> f32[8,8] {{\n  %p = f32[2,8] parameter(0)\n  {line}\n  {done}\n}}"
    assert costs.collectives(hlo.read(text)) == {"all-gather": Moved(1, 8 * 8 * 4)}


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("f32[8,128]{1,0:T(8,128)}", 4096),
        ("(bf16[3]{0}, /*index=1*/pred[5], token[])", 11),
        ("f8e4m3fn[16]", 16),
        ("s4[16]", 8),
        ("f32[]", 4),
        ("f32[<=8,2]", 64),
        ("c64[2]", 16),
    ],
)
def test_sizes_of_arrays(text, size):
    assert sum(array.bytes for array in hlo.arrays_of(text)) == size


def _compiled(function, *shapes) -> tuple[hlo.Program, dict[str, float]]:
    """The program, and XLA's figures of it."""
    arrays = (jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes)
    compiled = jax.jit(function).lower(*arrays).compile()
    cost: Any = compiled.cost_analysis()
    return hlo.read(compiled.as_text() or ""), cost


def _products(program: hlo.Program) -> float:
    return sum(costs.products(computation) for computation in program.computations.values())


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
def test_a_convolution_is_counted_as_xla_counts_it(options):
    groups = options.get("feature_group_count", 1)
    convolve = functools.partial(
        jax.lax.conv_general_dilated,
        **{"window_strides": (1, 1), "dimension_numbers": ("NHWC", "HWIO", "NHWC"), **options},
    )
    program, cost = _compiled(convolve, (2, 9, 8, 4), (3, 2, 4 // groups, 6))
    assert _products(program) == cost["flops"]


def test_a_product_is_counted_as_xla_counts_it():
    program, cost = _compiled(
        lambda a, b: jax.lax.dot_general(a, b, (((1,), (2,)), ((0,), (0,)))), (3, 8, 5), (3, 7, 8)
    )
    assert _products(program) == cost["flops"] == 2 * 3 * 8 * 5 * 7


def _layers(x, weights, *, unroll):
    def layer(x, w):
        return jnp.tanh(x @ w), None

    return jax.grad(lambda x: jax.lax.scan(layer, x, weights, unroll=unroll)[0].sum())(x)


def test_a_loop_counts_as_what_it_is_unrolled_to():
    shapes = (64, 128), (12, 128, 128)
    program, cost = _compiled(functools.partial(_layers, unroll=1), *shapes)
    _, plain = _compiled(functools.partial(_layers, unroll=True), *shapes)
    arithmetic, traffic = costs.loop_factors(program)
    assert cost["flops"] < 0.2 * plain["flops"]
    np.testing.assert_allclose(cost["flops"] * arithmetic, plain["flops"], rtol=0.05)
    # A loop stacks what its gradient reads, which takes more traffic.
    assert 1 < cost["bytes accessed"] * traffic / plain["bytes accessed"] < 2


def test_without_a_loop_xla_is_right():
    program, cost = _compiled(functools.partial(_layers, unroll=True), (8, 16), (2, 16, 16))
    assert costs.loop_factors(program) == (1, 1)
    assert cost["flops"] > 0
