"""Noun phrases, and the objects of a scene graph that they mean.

A phrase has an answer only if it is clear by a margin: a place needs a gap to the next candidate, a size
a ratio of areas, an absence a reason. Otherwise its answer is `None`, and no expression uses it.
"""

import dataclasses
import functools

from input_pipeline.datasets.scenes.graph import ObjectNode, SceneGraph
from input_pipeline.datasets.scenes.kinds import KINDS

#: Least distance (share of the image side) at which an object is left of, right of, above or below
#: another. An object is in a half of the image if it is half of that away from the middle.
GAP = 0.12
#: Least ratio of areas at which an object is larger than another.
RATIO = 1.5

#: Words of a place -> axis, and direction along it (1: towards the right or the bottom).
PLACES = {
    "on the left": ("x", -1),
    "on the right": ("x", 1),
    "at the top": ("y", -1),
    "at the bottom": ("y", 1),
}
#: Word of a size -> 1 for the greatest area, -1 for the least.
SIZES = {"largest": 1, "smallest": -1}
#: Words of a relation to another object -> axis and direction, as in `PLACES`.
RELATIONS = {
    "left of": ("x", -1),
    "right of": ("x", 1),
    "above": ("y", -1),
    "below": ("y", 1),
}


@dataclasses.dataclass(frozen=True)
class Answer:
    """What an expression means in a scene.

    Attributes:
        targets: indices of the targets, empty if nothing matches.
        form: name out of `refseg_jax.batch.ABSENCES`: why nothing matches; `""` if something does.
    """

    targets: tuple[int, ...]
    form: str = ""


@dataclasses.dataclass(frozen=True)
class Phrase:
    """A phrase "{size} {colour} {kind}" with at most one tail.

    The tails are "{place}", "{relation} the {anchor}", "that is not {not_colour}", "with a {having}" and
    "without a {lacking}". Words that are not said are `""`.

    Attributes:
        kind, colour, not_colour: names out of `kinds.KINDS` and `kinds.COLOURS`.
        size: key of `SIZES`.
        place: key of `PLACES`.
        relation: key of `RELATIONS`.
        anchor: the kind to which `relation` refers. The phrase has an answer only in scenes with exactly
            one object of it.
        having, lacking: name of an extra of the kind.
    """

    kind: str
    colour: str = ""
    size: str = ""
    place: str = ""
    relation: str = ""
    anchor: str = ""
    not_colour: str = ""
    having: str = ""
    lacking: str = ""

    def words(self) -> str:
        """The phrase in words, without the article in front."""
        return " ".join(w for w in (self.size, self.colour, self.kind, self._tail()) if w)

    def wording(self) -> str:
        """The phrase with its words replaced by their roles, e.g. `"COLOUR KIND PLACE"`."""
        said = [field for field in _FIELDS if getattr(self, field)]
        return _wording(tuple(said))

    def answer(self, graph: SceneGraph) -> Answer | None:
        """The object that the phrase means, or why it means none; `None` if that is not clear."""
        found = graph.select(self.kind)
        if not found:
            return Answer((), "kind")
        if self.colour:
            found = graph.select(self.kind, self.colour)
            if not found:
                return Answer((), "attribute")
        if self.relation:
            return self._related(graph, found)
        if self.place:
            return _placed(graph, found, self.place)
        if self.size:
            return _one(_largest(graph, found, SIZES[self.size]))
        if self.not_colour:
            return _one(
                [i for i in found if graph.objects[i].colour != self.not_colour], "negation"
            )
        if self.having or self.lacking:
            return self._equipped(graph, found)
        return _one(found)

    def meaning(self, graph: SceneGraph) -> int | None:
        """Index of the object that the phrase clearly means, or `None`."""
        answer = self.answer(graph)
        return answer.targets[0] if answer and answer.targets else None

    def _tail(self) -> str:
        if self.relation:
            return f"{self.relation} the {self.anchor}"
        if self.not_colour:
            return f"that is not {self.not_colour}"
        if self.having:
            return f"with a {self.having}"
        return f"without a {self.lacking}" if self.lacking else self.place

    def _related(self, graph: SceneGraph, found: list[int]) -> Answer | None:
        anchors = graph.select(self.anchor)
        if len(anchors) != 1:
            return None
        axis, sign = RELATIONS[self.relation]
        anchor = graph.objects[anchors[0]]
        ahead = [sign * (at(graph.objects[i], axis) - at(anchor, axis)) for i in found]
        # A candidate at nearly the position of the anchor makes the relation unclear.
        if any(abs(distance) < GAP for distance in ahead):
            return None
        return _one([i for i, far in zip(found, ahead, strict=True) if far > 0], "relation")

    def _equipped(self, graph: SceneGraph, found: list[int]) -> Answer | None:
        worn = [has(graph.objects[i], self.having or self.lacking) for i in found]
        if None in worn:
            return None
        wanted = bool(self.having)
        fitting = [i for i, there in zip(found, worn, strict=True) if there == wanted]
        return _one(fitting, "part" if wanted else "negation")


_FIELDS = tuple(field.name for field in dataclasses.fields(Phrase))


@functools.cache
def _wording(said: tuple[str, ...]) -> str:
    roles = {"not_colour": "COLOUR", "having": "PART", "lacking": "PART", "anchor": "KIND"}
    return Phrase(**{field: roles.get(field, field.upper()) for field in said}).words()


def has(node: ObjectNode, part: str) -> bool | None:
    """Whether an object has a part; `None` if it does, but too little of it is visible."""
    there = [p for p in node.parts if p.name == part]
    return (there[0].target >= 0 or None) if there else False


def half(graph: SceneGraph, found: list[int], place: str) -> tuple[int, ...] | None:
    """Which of some objects are in a half of the image; `None` if one of them is near the middle.

    Args:
        graph: the scene graph.
        found: indices of the objects.
        place: key of `PLACES` that names the half.
    """
    axis, sign = PLACES[place]
    beyond = [sign * (at(graph.objects[i], axis) - 0.5) for i in found]
    if any(abs(distance) < GAP / 2 for distance in beyond):
        return None
    return tuple(i for i, distance in zip(found, beyond, strict=True) if distance > 0)


def plural(kind: str) -> str:
    """The plural of a kind's name."""
    return KINDS[kind].plural


def at(node: ObjectNode, axis: str) -> float:
    """The position of an object along the axis `"x"` or `"y"`."""
    return node.x if axis == "x" else node.y


def _one(found: list[int], form: str = "") -> Answer | None:
    """The answer if one object fits; if none does, the absence of that form, or unclear for `""`."""
    if found:
        return Answer((found[0],)) if len(found) == 1 else None
    return Answer((), form) if form else None


def _placed(graph: SceneGraph, found: list[int], place: str) -> Answer | None:
    """The outermost object, if it is in that half too; none, if a single candidate is in the other."""
    axis, sign = PLACES[place]
    order = sorted(found, key=lambda i: sign * at(graph.objects[i], axis))
    beyond = [sign * (at(graph.objects[i], axis) - 0.5) for i in order]
    if len(order) == 1 and beyond[0] <= -GAP / 2:
        return Answer((), "place")
    if beyond[-1] < GAP / 2 or (len(order) > 1 and beyond[-1] - beyond[-2] < GAP):
        return None
    kind = graph.objects[order[-1]].kind
    # "The fish on the left" could mean all fish in that half of the image.
    if plural(kind) == kind and sum(distance > -GAP / 2 for distance in beyond) > 1:
        return None
    return Answer((order[-1],))


def _largest(graph: SceneGraph, found: list[int], sign: int) -> list[int]:
    """The largest (`sign` 1) or smallest (-1) object, if it is so by `RATIO`, else nothing.

    A partly hidden object may only seem small. The visible area of the largest is therefore compared
    with the whole areas of the others, and the whole area of the smallest with their visible areas.
    """
    if len(found) < 2:
        return []
    nodes = graph.objects
    if sign > 0:
        best = max(found, key=lambda i: nodes[i].area)
        rest = max(nodes[i].full_area for i in found if i != best)
        return [best] if nodes[best].area >= RATIO * rest else []
    best = min(found, key=lambda i: nodes[i].full_area)
    rest = min(nodes[i].area for i in found if i != best)
    return [best] if rest >= RATIO * nodes[best].full_area else []
