"""Draws scenes as records; runs in worker processes, so it does not import TFDS."""

import functools
from collections.abc import Sequence

import cv2
import numpy as np

from input_pipeline.building.conversion import Outcome
from input_pipeline.datasets.scenes import groups
from input_pipeline.datasets.scenes.config import SPLITS, ScenesConfig
from input_pipeline.datasets.scenes.drawing import Scene, draw_scene
from input_pipeline.datasets.scenes.expressions import (
    Question,
    Said,
    answer_all,
    describe,
    question_pair,
)
from input_pipeline.datasets.scenes.kinds import NOVEL_EXTRA, NOVEL_KIND
from input_pipeline.datasets.scenes.layout import Placed, sample_layout, sample_theme
from input_pipeline.schema import Expression, Record, Target, encode_mask

# Share of pairs whose second scene has the kinds of the first in other places.
_ALIKE_SHARE = 0.35


def make(config: ScenesConfig, item: tuple[str, int]) -> Outcome:
    """Makes the outcome of an item of the plan, (split, index of the image)."""
    cv2.setNumThreads(1)
    return Outcome(make_record(config, *item))


def make_record(config: ScenesConfig, split: str, index: int) -> Record:
    """Draws an image of a split, with its expressions.

    Args:
        config: settings of the build.
        split: name out of `SPLITS`.
        index: index of the image in the split.
    """
    name = f"{split}-{index:06d}"
    if split.endswith("_groups"):
        number, member = divmod(index, config.group_size)
        group = _group(config, split, number)
        scene = group.scenes[member]
        answer = group.sentence.answer(scene.graph)
        assert answer is not None
        said = [Said(group.sentence.text, answer.targets, "group", 0, answer.form)]
        return _record(config, name, scene, said, f"{split}-{number:04d}")
    scene, said = _of_pair(config, split, index)
    return _record(config, name, scene, said)


def questions(config: ScenesConfig, split: str, index: int) -> list[Said]:
    """The expressions of an image that its pair is asked, see `expressions.question_pair`.

    Arguments are those of `make_record`, but a split of groups has none.
    """
    return [said for said in _of_pair(config, split, index)[1] if said.form]


def _of_pair(config: ScenesConfig, split: str, index: int) -> tuple[Scene, list[Said]]:
    """An image of a pair, and its expressions."""
    scenes, asked = _pair(config, split, index // 2)
    scene = scenes[index % 2]
    rng = np.random.default_rng([config.seed, SPLITS.index(split), index, 1])
    return scene, answer_all(asked, scene.graph, describe(scene.graph, config, rng))


# Neighbouring images are made by the same process (`Scenes.together`).
@functools.lru_cache(maxsize=1)
def _group(config: ScenesConfig, split: str, number: int) -> groups.Group:
    rng = np.random.default_rng([config.seed, SPLITS.index(split), number])
    granularity = groups.GRANULARITIES[number % len(groups.GRANULARITIES)]
    return groups.draw_group(config, granularity, rng)


@functools.lru_cache(maxsize=1)
def _pair(
    config: ScenesConfig, split: str, number: int
) -> tuple[tuple[Scene, Scene], list[Question]]:
    """Draws two scenes of one background and first kind, and what both are asked."""
    rng = np.random.default_rng([config.seed, SPLITS.index(split), number])
    theme = sample_theme(rng, novel=split.startswith("novel_"))
    alike = rng.random() < _ALIKE_SHARE
    like: list[Placed] = []
    scenes: list[Scene] = []
    while len(scenes) < 2:
        variant = theme.variant(rng)
        layout = sample_layout(variant, config, rng, like if alike else ())
        scene = draw_scene(theme.background, layout, config, rng)
        # Crowding may leave a single object.
        if len(scene.graph.objects) > 1 and (not theme.novel or _is_novel(scene)):
            scenes.append(scene)
            like = layout
    first, second = scenes
    return (first, second), question_pair((first.graph, second.graph), config, rng)


def _is_novel(scene: Scene) -> bool:
    kind, extra = NOVEL_EXTRA
    return any(
        node.kind == NOVEL_KIND or (node.kind == kind and node.part(extra) is not None)
        for node in scene.graph.objects
    )


def _record(
    config: ScenesConfig, name: str, scene: Scene, said: Sequence[Said], group: str = ""
) -> Record:
    done, jpeg = cv2.imencode(
        ".jpg",
        np.ascontiguousarray(scene.image[:, :, ::-1]),
        [cv2.IMWRITE_JPEG_QUALITY, config.jpeg_quality],
    )
    assert done
    return Record(
        image=jpeg.tobytes(),
        image_id=f"scenes-{config.name}-{name}",
        file_name=f"{name}.jpg",
        height=config.image_size,
        width=config.image_size,
        source=f"scenes/{config.name}",
        targets=tuple(
            Target(encode_mask(mask), category, parent, "object" if parent < 0 else "part")
            for mask, category, parent in zip(
                scene.masks, scene.categories, scene.parents, strict=True
            )
        ),
        expressions=tuple(
            Expression(f"{name}-{k}", s.text, s.targets, s.granularity, s.referent, group, s.form)
            for k, s in enumerate(said)
        ),
        metadata=scene.graph.to_json(),
    )
