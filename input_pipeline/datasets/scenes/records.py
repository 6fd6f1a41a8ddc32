"""Draws scenes as records; runs in worker processes, so it does not import TFDS."""

import cv2
import numpy as np

from input_pipeline.building.conversion import Outcome
from input_pipeline.datasets.scenes.config import SPLITS, ScenesConfig
from input_pipeline.datasets.scenes.drawing import Scene, draw_scene
from input_pipeline.datasets.scenes.expressions import describe
from input_pipeline.datasets.scenes.kinds import KINDS
from input_pipeline.datasets.scenes.layout import Wish, kinds_of, sample_background, sample_layout
from input_pipeline.datasets.scenes.phrases import Phrase
from input_pipeline.schema import Expression, Record, Target, encode_mask


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
    rng = np.random.default_rng([config.seed, SPLITS.index(split), index])
    if split.endswith("_groups"):
        return _group_record(config, split, index, rng)
    scene = _draw(config, rng)
    said = describe(scene.graph, config, rng)
    name = f"{split}-{index:06d}"
    expressions = tuple(
        Expression(f"{name}-{k}", s.text, s.targets, s.granularity, s.referent)
        for k, s in enumerate(said)
    )
    return _record(config, name, scene, expressions)


def _draw(config: ScenesConfig, rng: np.random.Generator, wish: Wish | None = None) -> Scene:
    """Draws scenes until one has two objects or more (crowding may leave a single one)."""
    while True:
        background = sample_background(rng, wish.kind if wish else "")
        scene = draw_scene(background, sample_layout(background, config, rng, wish), config, rng)
        if len(scene.graph.objects) >= 2:
            return scene


def _group_record(config: ScenesConfig, split: str, index: int, rng: np.random.Generator) -> Record:
    """Draws an image of a group, whose kind and colour come from a random stream of the group."""
    group, member = divmod(index, config.group_size)
    shared = np.random.default_rng([config.seed, SPLITS.index(split), group, 1])
    kinds = kinds_of(sample_background(shared))
    kind = kinds[shared.integers(len(kinds))]
    colours = KINDS[kind].colours
    colour = colours[shared.integers(len(colours))]
    # At least two images of a group have the object, and at least two do not.
    positive = 2 + int(shared.integers(config.group_size - 3))
    present = member in set(shared.permutation(config.group_size)[:positive].tolist())
    phrase = Phrase(kind, colour)
    while True:
        scene = _draw(config, rng, Wish(kind, colour, present))
        found = list(scene.graph.select(kind, colour))
        if present == (phrase.meaning(scene.graph) is not None) and bool(found) == present:
            break
    name = f"{split}-{index:06d}"
    targets = tuple(scene.graph.objects[i].target for i in found)
    expression = Expression(
        f"{name}-0", f"the {phrase.words()}", targets, "group", 0, f"{split}-{group:04d}"
    )
    return _record(config, name, scene, (expression,))


def _record(
    config: ScenesConfig, name: str, scene: Scene, expressions: tuple[Expression, ...]
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
        expressions=expressions,
        metadata=scene.graph.to_json(),
    )
