"""Phrases for objects, and the objects of a scene graph that they mean.

A phrase has a meaning only if it is unambiguous by a clear margin: a place needs a gap to the next
candidate, a size a ratio of areas. Otherwise its meaning is `None`, and no expression uses it.
"""

import dataclasses

from input_pipeline.datasets.scenes.graph import ObjectNode, SceneGraph
from input_pipeline.datasets.scenes.kinds import KINDS

#: Least distance (share of the image side) at which an object is left of, right of, above or below
#: another.
GAP = 0.12
#: Least ratio of areas at which an object is larger than another.
RATIO = 1.5
#: Least ratio of areas at which the largest object is salient.
SALIENT_RATIO = 2.0

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
class Phrase:
    """A phrase "{size} {colour} {kind} {place}" or "{colour} {kind} {relation} the {anchor}".

    Words that are not said are `""`.

    Attributes:
        kind, colour: names out of `kinds.KINDS` and `kinds.COLOURS`.
        size: key of `SIZES`.
        place: key of `PLACES`.
        relation: key of `RELATIONS`.
        anchor: the kind to which `relation` refers. The phrase has a meaning only in scenes with exactly
            one object of it.
    """

    kind: str
    colour: str = ""
    size: str = ""
    place: str = ""
    relation: str = ""
    anchor: str = ""

    def words(self) -> str:
        """The phrase in words, without the article in front."""
        tail = f"{self.relation} the {self.anchor}" if self.relation else self.place
        return " ".join(w for w in (self.size, self.colour, self.kind, tail) if w)

    def meaning(self, graph: SceneGraph) -> int | None:
        """Index of the object that the phrase means, or `None` if none is meant by a clear margin."""
        candidates = list(graph.select(self.kind, self.colour))
        if self.relation:
            candidates = self._related(graph, candidates)
        if self.size:
            candidates = _largest(graph, candidates, SIZES[self.size])
        if self.place:
            axis, sign = PLACES[self.place]
            if plural(self.kind) == self.kind and _may_be_several(graph, candidates, axis, sign):
                return None
            candidates = _outermost(graph, candidates, axis, sign)
        return candidates[0] if len(candidates) == 1 else None

    def _related(self, graph: SceneGraph, candidates: list[int]) -> list[int]:
        anchors = list(graph.select(self.anchor))
        if len(anchors) != 1:
            return []
        axis, sign = RELATIONS[self.relation]
        anchor = graph.objects[anchors[0]]
        ahead = [sign * (_at(graph.objects[i], axis) - _at(anchor, axis)) for i in candidates]
        # A candidate at nearly the position of the anchor makes the relation unclear.
        if any(abs(distance) < GAP for distance in ahead):
            return []
        return [i for i, distance in zip(candidates, ahead, strict=True) if distance > 0]


def salient(graph: SceneGraph) -> int | None:
    """Index of the object that is in front of all others and clearly larger than each, or `None`."""
    order = sorted(range(len(graph.objects)), key=lambda i: graph.objects[i].area)
    if len(order) < 2:
        return None
    first, second = graph.objects[order[-1]], graph.objects[order[-2]]
    plain = first.depth == 0 and first.area >= SALIENT_RATIO * second.area
    return order[-1] if plain else None


def on_side(graph: SceneGraph, kind: str, place: str) -> tuple[int, ...] | None:
    """Indices of the objects of a kind in one half of the image; `None` if one is near the middle.

    Args:
        graph: the scene graph.
        kind: name of the kind.
        place: key of `PLACES` that names the half.
    """
    axis, sign = PLACES[place]
    found = []
    for index in graph.select(kind):
        distance = sign * (_at(graph.objects[index], axis) - 0.5)
        if abs(distance) < GAP / 2:
            return None
        if distance > 0:
            found.append(index)
    return tuple(found)


def plural(kind: str) -> str:
    """The plural of a kind's name."""
    return KINDS[kind].plural


def _at(node: ObjectNode, axis: str) -> float:
    return node.x if axis == "x" else node.y


def _outermost(graph: SceneGraph, candidates: list[int], axis: str, sign: int) -> list[int]:
    if len(candidates) < 2:
        return []
    order = sorted(candidates, key=lambda i: sign * _at(graph.objects[i], axis))
    first, second = (sign * _at(graph.objects[i], axis) for i in (order[-1], order[-2]))
    return [order[-1]] if first - second >= GAP else []


def _may_be_several(graph: SceneGraph, candidates: list[int], axis: str, sign: int) -> bool:
    """Whether "the fish on the left" could mean all fish in that half of the image."""
    beyond = [sign * (_at(graph.objects[i], axis) - 0.5) for i in candidates]
    return sum(distance > -GAP / 2 for distance in beyond) > 1


def _largest(graph: SceneGraph, candidates: list[int], sign: int) -> list[int]:
    """The largest (`sign` 1) or smallest (-1) candidate, if it is so by `RATIO`, else nothing.

    A partly hidden object may only seem small. The visible area of the largest is therefore compared
    with the whole areas of the others, and the whole area of the smallest with their visible areas.
    """
    if len(candidates) < 2:
        return []
    nodes = graph.objects
    if sign > 0:
        best = max(candidates, key=lambda i: nodes[i].area)
        rest = max(nodes[i].full_area for i in candidates if i != best)
        return [best] if nodes[best].area >= RATIO * rest else []
    best = min(candidates, key=lambda i: nodes[i].full_area)
    rest = min(nodes[i].area for i in candidates if i != best)
    return [best] if rest >= RATIO * nodes[best].full_area else []
