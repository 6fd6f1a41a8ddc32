"""Makes the expressions of scenes from their graphs."""

import collections
import dataclasses
import itertools
from collections.abc import Iterable, Sequence
from typing import TypeVar

import numpy as np

from input_pipeline.datasets.scenes import sentences
from input_pipeline.datasets.scenes.config import ScenesConfig
from input_pipeline.datasets.scenes.graph import SceneGraph
from input_pipeline.datasets.scenes.sentences import Sentence

Rng = np.random.Generator
T = TypeVar("T")

# How often a form of absence is asked, relative to the others that the pair has: the rare ones first.
_WEIGHTS = {"kind": 4, "attribute": 1, "part": 3, "relation": 6, "place": 3}
_WEIGHTS |= {"number": 2, "negation": 3}


@dataclasses.dataclass(frozen=True)
class Said:
    """An expression of a scene.

    Attributes:
        text: the words.
        targets: indices of the scene's targets.
        granularity: name out of `refseg_jax.batch.GRANULARITIES`.
        referent: number of the thing that the text describes, as in `Expression`.
        form: as in `Expression`.
        wording: the text with its words replaced by their roles.
    """

    text: str
    targets: tuple[int, ...]
    granularity: str
    referent: int
    form: str = ""
    wording: str = ""


@dataclasses.dataclass(frozen=True)
class Question:
    """A sentence that is true of one scene of a pair and false of the other.

    Attributes:
        sentence: the sentence.
        form: name out of `refseg_jax.batch.ABSENCES`: why it is false of the other.
    """

    sentence: Sentence
    form: str


def describe(graph: SceneGraph, config: ScenesConfig, rng: Rng) -> list[Said]:
    """Makes the expressions of a scene that match something, with random referents and wordings.

    Objects with another one of their kind in the scene come first, because their kind alone does not
    determine them.

    Args:
        graph: the scene graph.
        config: settings of the build, which limit the number of expressions.
        rng: source of randomness.
    """
    drafts: list[list[Sentence]] = []
    order = _shuffled(range(len(graph.objects)), rng)
    order.sort(key=lambda i: not _has_twin(graph, i))
    spoken = {i: found for i in order if (found := sentences.of_object(graph, i))}
    for index in list(spoken)[: config.object_referents]:
        drafts.append([sentences.noun(phrase) for phrase in spoken[index]])
    of_parts: dict[int, list[Sentence]] = collections.defaultdict(list)
    for index, found in spoken.items():
        for target, sentence in sentences.parts(graph, index, found):
            of_parts[target].append(sentence)
    owner = {part.target: index for index in spoken for part in graph.objects[index].parts}
    told = _shuffled(of_parts, rng)
    told.sort(key=lambda target: not _has_twin(graph, owner[target]))
    drafts += [of_parts[target] for target in told[: config.part_referents]]
    for made in (sentences.several(graph), sentences.categories(graph)):
        true = [sentence for sentence in made if _true(sentence, graph)]
        drafts += [[sentence] for sentence in _shuffled(true, rng)[: config.multi_referents]]
    if _true(sentences.salient(), graph):
        drafts.append([sentences.salient()])
    return [
        _said(sentence, graph, referent)
        for referent, found in enumerate(drafts)
        for sentence in _shuffled(found, rng)[: config.wordings]
    ]


def question_pair(graphs: Sequence[SceneGraph], config: ScenesConfig, rng: Rng) -> list[Question]:
    """Chooses what both scenes of a pair are asked.

    Each question is true of one scene and false of the other, so that its words do not tell whether
    something matches (Goyal et al., "Making the V in VQA Matter", CVPR 2017). Each scene says yes to
    half of them.

    Args:
        graphs: the two scenes.
        config: settings of the build, which limit the number of questions.
        rng: source of randomness.
    """
    chosen: list[list[Question]] = []
    for one, other in (graphs, graphs[::-1]):
        found: dict[str, dict[str, list[Question]]] = collections.defaultdict(
            lambda: collections.defaultdict(list)
        )
        for sentence in true_sentences(one):
            answer = sentence.answer(other)
            if answer is not None and answer.form:
                found[answer.form][sentence.wording].append(Question(sentence, answer.form))
        chosen.append(_choose(found, config.questions // 2, rng))
    count = min(map(len, chosen))
    return [question for asked in chosen for question in asked[:count]]


def true_sentences(graph: SceneGraph) -> list[Sentence]:
    """All sentences that clearly match something in a scene and that can be false of another."""
    made: list[Sentence] = []
    for index in range(len(graph.objects)):
        phrases = sentences.of_object(graph, index)
        if not _has_twin(graph, index):
            phrases += sentences.single(graph, index)
        made += [sentences.noun(phrase) for phrase in phrases]
        made += [sentence for _, sentence in sentences.parts(graph, index, phrases)]
    for sentence in (*sentences.several(graph), *sentences.categories(graph)):
        if _true(sentence, graph):
            made.append(sentence)
    return made


def answer_all(
    questions: Sequence[Question], graph: SceneGraph, said: Sequence[Said]
) -> list[Said]:
    """The expressions of a scene and its answers to the questions of its pair.

    A question that `describe` has said already is said once, and has the form of the question.
    """
    asked = {question.sentence.text: question for question in questions}
    found = [
        dataclasses.replace(s, form=asked.pop(s.text).form) if s.text in asked else s for s in said
    ]
    referents = {(s.targets, s.granularity): s.referent for s in found}
    fresh = itertools.count(max((s.referent for s in found), default=-1) + 1)
    for question in asked.values():
        answered = _said(question.sentence, graph, 0)
        known = (
            referents.get((answered.targets, answered.granularity)) if answered.targets else None
        )
        referent = next(fresh) if known is None else known
        found.append(dataclasses.replace(answered, referent=referent, form=question.form))
    return found


def _said(sentence: Sentence, graph: SceneGraph, referent: int) -> Said:
    answer = sentence.answer(graph)
    assert answer is not None, sentence.text
    granularity = "none" if answer.form else sentence.granularity
    return Said(sentence.text, answer.targets, granularity, referent, answer.form, sentence.wording)


def _true(sentence: Sentence, graph: SceneGraph) -> bool:
    answer = sentence.answer(graph)
    return answer is not None and not answer.form


def _has_twin(graph: SceneGraph, index: int) -> bool:
    return len(graph.select(graph.objects[index].kind)) > 1


def _choose(found: dict[str, dict[str, list[Question]]], count: int, rng: Rng) -> list[Question]:
    """Draws at most `count` questions: a form by its weight, then a wording, then a text."""
    chosen: list[Question] = []
    while found and len(chosen) < count:
        forms = list(found)
        weights = np.array([_WEIGHTS[form] for form in forms], float)
        form = forms[rng.choice(len(forms), p=weights / weights.sum())]
        # Another question of the form has another wording.
        wording = _any(found[form], rng)
        chosen.append(_any(found[form].pop(wording), rng))
        if not found[form]:
            del found[form]
    return chosen


def _shuffled(items: Iterable[T], rng: Rng) -> list[T]:
    known = list(items)
    return [known[i] for i in rng.permutation(len(known))]


def _any(items: Iterable[T], rng: Rng) -> T:
    known = list(items)
    return known[rng.integers(len(known))]
