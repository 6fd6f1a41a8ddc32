"""What words mean in a scene: phrases, and the objects of the graph that they pick out.

A phrase is only said where it is plain: a place word needs a clear gap to the next candidate, a size
word a clear ratio of areas. Where that is not so, a phrase means nothing (`None`).
"""

import dataclasses

from input_pipeline.datasets.scenes.graph import ObjectNode, SceneGraph
from input_pipeline.datasets.scenes.kinds import KINDS

#: Least difference of positions (share of the image side) for one object to be left of another.
GAP = 0.12
#: Least ratio of areas for one object to be larger than another.
RATIO = 1.5
#: Least ratio of areas for one object to be the salient one.
SALIENT_RATIO = 2.0

PLACES = {
    "on the left": ("x", -1),
    "on the right": ("x", 1),
    "at the top": ("y", -1),
    "at the bottom": ("y", 1),
}
SIZES = {"largest": 1, "smallest": -1}
RELATIONS = {
    "left of": ("x", -1),
    "right of": ("x", 1),
    "above": ("y", -1),
    "below": ("y", 1),
}


@dataclasses.dataclass(frozen=True)
class Phrase:
    """ "the {size} {colour} {kind} {place}" or "the {colour} {kind} {relation} the {anchor}".

    Attributes:
        kind, colour, size, place, relation, anchor: `""` where not said; the anchor is a kind of
            which the scene has one.
    """

    kind: str
    colour: str = ""
    size: str = ""
    place: str = ""
    relation: str = ""
    anchor: str = ""

    def words(self) -> str:
        """Without an article."""
        tail = f"{self.relation} the {self.anchor}" if self.relation else self.place
        return " ".join(w for w in (self.size, self.colour, self.kind, tail) if w)

    def meaning(self, graph: SceneGraph) -> int | None:
        """The object that is meant, or `None` where that is not plain."""
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
        # A candidate about level with the anchor makes the word unclear.
        if any(abs(distance) < GAP for distance in ahead):
            return []
        return [i for i, distance in zip(candidates, ahead, strict=True) if distance > 0]


def salient(graph: SceneGraph) -> int | None:
    """The object that is in front of all and plainly larger than every other."""
    order = sorted(range(len(graph.objects)), key=lambda i: graph.objects[i].area)
    if len(order) < 2:
        return None
    first, second = graph.objects[order[-1]], graph.objects[order[-2]]
    plain = first.depth == 0 and first.area >= SALIENT_RATIO * second.area
    return order[-1] if plain else None


def on_side(graph: SceneGraph, kind: str, place: str) -> tuple[int, ...] | None:
    """All objects of a kind in that half of the image; `None` if one is near the middle."""
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
    """Whether "the fish on the left" could be heard as all those in that half of the image."""
    beyond = [sign * (_at(graph.objects[i], axis) - 0.5) for i in candidates]
    return sum(distance > -GAP / 2 for distance in beyond) > 1


def _largest(graph: SceneGraph, candidates: list[int], sign: int) -> list[int]:
    """By visible area for "largest"; for "smallest" a hidden object could only seem so, hence the
    whole area of the smallest against the visible areas of the others (and the other way round).
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
