"""Scenes, the embedded dataset: built by a procedure, without any download.

    python -m tools.build_dataset --dataset=scenes --data_dir=data

Splits `train`, `val`, `test` hold single images; `train_groups`, `val_groups`, `test_groups` hold
groups of images that share one expression, which only some of them satisfy. Every image is drawn
from a random stream of (seed, split, index), so that splits are disjoint, and the bytes do not depend
on the number of processes. The scene graph of an image is its record's `metadata`.
"""

import functools
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import ClassVar

import cv2
import numpy as np
import tensorflow_datasets as tfds

from input_pipeline.datasets.building import RecordBuilder
from input_pipeline.datasets.conversion import Outcome, Plan
from input_pipeline.datasets.scenes.config import SPLITS, ScenesConfig
from input_pipeline.datasets.scenes.drawing import Scene, draw_scene
from input_pipeline.datasets.scenes.expressions import describe
from input_pipeline.datasets.scenes.kinds import KINDS
from input_pipeline.datasets.scenes.layout import Wish, kinds_of, sample_background, sample_layout
from input_pipeline.datasets.scenes.phrases import Phrase
from input_pipeline.datasets.shards import Summary
from input_pipeline.schema import Expression, Record, Target, encode_mask, features


def _builder_config(name: str) -> tfds.core.BuilderConfig:
    return tfds.core.BuilderConfig(name=name, description="Scenes")


def make_record(config: ScenesConfig, split: str, index: int) -> Record:
    """The image of a split by its number, with its expressions."""
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


class Scenes(RecordBuilder):
    """Writes the record of `input_pipeline.schema`; needs no TensorFlow."""

    name = "scenes"
    BUILDER_CONFIGS: ClassVar = [_builder_config(ScenesConfig().name)]
    pkg_dir_path: Path | None = Path(__file__).parent

    def __init__(
        self, *, data_dir: str | Path, scenes: ScenesConfig | None = None, num_workers: int = 0
    ):
        """`scenes` decides what is drawn; the others as for `RecordBuilder`."""
        self._scenes = scenes or ScenesConfig()
        known = self._scenes.name == ScenesConfig.name
        config = self._scenes.name if known else _builder_config(self._scenes.name)
        super().__init__(data_dir=data_dir, config=config, num_workers=num_workers)

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(
            builder=self,
            description=(__doc__ or "").splitlines()[0],
            features=features(),
            license="Apache-2.0",
        )

    def _plan(self) -> Plan:
        return Plan(
            {
                split: [(split, index) for index in range(self._scenes.images(split))]
                for split in SPLITS
            }
        )

    def _maker(self) -> Callable[[tuple[str, int]], Outcome]:
        return functools.partial(_make, self._scenes)

    def _finish(self, folder: Path, plan: Plan, built: Mapping[str, Summary]) -> None:
        del folder, plan, built


def build(data_dir: Path, config: ScenesConfig | None = None, *, num_workers: int = 0) -> Path:
    """Builds the dataset, unless it is there.

    Args:
        data_dir: where datasets lie.
        config: what to draw.
        num_workers: processes.

    Returns:
        The folder of the dataset.
    """
    builder = Scenes(scenes=config, num_workers=num_workers, data_dir=data_dir)
    folder = Path(str(builder.data_dir))
    return folder if folder.is_dir() else builder.build()


def _make(config: ScenesConfig, item: tuple[str, int]) -> Outcome:
    cv2.setNumThreads(1)
    return Outcome(make_record(config, *item))


def _draw(config: ScenesConfig, rng: np.random.Generator, wish: Wish | None = None) -> Scene:
    """Draws until there is something to speak of (crowding may leave a single object)."""
    while True:
        background = sample_background(rng, wish.kind if wish else "")
        scene = draw_scene(background, sample_layout(background, config, rng, wish), config, rng)
        if len(scene.graph.objects) >= 2:
            return scene


def _group_record(config: ScenesConfig, split: str, index: int, rng: np.random.Generator) -> Record:
    """An image of a group: its expression's kind and colour are the group's, drawn from its seed."""
    group, member = divmod(index, config.group_size)
    shared = np.random.default_rng([config.seed, SPLITS.index(split), group, 1])
    kinds = kinds_of(sample_background(shared))
    kind = kinds[shared.integers(len(kinds))]
    colours = KINDS[kind].colours
    colour = colours[shared.integers(len(colours))]
    # At least two images of a group have it and at least two have not.
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
