"""Looks up the names that people type in configs, and suggests the nearest one for a typo."""

import difflib
import inspect
from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeVar

T = TypeVar("T")


def unknown(what: str, name: str, known: Iterable[str]) -> str:
    """The error message for an unknown name: it suggests the nearest name, or lists all of them."""
    known = sorted(known)
    near = difflib.get_close_matches(name, known, n=1)
    hint = f"did you mean {near[0]!r}?" if near else f"there are: {', '.join(known)}"
    return f"unknown {what} {name!r}: {hint}"


def construct(constructor: Callable[..., T], fields: Mapping[str, Any], *, what: str) -> T:
    """Calls a dataclass (or function) with named fields; lists become tuples.

    Args:
        constructor: the dataclass or function.
        fields: its keyword arguments.
        what: what is being built, for the message.

    Raises:
        ValueError: the constructor has no such field; the message names the nearest.
    """
    known = inspect.signature(constructor).parameters
    for name in fields:
        if name not in known:
            raise ValueError(unknown(f"field of {what}", name, known))
    return constructor(**{name: _frozen(value) for name, value in fields.items()})


def from_mapping(
    table: Mapping[str, Callable[..., T]], config: Mapping[str, Any], *, what: str
) -> T:
    """Looks up `config["name"]` in a table and calls the entry with the rest of the config.

    Args:
        table: name -> dataclass or function.
        config: `name`, and the keyword arguments of that entry.
        what: what the table holds, for the message.

    Raises:
        ValueError: an unknown name or field; the message names the nearest.
    """
    name = str(config.get("name", ""))
    if name not in table:
        raise ValueError(unknown(what, name, table))
    fields = {key: value for key, value in config.items() if key != "name"}
    return construct(table[name], fields, what=f"{what} {name!r}")


def _frozen(value: Any) -> Any:
    """Turns lists (from JSON and from overrides) into tuples, so that configs stay hashable."""
    return tuple(_frozen(v) for v in value) if isinstance(value, (list, tuple)) else value
