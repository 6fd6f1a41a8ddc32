"""Tables of regular expressions that map the entries of a weight file to parameters of a model.

A table is complete: it names the entries that are read, the entries that are not needed and the
parameters that the file cannot fill, the last two with a reason. `refseg_jax.weights.loader.plan`
refuses anything that the table does not name.
"""

import dataclasses
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeAlias

from refseg_jax.images.resize import resize_position_embedding

#: A function of an entry and the shape of the parameter that returns the parameter. It may use only
#: methods (`.T`, `.reshape`), slices and `jax.numpy`, because it also runs under `jax.eval_shape`.
Change: TypeAlias = Callable[[Any, tuple[int, ...]], Any]


def same(value: Any, shape: tuple[int, ...]) -> Any:
    """The entry, unchanged."""
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
    """torch's 1x1 Conv1d or Conv2d `[outputs, inputs, 1(, 1)]` to a kernel `[inputs, outputs]`."""
    del shape
    return value.reshape(value.shape[:2]).transpose(1, 0)


def row(value: Any, shape: tuple[int, ...]) -> Any:
    """Adds a first axis: a vector `[width]` to a table `[1, width]`, a number `[]` to `[1]`."""
    del shape
    return value[None]


def positions(value: Any, shape: tuple[int, ...]) -> Any:
    """Resizes CLIP's table of positions to the grid of the model.

    See `refseg_jax.images.resize.resize_position_embedding`.
    """
    side = round((shape[0] - 1) ** 0.5)
    return resize_position_embedding(value, side)


def third(number: int, change: Change = same) -> Change:
    """A change that takes one third of axis 0 and then applies `change`.

    torch packs the kernels of query (0), key (1) and value (2) along axis 0.
    """

    def take(value: Any, shape: tuple[int, ...]) -> Any:
        rows, rest = divmod(value.shape[0], 3)
        if rest:
            raise ValueError(f"{value.shape[0]} rows are not three parts")
        return change(value[number * rows : (number + 1) * rows], shape)

    return take


@dataclasses.dataclass(frozen=True)
class Rule:
    r"""Maps the entries of one kind to the parameters that they fill.

    Attributes:
        pattern: regular expression that matches the whole name of an entry.
        writes: (parameter, change) pairs. The dotted path of the parameter may use the groups of the
            pattern (`\1`). A packed entry fills several parameters.
    """

    pattern: str
    writes: tuple[tuple[str, Change], ...]


@dataclasses.dataclass(frozen=True)
class Table:
    """How the entries of a file format fill the parameters of a model.

    Attributes:
        rules: the first rule that matches an entry applies.
        unread: pattern of entries -> the reason why they are not needed.
        unwritten: pattern of parameters -> the reason why the file cannot fill them.
    """

    rules: tuple[Rule, ...]
    unread: Mapping[str, str]
    unwritten: Mapping[str, str]


def rename(pattern: str, target: str, change: Change = same) -> Rule:
    """A rule that fills one parameter."""
    return Rule(pattern, ((target, change),))


def linear(source: str, target: str) -> tuple[Rule, Rule]:
    """The rules from torch's Linear to our `Linear`."""
    return (
        rename(rf"{source}\.weight", f"{target}.kernel", transposed),
        rename(rf"{source}\.bias", f"{target}.bias"),
    )


def norm(source: str, target: str) -> tuple[Rule, Rule]:
    """The rules from torch's LayerNorm or GroupNorm to ours."""
    return (
        rename(rf"{source}\.weight", f"{target}.scale"),
        rename(rf"{source}\.bias", f"{target}.bias"),
    )


def packed(source: str, targets: tuple[str, str, str], weight: str, bias: str) -> tuple[Rule, Rule]:
    """The rules from packed projections of query, key and value to three `Linear`s.

    Args:
        source: pattern of the module's name.
        targets: paths of the three `Linear`s, in the order in which they are packed.
        weight, bias: patterns of the names of the two entries below `source`.
    """
    numbered = tuple(enumerate(targets))
    kernels = tuple((f"{t}.kernel", third(n, transposed)) for n, t in numbered)
    biases = tuple((f"{t}.bias", third(n)) for n, t in numbered)
    return Rule(rf"{source}\.{weight}", kernels), Rule(rf"{source}\.{bias}", biases)


def batch_norm(source: str, target: str) -> tuple[Rule, ...]:
    """The rules from torch's BatchNorm to ours; see `BATCHES` for the entry that they leave out."""
    return (
        *norm(source, target),
        rename(rf"{source}\.running_mean", f"{target}.mean"),
        rename(rf"{source}\.running_var", f"{target}.variance"),
    )


#: The entry of torch's BatchNorm that is not read -> the reason, for `Table.unread`.
BATCHES = {
    r".*\.num_batches_tracked": "a count of batches, which averages of a fixed momentum do not need"
}


def multihead(source: str, target: str) -> tuple[Rule, ...]:
    """The rules from torch's MultiheadAttention to ours."""
    three = (f"{target}.query", f"{target}.key", f"{target}.value")
    return (
        *packed(source, three, "in_proj_weight", "in_proj_bias"),
        *linear(rf"{source}\.out_proj", f"{target}.out"),
    )


def below(prefix: str, rules: Iterable[Rule]) -> tuple[Rule, ...]:
    """The rules of a part of a model, for entries with a prefix."""
    return tuple(Rule(re.escape(prefix) + rule.pattern, rule.writes) for rule in rules)
