"""Which entry of a weight file becomes which parameter: ordered tables of regular expressions.

A table names everything: what is read, what is left unread and what is left unwritten, the last two
with the reason. `refseg_jax.weights.loader.plan` refuses whatever is not named.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

from refseg_jax.images.resize import resize_position_embedding

#: From an entry and the shape of the parameter to the parameter. It may use methods (`.T`,
#: `.reshape`), slices and `jax.numpy` only, because it also runs under `jax.eval_shape`.
Change: TypeAlias = Callable[[Any, tuple[int, ...]], Any]


def same(value: Any, shape: tuple[int, ...]) -> Any:
    """As it is."""
    del shape
    return value


def transposed(value: Any, shape: tuple[int, ...]) -> Any:
    """torch's Linear `[outputs, inputs]` to a kernel `[inputs, outputs]`."""
    del shape
    return value.transpose(1, 0)


def convolution(value: Any, shape: tuple[int, ...]) -> Any:
    """torch's Conv2d `[outputs, inputs, h, w]` to a kernel `[h, w, inputs, outputs]`."""
    del shape
    return value.transpose(2, 3, 1, 0)


def pointwise(value: Any, shape: tuple[int, ...]) -> Any:
    """A Conv1d or Conv2d of one place `[outputs, inputs, 1(, 1)]` to a kernel `[inputs, outputs]`."""
    del shape
    return value.reshape(value.shape[:2]).transpose(1, 0)


def row(value: Any, shape: tuple[int, ...]) -> Any:
    """A vector `[width]` to a table of one row `[1, width]`, a number `[]` to `[1]`."""
    del shape
    return value[None]


def positions(value: Any, shape: tuple[int, ...]) -> Any:
    """CLIP's table of positions to the model's grid; see `resize_position_embedding`."""
    side = round((shape[0] - 1) ** 0.5)
    return resize_position_embedding(value, side)


def third(number: int, change: Change = same) -> Change:
    """One of the three equal parts of axis 0 (torch packs query, key, value), then `change`."""

    def take(value: Any, shape: tuple[int, ...]) -> Any:
        rows, rest = divmod(value.shape[0], 3)
        if rest:
            raise ValueError(f"{value.shape[0]} rows are not three parts")
        return change(value[number * rows : (number + 1) * rows], shape)

    return take


@dataclasses.dataclass(frozen=True)
class Rule:
    r"""What one kind of entry becomes.

    Attributes:
        pattern: regular expression of the entry's whole name.
        writes: (parameter, change) pairs; the parameter's dotted path may use the pattern's groups
            (`\1`). A packed entry writes several parameters.
    """

    pattern: str
    writes: tuple[tuple[str, Change], ...]


@dataclasses.dataclass(frozen=True)
class Table:
    """How a source's entries fill a model's parameters.

    Attributes:
        rules: the first whose pattern matches an entry counts.
        unread: pattern of entries -> the reason why they are not needed.
        unwritten: pattern of parameters -> the reason why the source cannot fill them.
    """

    rules: tuple[Rule, ...]
    unread: Mapping[str, str]
    unwritten: Mapping[str, str]


def rename(pattern: str, target: str, change: Change = same) -> Rule:
    """A rule of one parameter."""
    return Rule(pattern, ((target, change),))


def linear(source: str, target: str) -> tuple[Rule, Rule]:
    """torch's Linear to ours."""
    return (
        rename(rf"{source}\.weight", f"{target}.kernel", transposed),
        rename(rf"{source}\.bias", f"{target}.bias"),
    )


def norm(source: str, target: str) -> tuple[Rule, Rule]:
    """torch's LayerNorm to ours."""
    return (
        rename(rf"{source}\.weight", f"{target}.scale"),
        rename(rf"{source}\.bias", f"{target}.bias"),
    )


def packed(source: str, targets: tuple[str, str, str], weight: str, bias: str) -> tuple[Rule, Rule]:
    """Query, key and value packed in one product to three Linears.

    Args:
        source: pattern of the module.
        targets: paths of the three, in the order in which they are packed.
        weight, bias: patterns of the two entries below `source`.
    """
    numbered = tuple(enumerate(targets))
    kernels = tuple((f"{t}.kernel", third(n, transposed)) for n, t in numbered)
    biases = tuple((f"{t}.bias", third(n)) for n, t in numbered)
    return Rule(rf"{source}\.{weight}", kernels), Rule(rf"{source}\.{bias}", biases)
