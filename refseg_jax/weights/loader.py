"""The loader of all weight files: it plans without allocating, then reads one entry at a time.

An entry is an array in a file, named as its authors named it. A parameter is an array of our model,
named by its dotted path. A change is the function that turns an entry into a parameter, see
`refseg_jax.weights.table`.
"""

import dataclasses
import functools
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from refseg_jax.errors import UserError
from refseg_jax.weights.table import Change, Rule, Table

#: A number within a dotted name, and its placeholder, which occurs in no name.
_NUMBER, _HERE = re.compile(r"(?<=\.)\d+(?=\.)"), "\0"


class Weights(Protocol):
    """An opened weight file, or several shards that belong together."""

    @property
    def name(self) -> str:
        """The path of the file, for messages."""
        ...

    @property
    def shapes(self) -> Mapping[str, jax.ShapeDtypeStruct]:
        """Entry -> shape and dtype, known without reading the arrays."""
        ...

    def read(self, entry: str) -> np.ndarray:
        """Reads the array of an entry.

        Raises:
            UserError: the file is damaged.
        """
        ...


@dataclasses.dataclass(frozen=True)
class Plan:
    """Which entries of a file fill which parameters of a model; `load` carries it out.

    Attributes:
        reads: entry -> (parameter, change) pairs that it fills.
        targets: parameter -> shape and dtype, for the parameters that are filled.
        unread: entry -> reason from the table, for the entries that are not read.
        unwritten: parameter -> reason from the table, for the parameters that are not filled.
    """

    reads: Mapping[str, tuple[tuple[str, Change], ...]]
    targets: Mapping[str, jax.ShapeDtypeStruct]
    unread: Mapping[str, str]
    unwritten: Mapping[str, str]


def plan(
    table: Table,
    source: Mapping[str, jax.ShapeDtypeStruct],
    target: Mapping[str, jax.ShapeDtypeStruct],
    *,
    name: str,
) -> Plan:
    """Matches the entries of a file with the parameters of a model, by a table.

    Nothing is allocated: the shapes after each change come from `jax.eval_shape`.

    Args:
        table: the table of the file's format.
        source: entry -> shape and dtype.
        target: parameter -> shape and dtype, for the whole model.
        name: the file, for the message.

    Raises:
        UserError: the table does not name an entry or a parameter, a parameter is filled twice, a
            shape differs, or an entry is not of a floating-point type; one line that lists all of
            them.
    """
    reads: dict[str, tuple[tuple[str, Change], ...]] = {}
    unread: dict[str, str] = {}
    writers: dict[str, list[str]] = defaultdict(list)
    troubles: dict[str, list[str]] = defaultdict(list)
    for entry, leaf in source.items():
        found = first_match(table.rules, entry)
        if found is None:
            reason = _reason(table.unread, entry)
            if reason is None:
                troubles["entries that no rule reads"].append(entry)
            else:
                unread[entry] = reason
            continue
        reads[entry] = found
        for path, change in found:
            writers[path].append(entry)
            if path not in target:
                troubles["entries for which the model has no place"].append(f"{entry} -> {path}")
            elif trouble := _mismatch(leaf, target[path], change):
                troubles["shapes"].append(f"{entry} -> {path} ({trouble})")
    twice = [f"{path} (by {' and '.join(by)})" for path, by in writers.items() if len(by) > 1]
    troubles["parameters written twice"] = twice
    unwritten: dict[str, str] = {}
    for path in target.keys() - writers.keys():
        reason = _reason(table.unwritten, path)
        if reason is None:
            troubles["parameters that nothing fills"].append(path)
        else:
            unwritten[path] = reason
    if any(troubles.values()):
        lists = "; ".join(f"{what}: {_compact(x)}" for what, x in troubles.items() if x)
        raise UserError(f"{name}: these weights do not fit the model: {lists}")
    written = {path: target[path] for path in writers}
    return Plan(reads, written, unread, unwritten)


def load(
    plan: Plan, weights: Weights, layouts: Mapping[str, jax.sharding.Sharding]
) -> dict[str, jax.Array]:
    """Carries out a plan: reads one entry at a time into arrays with their final sharding.

    Args:
        plan: the output of `plan` for the same file.
        weights: the file.
        layouts: parameter -> sharding, at least for the parameters that are filled.

    Returns:
        Parameter -> array with the model's dtype and the given sharding.

    Raises:
        UserError: the file is damaged, or an entry contains NaN, infinity or numbers too large for
            float32.
    """
    params: dict[str, jax.Array] = {}
    for entry, writes in plan.reads.items():
        value = _finite(weights.read(entry), f"{weights.name}: entry {entry!r}")
        for path, change in writes:
            leaf = plan.targets[path]
            changed = np.asarray(change(value, leaf.shape), leaf.dtype)
            params[path] = jax.make_array_from_callback(
                leaf.shape, layouts[path], functools.partial(_cut, changed)
            )
    return params


def _finite(value: np.ndarray, name: str) -> np.ndarray:
    """Converts an entry to f32, and refuses NaN, infinity and numbers too large for f32."""
    with np.errstate(over="ignore"):
        value = value.astype(np.float32, copy=False)
    odd = value.size - np.count_nonzero(np.isfinite(value))
    if odd:
        raise UserError(
            f"{name}: {odd} of {value.size} numbers are NaN, infinite or too large for float32; "
            "take other weights, or download the file again"
        )
    return value


def _cut(whole: np.ndarray, index: Any) -> np.ndarray:
    # A copy, because an array on the CPU could otherwise share memory with the (mapped) file.
    return np.array(whole[index], order="C")


def first_match(rules: Iterable[Rule], entry: str) -> tuple[tuple[str, Change], ...] | None:
    """The (parameter, change) pairs of an entry by the first matching rule; `None` if none matches."""
    for rule in rules:
        match = re.fullmatch(rule.pattern, entry)
        if match:
            return tuple((match.expand(path), change) for path, change in rule.writes)
    return None


def _reason(reasons: Mapping[str, str], name: str) -> str | None:
    return next((why for pattern, why in reasons.items() if re.fullmatch(pattern, name)), None)


def _mismatch(
    leaf: jax.ShapeDtypeStruct, wanted: jax.ShapeDtypeStruct, change: Change
) -> str | None:
    """The reason why an entry cannot fill a parameter; `None` if it can."""
    if not jnp.issubdtype(leaf.dtype, jnp.floating):
        return f"{leaf.dtype}, not floating point"
    # `load` converts to float32 before the change; JAX would warn of a float64 that a file holds.
    read = jax.ShapeDtypeStruct(leaf.shape, np.float32)
    try:
        given = jax.eval_shape(lambda value: change(value, wanted.shape), read)
    except (TypeError, ValueError, IndexError) as error:
        return f"{tuple(leaf.shape)} cannot be changed: {' '.join(str(error).split())[:120]}"
    if given.shape != wanted.shape:
        return f"{given.shape}, the model's is {wanted.shape}"
    return None


def _compact(leaves: Iterable[str]) -> str:
    """Lists names, and joins those that differ only in their first number: `blocks.{0-11}.x`."""
    numbers: dict[str, list[int]] = defaultdict(list)
    for leaf in leaves:
        first = _NUMBER.search(leaf)
        found = numbers[leaf if first is None else _numbered(leaf, first[0])]
        if first is not None:
            found.append(int(first[0]))
    shown = [
        shape.replace(_HERE, "{" + _ranges(found) + "}" if len(found) > 1 else str(*found))
        for shape, found in sorted(numbers.items())
    ]
    return ", ".join(shown)


def _numbered(leaf: str, number: str) -> str:
    """Replaces the first number of each word by the placeholder, where it is `number`."""
    words = leaf.split(" ")
    firsts = (_NUMBER.search(word) for word in words)
    return " ".join(
        _NUMBER.sub(_HERE, word, count=1) if first and first[0] == number else word
        for word, first in zip(words, firsts, strict=True)
    )


def _ranges(numbers: Iterable[int]) -> str:
    """Formats numbers as ranges: `[0, 1, 5, 2]` as `0-2,5`."""
    known = set(numbers)
    starts = sorted(n for n in known if n - 1 not in known)
    ends = sorted(n for n in known if n + 1 not in known)
    return ",".join(str(a) if a == b else f"{a}-{b}" for a, b in zip(starts, ends, strict=True))
