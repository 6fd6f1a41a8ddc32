"""Looks up the names that people type in configs and tables, and suggests the nearest one for a typo."""

import dataclasses
import difflib
import functools
import inspect
import tomllib
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar

T = TypeVar("T")

_VARIADIC = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)


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
        ValueError: the constructor has no such field (the message names the nearest), or needs one that
            is not given.
    """
    known = inspect.signature(constructor).parameters
    for name in fields:
        if name not in known:
            raise ValueError(unknown(f"field of {what}", name, known))
    for name, parameter in known.items():
        needed = parameter.default is parameter.empty and parameter.kind not in _VARIADIC
        if needed and name not in fields:
            raise ValueError(f"{what} lacks the field {name!r}")
    return constructor(**{name: _frozen(value) for name, value in fields.items()})


def from_preset(
    constructor: Callable[..., T],
    presets: Mapping[str, Mapping[str, Any]],
    fields: Mapping[str, Any],
    *,
    default: str,
    what: str,
) -> T:
    """Calls `construct` with the fields of a preset, some of them overridden.

    Args:
        constructor: the dataclass or function.
        presets: name -> its fields.
        fields: the fields that override them; `preset` names the preset.
        default: name of the preset if `fields` names none.
        what: what is being built, for the message.

    Raises:
        ValueError: the preset is unknown (the message names the nearest), or as in `construct`.
    """
    given = dict(fields)
    preset = given.pop("preset", default)
    if preset not in presets:
        raise ValueError(unknown(f"preset of {what}", preset, presets))
    return construct(constructor, {**presets[preset], **given}, what=what)


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


def read_table(path: Path, kind: type[T]) -> dict[str, T]:
    """Reads a TOML file whose entries are the fields of a dataclass.

    The key of an entry is the first field of the dataclass; the entry states the other fields. With
    `like = "OTHER"`, it takes the fields that it does not state from an earlier entry.

    Args:
        path: the file.
        kind: the dataclass; its own checks raise `ValueError`.

    Returns:
        Name -> entry, in the order of the file.

    Raises:
        ValueError: the file is not TOML, or an entry lacks a field, has an unknown one or a wrong value;
            the line names the file, the entry and the field.
    """
    try:
        stored = tomllib.loads(path.read_text(encoding="utf-8"))
    except tomllib.TOMLDecodeError as error:
        raise ValueError(f"{path}: no TOML ({error})") from None
    whole: dict[str, dict[str, Any]] = {}
    entries: dict[str, T] = {}
    for name, own in stored.items():
        try:
            if not isinstance(own, dict):
                raise ValueError('no entry; begin entries by ["NAME"]')
            above = own.pop("like", None)
            if above is not None and str(above) not in whole:
                raise ValueError(f"like={above!r} names no entry above it")
            whole[name] = {**whole.get(str(above), {}), **own}
            entries[name] = _entry(kind, name, whole[name])
        except ValueError as error:
            raise ValueError(f"{path}: {name}: {error}") from None
    return entries


#: Type of a dataclass's field -> whether a value of TOML is of that type.
_OF_TYPE: Mapping[Any, Callable[[Any], bool]] = {
    str: lambda value: isinstance(value, str) and "\n" not in value,
    int: lambda value: type(value) is int,
    tuple[str, ...]: lambda value: isinstance(value, list) and all(type(v) is str for v in value),
}


def _entry(kind: type[T], name: str, fields: Mapping[str, Any]) -> T:
    types = {field.name: field.type for field in dataclasses.fields(kind)}  # pyright: ignore
    for field, value in fields.items():
        of_type = _OF_TYPE.get(types.get(field))
        if of_type is not None and not of_type(value):
            raise ValueError(f"field {field!r} is {value!r:.80}")
    return construct(functools.partial(kind, name), fields, what="the entry")


def _frozen(value: Any) -> Any:
    """Turns lists (from JSON and from overrides) into tuples, so that configs stay hashable."""
    return tuple(_frozen(v) for v in value) if isinstance(value, (list, tuple)) else value
