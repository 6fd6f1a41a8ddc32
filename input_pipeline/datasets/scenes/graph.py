"""The scene graph: the objects of an image, with all properties that expressions can mention.

It is stored as JSON in `Record.metadata`, and every expression can be verified by it. Positions are
rounded before expressions are made, so that the stored graph leads to the decisions of the build.
"""

import collections
import dataclasses
import functools
import itertools
import json


@dataclasses.dataclass(frozen=True)
class PartNode:
    """A named part of an object (all its regions of that name together).

    Attributes:
        name: name in expressions, e.g. `"wheels"`.
        area: number of visible pixels.
        target: index in `Record.targets`, or -1 if too little of it is visible.
    """

    name: str
    area: int
    target: int


@dataclasses.dataclass(frozen=True)
class ObjectNode:
    """An object.

    Attributes:
        kind, colour: names out of `kinds.KINDS` and `kinds.COLOURS`.
        x, y: mean of its visible pixels, in [0, 1] from the upper left corner, 3 digits.
        area: number of visible pixels.
        full_area: number of pixels inside the image before occlusion.
        depth: 0 is the nearest; nearer objects cover farther ones.
        target: index in `Record.targets`.
        parts: all parts that were drawn, visible or not; an extra that it does not have is not among
            them.
    """

    kind: str
    colour: str
    x: float
    y: float
    area: int
    full_area: int
    depth: int
    target: int
    parts: tuple[PartNode, ...]

    def part(self, name: str) -> PartNode | None:
        """Its part of that name, or `None` if too little of it is visible."""
        return next((p for p in self.parts if p.name == name and p.target >= 0), None)


@dataclasses.dataclass(frozen=True)
class SceneGraph:
    """All objects of an image, each of which is clearly visible.

    Attributes:
        background: name out of `backgrounds.BACKGROUNDS`.
        image_size: side in pixels.
        objects: in the order of their targets.
    """

    background: str
    image_size: int
    objects: tuple[ObjectNode, ...]

    def select(self, kind: str = "", colour: str = "") -> list[int]:
        """Indices of the objects of a kind and a colour (`""` = any)."""
        return list(self._found.get((kind, colour), ()))

    @functools.cached_property
    def _found(self) -> dict[tuple[str, str], list[int]]:
        found: dict[tuple[str, str], list[int]] = collections.defaultdict(list)
        for index, node in enumerate(self.objects):
            for key in itertools.product(("", node.kind), ("", node.colour)):
                found[key].append(index)
        return found

    def to_json(self) -> str:
        """Compact JSON text."""
        # Not `dataclasses.asdict`, which copies all values and takes as long as an object's drawing.
        objects = [{**vars(o), "parts": [vars(part) for part in o.parts]} for o in self.objects]
        known = {"background": self.background, "image_size": self.image_size, "objects": objects}
        return json.dumps(known, separators=(",", ":"))


def from_json(text: str) -> SceneGraph:
    """The inverse of `SceneGraph.to_json`.

    Raises:
        ValueError: the text is not the JSON of a graph.
    """
    try:
        raw = json.loads(text)
        objects = [
            ObjectNode(**{**o, "parts": tuple(PartNode(**p) for p in o["parts"])})
            for o in raw["objects"]
        ]
        return SceneGraph(raw["background"], raw["image_size"], tuple(objects))
    except (KeyError, TypeError, json.JSONDecodeError) as error:
        raise ValueError(f"not a scene graph: {error}") from error
