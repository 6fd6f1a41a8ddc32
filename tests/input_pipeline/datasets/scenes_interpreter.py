"""A slow interpreter of the sentences of Scenes, against which the builder is checked.

It implements the English meaning of the sentences, with its own words and limits, reads the stored JSON,
and shares no code with the builder. An ambiguous sentence ("the car on the left" if two cars are hardly
apart) has several readings; the builder must never make one.

Positions are integers, in thousandths of the image side, and ratios are compared by products, so that no
rounding affects the comparison.
"""

import dataclasses
import itertools
import re
from collections.abc import Callable, Iterable
from typing import Any, TypeAlias

Thing: TypeAlias = dict[str, Any]
#: Sets of targets that a sentence may mean: one set if it is unambiguous. An empty set means "nothing".
Readings: TypeAlias = set[frozenset[int]]

# Least distance between "left" and "right", least ratio of areas of "larger", half width of the band
# that counts as the middle, and least ratio of areas of a salient object. Distances are in thousandths.
APART, LARGER, MIDDLE, STANDS_OUT = 120, (3, 2), 60, 2

KINDS = [
    *("car", "house", "tree", "boat", "fish", "bird"),
    *("plane", "cup", "lamp", "robot", "mushroom", "flower"),
]
PLURALS = {"fish" if kind == "fish" else f"{kind}s": kind for kind in KINDS}
COLOURS = ["red", "orange", "yellow", "green", "blue", "purple", "white", "black"]
COUNTS = {"both": 2, "the two": 2, "the three": 3, "the four": 4, "the five": 5}
#: Words of a direction -> (axis, sign); y points down.
DIRECTIONS = {
    "on the left": ("x", -1), "left of": ("x", -1),
    "on the right": ("x", 1), "right of": ("x", 1),
    "at the top": ("y", -1), "above": ("y", -1),
    "at the bottom": ("y", 1), "below": ("y", 1),
}  # fmt: skip


def _one_of(words: Iterable[str]) -> str:
    return "(" + "|".join(words) + ")"


_PLACES = [words for words in DIRECTIONS if words.startswith(("on ", "at "))]
_RELATIONS = [words for words in DIRECTIONS if words not in _PLACES]
_NOUN = re.compile(
    rf"the (?:{_one_of(['largest', 'smallest'])} )?(?:{_one_of(COLOURS)} )?{_one_of(KINDS)}"
    rf"(?: {_one_of(_PLACES)}| {_one_of(_RELATIONS)} the {_one_of(KINDS)})?"
)


@dataclasses.dataclass(frozen=True)
class Understood:
    """Granularity of a sentence (out of `GRANULARITIES`, but not `group`), and its readings."""

    granularity: str
    readings: Readings


def understand(text: str, scene: dict[str, Any]) -> Understood:
    """Interprets a sentence about a stored scene graph.

    Raises:
        ValueError: the sentence is unknown, or presupposes something false ("both cars" if there are
            three).
    """
    things: list[Thing] = scene["objects"]
    for pattern, hear in _SENTENCES:
        match = re.fullmatch(pattern, text)
        if match:
            return hear(things, *match.groups())
    if _NOUN.fullmatch(text):
        readings = {_targets(meant) for meant in _noun(things, text)}
        return Understood("none" if readings == {frozenset()} else "object", readings)
    raise ValueError(f"{text!r} is no sentence of Scenes")


def _targets(meant: Iterable[Thing]) -> frozenset[int]:
    return frozenset(thing["target"] for thing in meant)


def _assume(fact: bool, what: str) -> None:
    if not fact:
        raise ValueError(f"it is taken for granted that {what}")


def _of(things: list[Thing], kind: str) -> list[Thing]:
    return [thing for thing in things if thing["kind"] == kind]


def _at(thing: Thing, axis: str) -> int:
    return round(1000 * thing[axis])


def _noun(things: list[Thing], text: str, *, plural: bool = True) -> list[list[Thing]]:
    """Readings of a singular noun phrase; with `plural`, "the fish" may also be several."""
    match = _NOUN.fullmatch(text)
    if not match:
        raise ValueError(f"{text!r} is no noun phrase")
    size, colour, kind, place, relation, anchor = match.groups()
    fitting = [thing for thing in _of(things, kind) if colour in (None, thing["colour"])]
    if relation:
        return _related(fitting, things, relation, anchor)
    if size:
        return [[thing] for thing in _extreme(fitting, size == "largest")]
    if place:
        meant = [[thing] for thing in _outermost(fitting, *DIRECTIONS[place])]
        inside, _ = _half(fitting, *DIRECTIONS[place])
        return [*meant, inside] if plural and kind in PLURALS and len(inside) > 1 else meant
    return [[thing] for thing in fitting] or [[]]


def _outermost(fitting: list[Thing], axis: str, towards: int) -> list[Thing]:
    """Things for which no other thing is clearly farther in that direction."""
    _assume(len(fitting) > 1, "there are several to choose from")
    return [
        one
        for one in fitting
        if all(towards * (_at(other, axis) - _at(one, axis)) < APART for other in fitting)
    ]


def _extreme(fitting: list[Thing], largest: bool) -> list[Thing]:
    """Things that no other thing clearly exceeds, however their hidden pixels are counted."""
    _assume(len(fitting) > 1, "there are several to choose from")

    def larger(one: Thing, other: Thing) -> bool:
        return LARGER[1] * one["area"] >= LARGER[0] * other["full_area"]

    return [
        one
        for one in fitting
        if not any(larger(other, one) if largest else larger(one, other) for other in fitting)
    ]


def _related(
    fitting: list[Thing], things: list[Thing], relation: str, anchor: str
) -> list[list[Thing]]:
    """Readings: each thing that is clearly beyond the anchor, or at about its position."""
    anchors = _of(things, anchor)
    _assume(len(anchors) == 1, f"there is one {anchor}")
    axis, towards = DIRECTIONS[relation]
    ahead = [towards * (_at(thing, axis) - _at(anchors[0], axis)) for thing in fitting]
    sure = [[t] for t, distance in zip(fitting, ahead, strict=True) if distance >= APART]
    level = [[t] for t, distance in zip(fitting, ahead, strict=True) if abs(distance) < APART]
    return sure + level if sure else [[], *level]


def _half(fitting: list[Thing], axis: str, towards: int) -> tuple[list[Thing], list[Thing]]:
    """Things clearly in that half of the image, and things close to the middle."""
    beyond = [(towards * (_at(thing, axis) - 500), thing) for thing in fitting]
    inside = [thing for distance, thing in beyond if distance >= MIDDLE]
    return inside, [thing for distance, thing in beyond if abs(distance) < MIDDLE]


def _salient(things: list[Thing]) -> Understood:
    found = [
        one
        for one in things
        if all(other is one or other["area"] < STANDS_OUT * one["area"] for other in things)
    ]
    nearest = [thing for thing in things if thing["depth"] == 0]
    return Understood("salient", {_targets([thing]) for thing in found + nearest})


def _except(things: list[Thing], kind: str) -> Understood:
    _assume(len(_of(things, kind)) == 1, f"there is one {kind}")
    rest = [thing for thing in things if thing["kind"] != kind]
    return Understood("multi", {_targets(rest)})


def _all(things: list[Thing], plural: str) -> Understood:
    return Understood("category", {_targets(_of(things, PLURALS[plural]))})


def _counted(things: list[Thing], count: str, plural: str) -> Understood:
    found = _of(things, PLURALS[plural])
    _assume(len(found) == COUNTS[count], f"there are {count} {plural}")
    return Understood("multi", {_targets(found)})


def _coloured(things: list[Thing], colour: str) -> Understood:
    found = [thing for thing in things if thing["colour"] == colour]
    _assume(len(found) > 1, f"there are several {colour} things")
    return Understood("multi", {_targets(found)})


def _both(things: list[Thing], first: str, second: str) -> Understood:
    pairs = itertools.product(_noun(things, first), _noun(things, second))
    return Understood("multi", {_targets(one + other) for one, other in pairs})


def _part(things: list[Thing], name: str, whole: str) -> Understood:
    readings = set()
    for meant in _noun(things, whole, plural=name.endswith("s")):
        _assume(bool(meant), f"there is {whole}")
        found = [part for thing in meant for part in thing["parts"] if part["name"] == name]
        _assume(len(found) == len(meant), f"{whole} has {name}")
        _assume(all(part["target"] >= 0 for part in found), f"{name} can be seen")
        readings.add(_targets(found))
    return Understood("part", readings)


def _placed(things: list[Thing], plural: str, place: str) -> Understood:
    inside, unclear = _half(_of(things, PLURALS[plural]), *DIRECTIONS[place])
    _assume(len(inside) > 1, f"there are several {plural} {place}")
    return Understood("multi", {_targets(inside), _targets(inside + unclear)})


_MANY = _one_of(PLURALS)
_SENTENCES: list[tuple[str, Callable[..., Understood]]] = [
    ("the most salient object", _salient),
    (f"everything except the {_one_of(KINDS)}", _except),
    (f"all {_MANY}", _all),
    (f"{_one_of(COUNTS)} {_MANY}", _counted),
    (f"the {_one_of(COLOURS)} things", _coloured),
    (r"(the \w+ \w+) and (the \w+ \w+)", _both),
    (r"the (\w+) of (the .+)", _part),
    (f"the {_one_of(PLURALS.keys() - set(KINDS))} {_one_of(_PLACES)}", _placed),
]
