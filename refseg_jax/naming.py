"""Names that people type in configs, and what to say when they mistype one."""

import difflib
import inspect
from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeVar

T = TypeVar("T")


def unknown(what: str, name: str, known: Iterable[str]) -> str:
    """One line for a name that does not exist: the nearest one, or all there are."""
    known = sorted(known)
    near = difflib.get_close_matches(name, known, n=1)
    hint = f"did you mean {near[0]!r}?" if near else f"there are: {', '.join(known)}"
    return f"unknown {what} {name!r}: {hint}"


def construct(constructor: Callable[..., T], fields: Mapping[str, Any], *, what: str) -> T:
    """Calls a dataclass (or function) with named fields.

    Raises:
        ValueError: a field that it does not have; the message names the nearest.
    """
    known = inspect.signature(constructor).parameters
    for name in fields:
        if name not in known:
            raise ValueError(unknown(f"field of {what}", name, known))
    return constructor(**{name: _frozen(value) for name, value in fields.items()})


def from_mapping(
    table: Mapping[str, Callable[..., T]], config: Mapping[str, Any], *, what: str
) -> T:
    """`config["name"]` looked up in a table, called with the rest of the config.

    Raises:
        ValueError: an unknown name or field; the message names the nearest.
    """
    name = str(config.get("name", ""))
    if name not in table:
        raise ValueError(unknown(what, name, table))
    fields = {key: value for key, value in config.items() if key != "name"}
    return construct(table[name], fields, what=f"{what} {name!r}")


def _frozen(value: Any) -> Any:
    """Lists (as JSON and overrides give them) become tuples, so that configs stay hashable."""
    return tuple(_frozen(v) for v in value) if isinstance(value, (list, tuple)) else value
