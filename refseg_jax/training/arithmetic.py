"""The arithmetic of a function: its matrix products and convolutions, as often as its loops run them.

It is counted in the traced function, which costs no compilation. XLA's count of a compiled one is not
the work that was asked for: the body of a loop counts once, and calls of cuBLAS, cuDNN and Pallas not
at all.
"""

import math
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np
from jax.interpreters import partial_eval

from refseg_jax.layers.target import PORTABLE, compiling_for


def count_flops(function: Callable[..., Any], *args: Any) -> float:
    """Counts the arithmetic of a call, over all devices together, in FLOP.

    Attention counts as written out, whatever kernel the running devices take. What no result needs
    does not count; what `jax.checkpoint` recomputes does. A loop of unknown length counts once, and of
    several branches the longest.

    Args:
        function: what `jax.jit` takes.
        args: its arguments; shapes and dtypes suffice.
    """
    with compiling_for(PORTABLE):
        traced = jax.jit(function).trace(*args).jaxpr
    wanted = [True] * len(traced.jaxpr.outvars)
    needed, _ = partial_eval.dce_jaxpr(traced.jaxpr, wanted)
    return _arithmetic(needed)


def _arithmetic(jaxpr: Any) -> float:
    total = 0.0
    for equation in jaxpr.eqns:
        name, inner = equation.primitive.name, list(_inner(equation))
        if name == "dot_general":
            total += _product(equation)
        elif name == "conv_general_dilated":
            total += _convolution(equation)
        elif name == "cond":
            total += max(map(_arithmetic, inner))
        else:
            times = equation.params["length"] if name == "scan" else 1
            total += times * sum(map(_arithmetic, inner))
    return total


def _inner(equation: Any) -> Iterator[Any]:
    """The traced functions that an operation calls."""
    for value in equation.params.values():
        for one in value if isinstance(value, (tuple, list)) else (value,):
            if hasattr(one, "eqns"):
                yield one


def _product(equation: Any) -> float:
    (contracted, _), _ = equation.params["dimension_numbers"]
    left = equation.invars[0].aval.shape
    return 2.0 * equation.outvars[0].aval.size * math.prod(left[axis] for axis in contracted)


def _convolution(equation: Any) -> float:
    params = equation.params
    left, right = (variable.aval.shape for variable in equation.invars)
    result = equation.outvars[0].aval.shape
    numbers = params["dimension_numbers"]
    seen, kernel, out = numbers.lhs_spec, numbers.rhs_spec, numbers.out_spec
    total = 2.0 * result[out[0]] * result[out[1]] * right[kernel[1]]
    for axis, (low, _) in enumerate(params["padding"]):
        total *= meetings(
            left[seen[2 + axis]],
            right[kernel[2 + axis]],
            result[out[2 + axis]],
            stride=params["window_strides"][axis],
            low=low,
            holes=params["lhs_dilation"][axis],
            spread=params["rhs_dilation"][axis],
        )
    return total


def meetings(
    length: int, taps: int, outputs: int, *, stride: int, low: int, holes: int, spread: int
) -> int:
    """The number of pairs of an output and a tap of a convolution that meet an element of its input.

    Products with padding and with the holes of a dilated input are none, as XLA counts.

    Args:
        length: elements of the input along an axis.
        taps: elements of the kernel.
        outputs: elements of the result.
        stride: step of the kernel from one output to the next.
        low: padding before the input.
        holes: distance between neighbours of the input, once it is dilated.
        spread: distance between neighbours of the kernel, once it is dilated.
    """
    places = np.arange(outputs)[:, None] * stride + np.arange(taps) * spread - low
    return int(((places >= 0) & (places % holes == 0) & (places // holes < length)).sum())
