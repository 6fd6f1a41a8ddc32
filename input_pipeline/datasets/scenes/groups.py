"""Draws groups of images that share one sentence, which about half of them satisfy."""

import dataclasses
from collections.abc import Iterator, Sequence

import numpy as np

from input_pipeline.datasets.scenes.config import ScenesConfig
from input_pipeline.datasets.scenes.drawing import Scene, draw_scene
from input_pipeline.datasets.scenes.expressions import true_sentences
from input_pipeline.datasets.scenes.graph import ObjectNode, PartNode, SceneGraph
from input_pipeline.datasets.scenes.kinds import KINDS
from input_pipeline.datasets.scenes.layout import Placed, Theme, narrow_theme, sample_layout
from input_pipeline.datasets.scenes.sentences import Sentence

Rng = np.random.Generator

#: Granularities of the sentences of groups, in turn. "The most salient object" is false of no scene.
GRANULARITIES = ("object", "part", "multi", "category")

# Layouts from which a group is chosen, and how many of them propose sentences.
_POOL, _PROPOSERS = 24, 4


@dataclasses.dataclass(frozen=True)
class Group:
    """A group of related scenes.

    Attributes:
        sentence: what all scenes are asked.
        scenes: the scenes, of which about half have something that matches.
    """

    sentence: Sentence
    scenes: tuple[Scene, ...]


def draw_group(config: ScenesConfig, granularity: str, rng: Rng) -> Group:
    """Draws a group of `config.group_size` scenes of one background and few kinds and colours.

    The number of scenes with a target is half of the group's, or one more or less.

    Args:
        config: settings of the build.
        granularity: of the sentence, out of `GRANULARITIES`.
        rng: source of randomness.
    """
    # Where a category is asked for, each scene has two of three kinds. Else those without it would have
    # fewer kinds than the others, and need no words.
    two_of_three = granularity == "category"
    while True:
        theme = narrow_theme(rng, 3 if two_of_three else 2)
        themes = [theme.of_two_kinds(rng) if two_of_three else theme for _ in range(_POOL)]
        layouts = [sample_layout(one, config, rng) for one in themes]
        graphs = [_outline(layout, config) for layout in layouts]
        positive = config.group_size // 2 + int(rng.integers(-1, 2))
        negative = config.group_size - positive
        for sentence in _proposed(graphs[:_PROPOSERS], granularity, rng):
            truth = [_truth(sentence, graph) for graph in graphs]
            if truth.count(True) > positive and truth.count(False) > negative:
                drawn = _draw(sentence, theme, layouts, truth, (positive, negative), config, rng)
                if drawn is not None:
                    return Group(sentence, drawn)
                break


def _proposed(graphs: Sequence[SceneGraph], granularity: str, rng: Rng) -> Iterator[Sentence]:
    """Sentences that are true of a graph, each once: first a random wording, then a random text."""
    found: dict[str, dict[str, Sentence]] = {}
    for graph in graphs:
        for sentence in true_sentences(graph):
            if sentence.granularity == granularity:
                found.setdefault(sentence.wording, {}).setdefault(sentence.text, sentence)
    wordings = [list(texts.values()) for texts in found.values()]
    while wordings:
        number = int(rng.integers(len(wordings)))
        texts = wordings[number]
        yield texts.pop(int(rng.integers(len(texts))))
        if not texts:
            wordings.pop(number)


def _truth(sentence: Sentence, graph: SceneGraph) -> bool | None:
    answer = sentence.answer(graph)
    return None if answer is None else not answer.form


def _draw(
    sentence: Sentence,
    theme: Theme,
    layouts: Sequence[list[Placed]],
    truth: Sequence[bool | None],
    wanted: tuple[int, int],
    config: ScenesConfig,
    rng: Rng,
) -> tuple[Scene, ...] | None:
    """Draws the layouts, and keeps those of which the sentence is as true as wanted; else `None`."""
    scenes: list[Scene] = []
    for wish, count in zip((True, False), wanted, strict=True):
        found: list[Scene] = []
        for layout, guess in zip(layouts, truth, strict=True):
            if guess is wish and len(found) < count:
                scene = draw_scene(theme.background, layout, config, rng)
                # Hidden objects were left out, and the drawn areas and centres differ from the boxes'.
                if len(scene.graph.objects) > 1 and _truth(sentence, scene.graph) is wish:
                    found.append(scene)
        if len(found) < count:
            return None
        scenes += found
    return tuple(scenes[i] for i in rng.permutation(len(scenes)))


def _outline(layout: Sequence[Placed], config: ScenesConfig) -> SceneGraph:
    """The graph that a layout would have if its objects were boxes, before it is drawn."""
    nodes, target = [], len(layout)
    for number, spot in enumerate(layout):
        kind = KINDS[spot.kind]
        area = round(spot.width**2 / kind.aspect)
        parts = []
        for name in (*kind.parts, *spot.extras):
            parts.append(PartNode(name, area, target))
            target += 1
        nodes.append(
            ObjectNode(
                kind=spot.kind,
                colour=spot.colour,
                x=spot.x / config.image_size,
                y=spot.y / config.image_size,
                area=area,
                full_area=area,
                depth=len(layout) - 1 - number,
                target=number,
                parts=tuple(parts),
            )
        )
    return SceneGraph("", config.image_size, tuple(nodes))
