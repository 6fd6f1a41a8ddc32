"""Makes the expressions of a scene from its graph."""

import dataclasses
from collections.abc import Iterator

import numpy as np

from input_pipeline.datasets.scenes import phrases
from input_pipeline.datasets.scenes.config import ScenesConfig
from input_pipeline.datasets.scenes.graph import SceneGraph
from input_pipeline.datasets.scenes.kinds import COLOURS, KINDS
from input_pipeline.datasets.scenes.phrases import PLACES, RELATIONS, SIZES, Phrase

Rng = np.random.Generator

_NUMBERS = {2: "two", 3: "three", 4: "four", 5: "five"}


@dataclasses.dataclass(frozen=True)
class Said:
    """An expression of a scene.

    Attributes:
        text: the words.
        targets: indices of the scene's targets.
        granularity: name out of `refseg_jax.batch.GRANULARITIES`.
        referent: number of the thing that the text describes, as in `Expression`.
    """

    text: str
    targets: tuple[int, ...]
    granularity: str
    referent: int


def describe(graph: SceneGraph, config: ScenesConfig, rng: Rng) -> list[Said]:
    """Makes the expressions of a scene, with a random choice of referents and wordings.

    Objects with another one of their kind in the scene come first, because their kind alone does not
    determine them.

    Args:
        graph: the scene graph.
        config: settings of the build, which limit the number of expressions.
        rng: source of randomness.
    """
    drafts: list[tuple[str, tuple[int, ...], list[str]]] = []
    order = [int(i) for i in rng.permutation(len(graph.objects))]
    order.sort(key=lambda i: not _has_twin(graph, i))
    spoken = [i for i in order if _wordings(graph, i)]
    for index in spoken[: config.object_referents]:
        texts = [f"the {p.words()}" for p in _wordings(graph, index)]
        drafts.append(("object", (graph.objects[index].target,), texts))
    drafts += _parts(graph, spoken, config, rng)
    for granularity, found in (
        ("multi", list(_several(graph))),
        ("category", list(_categories(graph))),
        ("none", list(_deceptive(graph))),
    ):
        picked = [found[i] for i in rng.permutation(len(found))[:2]]
        drafts += [(granularity, targets, [text]) for text, targets in picked]
    star = phrases.salient(graph)
    if star is not None:
        drafts.append(("salient", (graph.objects[star].target,), ["the most salient object"]))
    said = []
    for referent, (granularity, targets, texts) in enumerate(drafts):
        for place in rng.permutation(len(texts))[: config.wordings]:
            said.append(Said(texts[place], targets, granularity, referent))
    return said


def _has_twin(graph: SceneGraph, index: int) -> bool:
    return len(list(graph.select(graph.objects[index].kind))) > 1


def _wordings(graph: SceneGraph, index: int) -> list[Phrase]:
    """Phrases that mean this object, without those whose colour or place is superfluous."""
    node = graph.objects[index]
    others = sorted({o.kind for o in graph.objects} - {node.kind})
    candidates = [Phrase(node.kind), Phrase(node.kind, node.colour)]
    if _has_twin(graph, index):
        candidates += [Phrase(node.kind, place=place) for place in PLACES]
        candidates += [Phrase(node.kind, size=size) for size in SIZES]
        candidates += [Phrase(node.kind, node.colour, place=place) for place in PLACES]
        candidates += [
            Phrase(node.kind, relation=relation, anchor=anchor)
            for relation in RELATIONS
            for anchor in others
        ]
    meant = [p for p in candidates if p.meaning(graph) == index]
    plain = {(p.kind, p.place) for p in meant if not p.colour}
    sure = Phrase(node.kind, node.colour) in meant
    # "the red car on the left" says too much if "the red car" or "the car on the left" is enough.
    return [p for p in meant if not (p.colour and p.place and (sure or (p.kind, p.place) in plain))]


def _parts(
    graph: SceneGraph, spoken: list[int], config: ScenesConfig, rng: Rng
) -> Iterator[tuple[str, tuple[int, ...], list[str]]]:
    found = [
        (index, part) for index in spoken for part in graph.objects[index].parts if part.target >= 0
    ]
    order = sorted(rng.permutation(len(found)), key=lambda i: not _has_twin(graph, found[i][0]))
    for place in order[: config.part_referents]:
        index, part = found[place]
        texts = [f"the {part.name} of the {p.words()}" for p in _wordings(graph, index)]
        yield "part", (part.target,), texts


def _several(graph: SceneGraph) -> Iterator[tuple[str, tuple[int, ...]]]:
    kinds = sorted({o.kind for o in graph.objects})
    everything = tuple(o.target for o in graph.objects)
    for kind in kinds:
        indices = list(graph.select(kind))
        targets = _targets(graph, indices)
        if len(indices) in _NUMBERS:
            yield f"the {_NUMBERS[len(indices)]} {phrases.plural(kind)}", targets
        if len(indices) == 2:
            yield f"both {phrases.plural(kind)}", targets
        # "the fish on the left" would be understood as a single fish.
        for place in PLACES if phrases.plural(kind) != kind else ():
            side = phrases.on_side(graph, kind, place)
            if side and 1 < len(side) < len(indices):
                yield f"the {phrases.plural(kind)} {place}", _targets(graph, list(side))
        if len(indices) == 1 and len(everything) > 2:
            rest = tuple(t for t in everything if t not in targets)
            yield f"everything except the {kind}", rest
    for colour in sorted({o.colour for o in graph.objects}):
        indices = list(graph.select(colour=colour))
        if len(indices) > 1:
            yield f"the {colour} things", _targets(graph, indices)
    for one in range(len(graph.objects)):
        for two in range(one + 1, len(graph.objects)):
            first, second = graph.objects[one], graph.objects[two]
            pair = [Phrase(o.kind, o.colour) for o in (first, second)]
            if first.kind != second.kind and [p.meaning(graph) for p in pair] == [one, two]:
                text = f"the {pair[0].words()} and the {pair[1].words()}"
                yield text, _targets(graph, [one, two])


def _categories(graph: SceneGraph) -> Iterator[tuple[str, tuple[int, ...]]]:
    for kind in sorted({o.kind for o in graph.objects}):
        yield f"all {phrases.plural(kind)}", _targets(graph, list(graph.select(kind)))


def _deceptive(graph: SceneGraph) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Expressions without a target: the image has the kind, but not in this colour."""
    for kind in sorted({o.kind for o in graph.objects}):
        for colour in COLOURS:
            if colour in KINDS[kind].colours and not list(graph.select(kind, colour)):
                yield f"the {colour} {kind}", ()


def _targets(graph: SceneGraph, indices: list[int]) -> tuple[int, ...]:
    return tuple(graph.objects[i].target for i in indices)
