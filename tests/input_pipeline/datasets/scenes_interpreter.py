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
#: Things that a noun phrase may mean, and why it means none (out of `ABSENCES`; `""` if it means some).
Heard: TypeAlias = tuple[list[Thing], str]

# Least distance between "left" and "right", least ratio of areas of "larger", half width of the band
# that counts as the middle, and least ratio of areas of a salient object. Distances are in thousandths.
APART, LARGER, MIDDLE, STANDS_OUT = 120, (3, 2), 60, 2

KINDS = [
    *("car", "house", "tree", "boat", "fish", "bird"),
    *("plane", "cup", "lamp", "robot", "mushroom", "flower"),
]
PLURALS = {"fish" if kind == "fish" else f"{kind}s": kind for kind in KINDS}
#: Parts that only some things of a kind have. All other parts are always there.
EXTRAS = {
    *(("car", "roof rack"), ("house", "flag"), ("boat", "flag"), ("bird", "hat")),
    *(("cup", "lid"), ("robot", "hat"), ("tree", "nest")),
}
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
_EXTRA = _one_of(sorted({part for _, part in EXTRAS}))
_NOUN = re.compile(
    rf"the (?:{_one_of(['largest', 'smallest'])} )?(?:{_one_of(COLOURS)} )?{_one_of(KINDS)}"
    rf"(?: {_one_of(_PLACES)}| {_one_of(_RELATIONS)} the {_one_of(KINDS)}"
    rf"| that is not {_one_of(COLOURS)}| (with|without) a {_EXTRA})?"
)


@dataclasses.dataclass(frozen=True)
class Understood:
    """Granularity of a sentence (out of `GRANULARITIES`, but not `group`), and its readings.

    If nothing matches, the granularity is `"none"`, and the form (out of `ABSENCES`) says why.
    """

    granularity: str
    readings: Readings
    form: str = ""


def understand(text: str, scene: dict[str, Any]) -> Understood:
    """Interprets a sentence about a stored scene graph.

    Raises:
        ValueError: the sentence is unknown, or presupposes something false ("the largest car" if there
            is one car).
    """
    things: list[Thing] = scene["objects"]
    for pattern, granularity, hear in _SENTENCES:
        match = re.fullmatch(pattern, text)
        if match:
            return _understood(granularity, hear(things, *match.groups()))
    if _NOUN.fullmatch(text):
        return _understood("object", [(_targets(meant), why) for meant, why in _noun(things, text)])
    raise ValueError(f"{text!r} is no sentence of Scenes")


def _understood(granularity: str, heard: list[tuple[frozenset[int], str]]) -> Understood:
    readings = {targets for targets, _ in heard}
    if readings != {frozenset()}:
        return Understood(granularity, readings)
    (form,) = {why for _, why in heard}
    return Understood("none", readings, form)


def _targets(meant: Iterable[Thing]) -> frozenset[int]:
    return frozenset(thing["target"] for thing in meant)


def _assume(fact: bool, what: str) -> None:
    if not fact:
        raise ValueError(f"it is taken for granted that {what}")


def _of(things: list[Thing], kind: str) -> list[Thing]:
    return [thing for thing in things if thing["kind"] == kind]


def _at(thing: Thing, axis: str) -> int:
    return round(1000 * thing[axis])


def _noun(things: list[Thing], text: str, *, plural: bool = True) -> list[Heard]:
    """Readings of a singular noun phrase; with `plural`, "the fish" may also be several."""
    match = _NOUN.fullmatch(text)
    if not match:
        raise ValueError(f"{text!r} is no noun phrase")
    size, colour, kind, place, relation, anchor, not_colour, with_or_without, part = match.groups()
    if not _of(things, kind):
        return [([], "kind")]
    fitting = [thing for thing in _of(things, kind) if colour in (None, thing["colour"])]
    if not fitting:
        return [([], "attribute")]
    if relation:
        return _related(fitting, things, relation, anchor)
    if size:
        return [([thing], "") for thing in _extreme(fitting, size == "largest")]
    if place:
        meant = _outermost(fitting, *DIRECTIONS[place])
        inside, _ = _half(fitting, *DIRECTIONS[place])
        return [*meant, (inside, "")] if plural and kind in PLURALS and len(inside) > 1 else meant
    if not_colour:
        others = [thing for thing in fitting if thing["colour"] != not_colour]
        return [([thing], "") for thing in others] or [([], "negation")]
    if part:
        return _equipped(fitting, with_or_without == "with", part)
    return [([thing], "") for thing in fitting]


def _part_of(thing: Thing, name: str) -> Thing | None:
    """A part that is there, visible or not."""
    found = [part for part in thing["parts"] if part["name"] == name]
    _assume(bool(found) or (thing["kind"], name) in EXTRAS, f"a {thing['kind']} has {name}")
    return found[0] if found else None


def _equipped(fitting: list[Thing], wanted: bool, name: str) -> list[Heard]:
    """Readings, each of them for every way in which hidden parts may be there or not."""
    sure, unclear = [], []
    for thing in fitting:
        part = _part_of(thing, name)
        if part is not None and part["target"] < 0:
            unclear.append(thing)
        elif (part is not None) == wanted:
            sure.append(thing)
    heard: list[Heard] = [([thing], "") for thing in sure + unclear]
    return heard if sure else [*heard, ([], "part" if wanted else "negation")]


def _outermost(fitting: list[Thing], axis: str, towards: int) -> list[Heard]:
    """Things for which no other is clearly farther in that direction, and nothing if none is there.

    "The car on the left" is false of a car on the right if there is no other. Where the outermost of
    several is not clearly in that half, it may mean that one or nothing.
    """
    found = [
        one
        for one in fitting
        if all(towards * (_at(other, axis) - _at(one, axis)) < APART for other in fitting)
    ]
    beyond = [towards * (_at(thing, axis) - 500) for thing in found]
    if len(fitting) == 1 and beyond[0] <= -MIDDLE:
        return [([], "place")]
    heard: list[Heard] = [([thing], "") for thing in found]
    return heard if min(beyond) >= MIDDLE else [*heard, ([], "place")]


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


def _related(fitting: list[Thing], things: list[Thing], relation: str, anchor: str) -> list[Heard]:
    """Readings: each thing that is clearly beyond the anchor, or at about its position."""
    anchors = _of(things, anchor)
    _assume(len(anchors) == 1, f"there is one {anchor}")
    axis, towards = DIRECTIONS[relation]
    ahead = [towards * (_at(thing, axis) - _at(anchors[0], axis)) for thing in fitting]
    sure = [thing for thing, far in zip(fitting, ahead, strict=True) if far >= APART]
    level = [thing for thing, far in zip(fitting, ahead, strict=True) if abs(far) < APART]
    heard: list[Heard] = [([thing], "") for thing in sure + level]
    return heard if sure else [*heard, ([], "relation")]


def _half(fitting: list[Thing], axis: str, towards: int) -> tuple[list[Thing], list[Thing]]:
    """Things clearly in that half of the image, and things close to the middle."""
    beyond = [(towards * (_at(thing, axis) - 500), thing) for thing in fitting]
    inside = [thing for distance, thing in beyond if distance >= MIDDLE]
    return inside, [thing for distance, thing in beyond if abs(distance) < MIDDLE]


Sentence: TypeAlias = list[tuple[frozenset[int], str]]


def _meant(found: list[Thing], why: str = "") -> Sentence:
    """One reading: the things, or nothing for that reason."""
    _assume(bool(found or why), "there is something")
    return [(_targets(found), "" if found else why)]


def _salient(things: list[Thing]) -> Sentence:
    found = [
        one
        for one in things
        if all(other is one or other["area"] < STANDS_OUT * one["area"] for other in things)
    ]
    nearest = [thing for thing in things if thing["depth"] == 0]
    return [reading for thing in found + nearest for reading in _meant([thing])]


def _except(things: list[Thing], kind: str) -> Sentence:
    _assume(len(_of(things, kind)) == 1, f"there is one {kind}")
    return _meant([thing for thing in things if thing["kind"] != kind])


def _not_colour(things: list[Thing], colour: str) -> Sentence:
    return _meant([thing for thing in things if thing["colour"] != colour], "negation")


def _not_kind(things: list[Thing], kind: str) -> Sentence:
    return _meant([thing for thing in things if thing["kind"] != kind], "negation")


def _all(things: list[Thing], plural: str) -> Sentence:
    return _meant(_of(things, PLURALS[plural]), "kind")


def _counted(things: list[Thing], count: str, plural: str) -> Sentence:
    found = _of(things, PLURALS[plural])
    if found and len(found) != COUNTS[count]:
        return _meant([], "number")
    return _meant(found, "kind")


def _coloured(things: list[Thing], colour: str) -> Sentence:
    found = [thing for thing in things if thing["colour"] == colour]
    _assume(len(found) != 1, f"there are several {colour} things or none")
    return _meant(found, "attribute")


def _both(things: list[Thing], first: str, second: str) -> Sentence:
    heard: Sentence = []
    for (one, why), (other, why_other) in itertools.product(
        _noun(things, first), _noun(things, second)
    ):
        _assume(why == why_other, "both are there, or neither for the same reason")
        heard += _meant(one + other, why)
    return heard


def _part(things: list[Thing], name: str, whole: str) -> Sentence:
    heard: Sentence = []
    for meant, why in _noun(things, whole, plural=name.endswith("s")):
        found = [part for thing in meant if (part := _part_of(thing, name))]
        _assume(len(found) in (0, len(meant)), f"all or none of {whole} have {name}")
        _assume(all(part["target"] >= 0 for part in found), f"{name} can be seen")
        heard += _meant(found, why or "part")
    return heard


def _every_part(things: list[Thing], name: str, plural: str) -> Sentence:
    owners = _of(things, PLURALS[plural])
    found = [part for thing in owners if (part := _part_of(thing, name))]
    _assume(not found or len(found) == len(owners) > 1, f"all {plural} have {name}, or none")
    _assume(all(part["target"] >= 0 for part in found), f"{name} can be seen")
    return _meant(found, "part" if owners else "kind")


def _placed(things: list[Thing], plural: str, place: str) -> Sentence:
    found = _of(things, PLURALS[plural])
    inside, unclear = _half(found, *DIRECTIONS[place])
    _assume(len(inside) != 1, f"there are several {plural} {place} or none")
    why = "place" if found else "kind"
    return _meant(inside, why) + _meant(inside + unclear, why)


_MANY = _one_of(PLURALS)
_SENTENCES: list[tuple[str, str, Callable[..., Sentence]]] = [
    ("the most salient object", "salient", _salient),
    (f"everything except the {_one_of(KINDS)}", "multi", _except),
    (f"everything that is not {_one_of(COLOURS)}", "multi", _not_colour),
    (f"everything that is not a {_one_of(KINDS)}", "multi", _not_kind),
    (f"all {_MANY}", "category", _all),
    (f"{_one_of(COUNTS)} {_MANY}", "multi", _counted),
    (f"the {_one_of(COLOURS)} things", "multi", _coloured),
    (r"(the \w+ \w+) and (the \w+ \w+)", "multi", _both),
    (rf"the (roof rack|\w+) of all {_MANY}", "part", _every_part),
    (r"the (roof rack|\w+) of (the .+)", "part", _part),
    (f"the {_one_of(PLURALS.keys() - set(KINDS))} {_one_of(_PLACES)}", "multi", _placed),
]
