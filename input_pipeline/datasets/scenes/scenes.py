"""Scenes, the embedded dataset: built by a procedure, without any download.

    python -m tools.build_dataset --dataset=scenes --data_dir=data

Splits `train`, `val`, `test` hold single images; `train_groups`, `val_groups`, `test_groups` hold
groups of images that share one expression, which only some of them satisfy. Every image is drawn
from a random stream of (seed, split, index), so that splits are disjoint, and the bytes do not depend
on the number of processes. The scene graph of an image is its record's `metadata`.
"""

import functools
import multiprocessing
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import tensorflow_datasets as tfds
from tqdm import tqdm

from input_pipeline.datasets.scenes.config import SPLITS, ScenesConfig
from input_pipeline.datasets.scenes.drawing import Scene, draw_scene
from input_pipeline.datasets.scenes.expressions import describe
from input_pipeline.datasets.scenes.kinds import KINDS
from input_pipeline.datasets.scenes.layout import Wish, kinds_of, sample_background, sample_layout
from input_pipeline.datasets.scenes.phrases import Phrase
from input_pipeline.schema import Expression, Record, Target, encode_mask, features, to_features

#: Images that one task of a worker process draws.
_CHUNK = 25


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


class Scenes(tfds.core.GeneratorBasedBuilder):
    """Writes the record of `input_pipeline.schema`; needs no TensorFlow."""

    name = "scenes"
    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES = {"1.0.0": "First release."}  # noqa: RUF012
    pkg_dir_path: Path | None = Path(__file__).parent

    def __init__(self, *, scenes: ScenesConfig | None = None, workers: int = 1, **kwargs: Any):
        """`scenes` decides what is drawn, `workers` how many processes draw it."""
        self._scenes = scenes or ScenesConfig()
        self._workers = workers
        config = tfds.core.BuilderConfig(name=self._scenes.name, description="Scenes")
        super().__init__(file_format="array_record", config=config, **kwargs)

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(
            builder=self,
            description=(__doc__ or "").splitlines()[0],
            features=features(),
            license="Apache-2.0",
        )

    def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
        del dl_manager
        return {split: self._generate_examples(split) for split in SPLITS}

    def _generate_examples(self, split: str) -> Iterator[tuple[str, dict[str, Any]]]:
        count = self._scenes.images(split)
        starts = range(0, count, _CHUNK)
        make = functools.partial(_make_chunk, self._scenes, split, count)
        with tqdm(total=count, desc=f"scenes {split}", unit="image") as bar:
            for chunk in self._map(make, starts):
                yield from chunk
                bar.update(len(chunk))

    def _map(self, make: Any, starts: range) -> Iterator[list[tuple[str, dict[str, Any]]]]:
        if self._workers <= 1 or len(starts) <= 1:  # Processes take seconds to start.
            yield from map(make, starts)
            return
        # Spawned: forking a process that has threads (JAX's) may deadlock.
        with multiprocessing.get_context("spawn").Pool(self._workers) as pool:
            yield from pool.imap(make, starts)


def build(
    data_dir: Path, config: ScenesConfig | None = None, *, workers: int | None = None
) -> Path:
    """Builds the dataset, unless it is there.

    TFDS writes into a folder of another name and renames it at the end, so that a build that was
    stopped leaves nothing that looks like a dataset.

    Args:
        data_dir: where datasets lie.
        config: what to draw.
        workers: processes; default one a core.

    Returns:
        The folder of the dataset.
    """
    workers = workers or len(os.sched_getaffinity(0))
    builder = Scenes(scenes=config, workers=workers, data_dir=str(data_dir))
    folder = Path(str(builder.data_dir))
    if (folder / "dataset_info.json").is_file():
        print(f"{folder}: is built already")
        return folder
    builder.download_and_prepare()
    print(f"{folder}: built")
    return folder


def _make_chunk(
    config: ScenesConfig, split: str, count: int, start: int
) -> list[tuple[str, dict[str, Any]]]:
    cv2.setNumThreads(1)
    records = [make_record(config, split, i) for i in range(start, min(start + _CHUNK, count))]
    return [(record.image_id, to_features(record)) for record in records]


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
