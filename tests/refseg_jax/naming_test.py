"""Mistyped names: the message names the nearest."""

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path

import ml_collections
import pytest

from refseg_jax.naming import construct, from_mapping, read_table, unknown


@dataclasses.dataclass(frozen=True)
class _Tower:
    width: int
    depth: int = 2
    sides: tuple[object, ...] = ()


TABLE: dict[str, Callable[..., object]] = {"tower": _Tower, "bridge": dict}


def test_a_near_name_is_proposed() -> None:
    message = unknown("model", "unirse", ["unires", "rela", "grser"])
    assert message == "unknown model 'unirse': did you mean 'unires'?"


def test_without_a_near_name_all_are_listed() -> None:
    assert unknown("model", "zzz", ["b", "a"]) == "unknown model 'zzz': there are: a, b"
    assert unknown("model", "", {"a": 1}) == "unknown model '': there are: a"


def test_fields_arrive() -> None:
    assert construct(_Tower, {"width": 3}, what="tower") == _Tower(3, 2)
    config = ml_collections.ConfigDict({"name": "tower", "width": 3, "depth": 7}).to_dict()
    assert from_mapping(TABLE, config, what="encoder") == _Tower(3, 7)


def test_lists_become_tuples_so_that_configs_are_hashable() -> None:
    found = construct(_Tower, {"width": 1, "sides": [1, [2, [3]], (4, [5])]}, what="tower")
    assert found.sides == (1, (2, (3,)), (4, (5,)))
    assert hash(found) == hash(construct(_Tower, {"width": 1, "sides": found.sides}, what="x"))


def test_a_mistyped_field_is_an_error() -> None:
    with pytest.raises(ValueError, match=r"unknown field of config.optim 'widht': .*'width'"):
        construct(_Tower, {"widht": 3}, what="config.optim")
    with pytest.raises(ValueError, match="field of encoder 'tower' 'dept': did you mean 'depth'"):
        from_mapping(TABLE, {"name": "tower", "width": 1, "dept": 3}, what="encoder")


def test_a_field_that_is_needed_is_an_error_where_it_is_missing() -> None:
    with pytest.raises(ValueError, match="encoder 'tower' lacks the field 'width'"):
        from_mapping(TABLE, {"name": "tower", "depth": 3}, what="encoder")

    def any_fields(*more: int, width: int, **fields: int) -> int:
        return width + sum(more) + sum(fields.values())

    with pytest.raises(ValueError, match="x lacks the field 'width'"):
        construct(any_fields, {}, what="x")
    assert construct(any_fields, {"width": 3}, what="x") == 3


@pytest.mark.parametrize("name", ["towr", None, 3, ["tower"]])
def test_a_name_that_is_none_is_an_error(name: object) -> None:
    with pytest.raises(ValueError, match=r"unknown encoder .*tower"):
        from_mapping(TABLE, {"name": name}, what="encoder")


def test_a_config_without_a_name_is_an_error() -> None:
    with pytest.raises(ValueError, match=r"unknown encoder '': there are: bridge, tower"):
        from_mapping(TABLE, {"width": 3}, what="encoder")


@dataclasses.dataclass(frozen=True)
class _Bridge:
    name: str
    country: str
    length: int
    towns: tuple[str, ...]
    lanes: Mapping[str, int]

    def __post_init__(self) -> None:
        if self.length < 0:
            raise ValueError(f"field 'length' is {self.length}")


BRIDGES = """
["Stone/old"]
country = "A"
length = 30
towns = ["Upper", "Lower"]
lanes = { foot = 2 }

["Stone/new"]
like = "Stone/old"
length = 40

["Wood"]
like = "Stone/new"
towns = []
lanes = {}
"""


def test_a_table_is_read_in_its_order_and_entries_may_be_like_others(tmp_path: Path) -> None:
    path = tmp_path / "bridges.toml"
    path.write_text(BRIDGES)
    found = read_table(path, _Bridge)
    assert list(found.items()) == [
        ("Stone/old", _Bridge("Stone/old", "A", 30, ("Upper", "Lower"), {"foot": 2})),
        ("Stone/new", _Bridge("Stone/new", "A", 40, ("Upper", "Lower"), {"foot": 2})),
        ("Wood", _Bridge("Wood", "A", 40, (), {})),
    ]


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('country = "A"\n', "", r"Stone/old: the entry lacks the field 'country'$"),
        (
            "length = 30",
            "lenght = 30",
            r"Stone/old: unknown field of the entry 'lenght': .*'length'",
        ),
        ("length = 30", 'length = 30\nname = "B"', r"Stone/old: unknown field of the entry 'name'"),
        ("length = 30", "length = -3", r"Stone/old: field 'length' is -3$"),
        ("length = 30", "length = true", r"Stone/old: field 'length' is True$"),
        ("length = 40", 'length = "40"', r"Stone/new: field 'length' is '40'$"),
        ('"A"', "3", r"Stone/old: field 'country' is 3$"),
        ('"A"', '"""A\nB"""', r"Stone/old: field 'country' is"),
        ('["Upper", "Lower"]', '"Upper"', r"Stone/old: field 'towns' is 'Upper'"),
        ('"Lower"]', "2]", r"Stone/old: field 'towns' is \['Upper', 2\]"),
        ('like = "Stone/old"', 'like = "Wood"', r"Stone/new: like='Wood' names no entry above it"),
        ('like = "Stone/old"', 'like = ["Stone/old"]', r"Stone/new: like=\['Stone/old'\] names no"),
        ('\n["Stone/old"]', 'x = 1\n["Stone/old"]', r"x: no entry; begin entries by"),
        ('["Wood"]', '["Stone/old"]', r"no TOML"),
        ("towns = []", "towns = ", r"no TOML"),
    ],
)
def test_what_is_wrong_with_a_table_is_said_with_entry_and_field(
    tmp_path: Path, old: str, new: str, message: str
) -> None:
    path = tmp_path / "bridges.toml"
    assert BRIDGES.count(old) == 1
    path.write_text(BRIDGES.replace(old, new))
    with pytest.raises(ValueError, match=message) as caught:
        read_table(path, _Bridge)
    assert str(caught.value).startswith(f"{path}: ") and "\n" not in str(caught.value)
