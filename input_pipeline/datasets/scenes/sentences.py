"""The sentences of Scenes: which ones a scene suggests, and what each means in any scene."""

import dataclasses
import functools
from collections.abc import Callable, Iterator, Sequence

from input_pipeline.datasets.scenes import phrases
from input_pipeline.datasets.scenes.graph import SceneGraph
from input_pipeline.datasets.scenes.kinds import KINDS, NOVEL_EXTRA
from input_pipeline.datasets.scenes.phrases import PLACES, RELATIONS, SIZES, Answer, Phrase, plural

#: Least ratio of areas at which the largest object is salient.
SALIENT_RATIO = 2.0

_NUMBERS = {2: "two", 3: "three", 4: "four", 5: "five"}


@dataclasses.dataclass(frozen=True)
class Sentence:
    """A sentence that can be asked of any scene.

    Attributes:
        text: the words.
        wording: the text with its words replaced by their roles, e.g. `"the COLOUR KIND"`.
        granularity: name out of `refseg_jax.batch.GRANULARITIES`, where something matches.
        answer: the targets that it means in a scene, or why it means none; `None` if that is not clear.
    """

    text: str
    wording: str
    granularity: str
    answer: Callable[[SceneGraph], Answer | None]


@functools.lru_cache(maxsize=64)
def of_object(graph: SceneGraph, index: int) -> tuple[Phrase, ...]:
    """Phrases that clearly mean an object, without those that say more than is needed."""
    node = graph.objects[index]
    twin = len(graph.select(node.kind)) > 1
    candidates = [Phrase(node.kind), Phrase(node.kind, node.colour)]
    if twin:
        candidates += _distinguishing(graph, index)
    meant = [p for p in candidates if p.meaning(graph) == index]
    plain = {(p.kind, p.place) for p in meant if not p.colour}
    sure = Phrase(node.kind, node.colour) in meant
    # "the red car on the left" says too much if "the red car" or "the car on the left" is enough.
    return tuple(
        p for p in meant if not (p.colour and p.place and (sure or (p.kind, p.place) in plain))
    )


def single(graph: SceneGraph, index: int) -> tuple[Phrase, ...]:
    """Phrases that clearly mean an object which is the only one of its kind, told by more than that.

    Nothing in the scene asks for the place or the relation. In another scene they may be false.
    """
    node = graph.objects[index]
    candidates = [Phrase(node.kind, place=place) for place in PLACES]
    candidates += _related(graph, node.kind)
    candidates += [Phrase(node.kind, having=part) for part in _extras(graph, node.kind)]
    candidates += [Phrase(node.kind, lacking=part) for part in _extras(graph, node.kind)]
    return tuple(p for p in candidates if p.meaning(graph) == index)


def noun(phrase: Phrase) -> Sentence:
    """The sentence "the {phrase}"."""
    return Sentence(f"the {phrase.words()}", f"the {phrase.wording()}", "object", phrase.answer)


def parts(graph: SceneGraph, index: int, found: Sequence[Phrase]) -> Iterator[tuple[int, Sentence]]:
    """For each visible part of an object its target, and "the {part} of the {phrase}"."""
    for part in graph.objects[index].parts:
        if part.target >= 0:
            for phrase in found:
                yield (
                    part.target,
                    Sentence(
                        f"the {part.name} of the {phrase.words()}",
                        f"the PART of the {phrase.wording()}",
                        "part",
                        functools.partial(_part, part=part.name, phrase=phrase),
                    ),
                )


def several(graph: SceneGraph) -> Iterator[Sentence]:
    """Sentences about several objects, or about parts of several. Not all of them have an answer."""
    for kind in _kinds(graph):
        yield from _of_kind(graph, kind)
    for colour in sorted({o.colour for o in graph.objects}):
        yield _multi(f"the {colour} things", "the COLOUR things", _things, colour=colour)
        text, wording = f"everything that is not {colour}", "everything that is not COLOUR"
        yield _multi(text, wording, _everything_but, colour=colour)
    for one in range(len(graph.objects)):
        for two in range(one + 1, len(graph.objects)):
            first, second = graph.objects[one], graph.objects[two]
            pair = [Phrase(o.kind, o.colour) for o in (first, second)]
            if first.kind != second.kind:
                text = f"the {pair[0].words()} and the {pair[1].words()}"
                wording = "the COLOUR KIND and the COLOUR KIND"
                yield _multi(text, wording, _both, pair=tuple(pair))


def categories(graph: SceneGraph) -> Iterator[Sentence]:
    """Sentences "all {kinds}", for the kinds that are there."""
    for kind in _kinds(graph):
        yield Sentence(
            f"all {plural(kind)}", "all KINDS", "category", functools.partial(_all, kind=kind)
        )


def salient() -> Sentence:
    """The sentence "the most salient object"."""
    text = "the most salient object"
    return Sentence(text, text, "salient", _salient)


def _kinds(graph: SceneGraph) -> list[str]:
    return sorted({o.kind for o in graph.objects})


def _extras(graph: SceneGraph, kind: str) -> list[str]:
    """Extras that may be named: the novel one only where it is seen."""
    seen = {(node.kind, part.name) for node in graph.objects for part in node.parts}
    return [
        part for part in KINDS[kind].extras if (kind, part) in seen or (kind, part) != NOVEL_EXTRA
    ]


def _distinguishing(graph: SceneGraph, index: int) -> list[Phrase]:
    node = graph.objects[index]
    kind, others = node.kind, {o.colour for o in graph.objects if o.kind == node.kind}
    return [
        *(Phrase(kind, place=place) for place in PLACES),
        *(Phrase(kind, size=size) for size in SIZES),
        *(Phrase(kind, node.colour, place=place) for place in PLACES),
        *_related(graph, kind),
        *(Phrase(kind, not_colour=colour) for colour in sorted(others - {node.colour})),
        *(Phrase(kind, having=part) for part in _extras(graph, kind)),
        *(Phrase(kind, lacking=part) for part in _extras(graph, kind)),
    ]


def _related(graph: SceneGraph, kind: str) -> list[Phrase]:
    anchors = [other for other in _kinds(graph) if other != kind]
    return [Phrase(kind, relation=r, anchor=anchor) for r in RELATIONS for anchor in anchors]


def _multi(
    text: str, wording: str, answer: Callable[..., Answer | None], **known: object
) -> Sentence:
    return Sentence(text, wording, "multi", functools.partial(answer, **known))


def _of_kind(graph: SceneGraph, kind: str) -> Iterator[Sentence]:
    kinds, found = plural(kind), graph.select(kind)
    count = len(found)
    if count in _NUMBERS:
        text = f"the {_NUMBERS[count]} {kinds}"
        yield _multi(text, "the NUMBER KINDS", _counted, kind=kind, number=count)
    if count == 2:
        yield _multi(f"both {kinds}", "both KINDS", _counted, kind=kind, number=2)
    # "the fish on the left" would be understood as a single fish.
    for place in PLACES if kinds != kind else ():
        yield _multi(f"the {kinds} {place}", "the KINDS PLACE", _side, kind=kind, place=place)
    if count == 1:
        yield _multi(
            f"everything except the {kind}", "everything except the KIND", _rest, kind=kind
        )
    text, wording = f"everything that is not a {kind}", "everything that is not a KIND"
    yield _multi(text, wording, _everything_but, kind=kind)
    for part in sorted({p.name for i in found for p in graph.objects[i].parts}):
        text, wording = f"the {part} of all {kinds}", "the PART of all KINDS"
        answer = functools.partial(_every_part, kind=kind, part=part)
        yield Sentence(text, wording, "part", answer)


def _part(graph: SceneGraph, *, part: str, phrase: Phrase) -> Answer | None:
    whole = phrase.answer(graph)
    if whole is None or whole.form:
        return whole
    node = graph.objects[whole.targets[0]]
    there = phrases.has(node, part)
    if there:
        return Answer(tuple(p.target for p in node.parts if p.name == part))
    return Answer((), "part") if there is False else None


def _every_part(graph: SceneGraph, *, kind: str, part: str) -> Answer | None:
    """The parts of two objects or more, all of which are visible; none, if no object has it."""
    found = graph.select(kind)
    if not found:
        return Answer((), "kind")
    nodes = [graph.objects[i] for i in found]
    there = [phrases.has(node, part) for node in nodes]
    if not any(t is not False for t in there):
        return Answer((), "part")
    if len(found) < 2 or not all(there):
        return None
    return Answer(tuple(p.target for node in nodes for p in node.parts if p.name == part))


def _counted(graph: SceneGraph, *, kind: str, number: int) -> Answer | None:
    found = graph.select(kind)
    if len(found) == number:
        return Answer(tuple(found))
    return Answer((), "number" if found else "kind")


def _side(graph: SceneGraph, *, kind: str, place: str) -> Answer | None:
    """Two objects or more in one half, and others in the other; none, if all are in the other."""
    found = graph.select(kind)
    if not found:
        return Answer((), "kind")
    inside = phrases.half(graph, found, place)
    if inside is None or len(inside) == 1:
        return None
    return Answer(inside, "" if inside else "place")


def _things(graph: SceneGraph, *, colour: str) -> Answer | None:
    found = graph.select(colour=colour)
    if len(found) == 1:
        return None
    return Answer(tuple(found), "" if found else "attribute")


def _rest(graph: SceneGraph, *, kind: str) -> Answer | None:
    """All objects but the only one of a kind."""
    rest = tuple(i for i, node in enumerate(graph.objects) if node.kind != kind)
    return Answer(rest) if len(graph.select(kind)) == 1 and len(rest) > 1 else None


def _everything_but(graph: SceneGraph, *, kind: str = "", colour: str = "") -> Answer | None:
    """All objects that are not of a kind or colour which is there; none, if all are of it."""
    but = set(graph.select(kind, colour))
    rest = tuple(i for i in range(len(graph.objects)) if i not in but)
    if not rest:
        return Answer((), "negation")
    return Answer(rest) if len(rest) > 1 and but else None


def _both(graph: SceneGraph, *, pair: tuple[Phrase, Phrase]) -> Answer | None:
    """Two objects; none, if neither is there and both for the same reason."""
    first, second = (phrase.answer(graph) for phrase in pair)
    if first is None or second is None or first.form != second.form:
        return None
    return Answer((*first.targets, *second.targets), first.form)


def _all(graph: SceneGraph, *, kind: str) -> Answer | None:
    found = graph.select(kind)
    return Answer(tuple(found), "" if found else "kind")


def _salient(graph: SceneGraph) -> Answer | None:
    """The object that is in front of all others and clearly larger than each."""
    order = sorted(range(len(graph.objects)), key=lambda i: graph.objects[i].area)
    if len(order) < 2:
        return None
    first, second = graph.objects[order[-1]], graph.objects[order[-2]]
    plain = first.depth == 0 and first.area >= SALIENT_RATIO * second.area
    return Answer((order[-1],)) if plain else None
