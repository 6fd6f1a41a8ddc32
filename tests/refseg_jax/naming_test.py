"""Mistyped names: the message names the nearest."""

import dataclasses
from collections.abc import Callable

import ml_collections
import pytest

from refseg_jax.naming import construct, from_mapping, unknown


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


@pytest.mark.parametrize("name", ["towr", None, 3, ["tower"]])
def test_a_name_that_is_none_is_an_error(name: object) -> None:
    with pytest.raises(ValueError, match=r"unknown encoder .*tower"):
        from_mapping(TABLE, {"name": name}, what="encoder")


def test_a_config_without_a_name_is_an_error() -> None:
    with pytest.raises(ValueError, match=r"unknown encoder '': there are: bridge, tower"):
        from_mapping(TABLE, {"width": 3}, what="encoder")
