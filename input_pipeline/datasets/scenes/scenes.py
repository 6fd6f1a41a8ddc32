"""Scenes, the embedded dataset: drawn by a program, without any download.

    python -m tools.build_dataset --dataset=scenes --data_dir=data

The splits `train`, `val` and `test` have images in pairs: what is asked of both is true of one and false
of the other, so that the words alone do not tell whether something matches. `train_groups`, `val_groups`
and `test_groups` have groups of images that share one expression, which about half of them satisfy.
`novel_train` and `novel_test` have a kind and a part that no other split has. Every pair and every group
has its own random stream, seeded by (seed, split, number): splits are disjoint, and the bytes do not
depend on the number of processes. The scene graph of an image is the `metadata` of its record.
"""

import functools
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import ClassVar

import tensorflow_datasets as tfds

from input_pipeline.building.builder import RecordBuilder
from input_pipeline.building.conversion import Outcome, Plan
from input_pipeline.building.shards import Summary
from input_pipeline.datasets.scenes.config import SPLITS, ScenesConfig
from input_pipeline.datasets.scenes.kinds import KINDS, NOVEL_KIND
from input_pipeline.datasets.scenes.records import make
from input_pipeline.facts.published import facts_of
from input_pipeline.schema import AskedClass, features


def _builder_config(name: str) -> tfds.core.BuilderConfig:
    return tfds.core.BuilderConfig(name=name, description="Scenes")


class Scenes(RecordBuilder):
    """The TFDS builder of Scenes; needs no TensorFlow."""

    name = "scenes"
    BUILDER_CONFIGS: ClassVar = [_builder_config(ScenesConfig().name)]
    pkg_dir_path: Path | None = Path(__file__).parent

    def __init__(
        self, *, data_dir: str | Path, scenes: ScenesConfig | None = None, num_workers: int = 0
    ):
        """Prepares a build.

        Args:
            data_dir: folder of all datasets.
            scenes: settings of what to draw; `None` for the default.
            num_workers: number of processes that draw, as for `RecordBuilder`.
        """
        self._scenes = scenes or ScenesConfig()
        known = self._scenes.name == ScenesConfig.name
        # Whole pairs and whole groups.
        self.together = 2 * self._scenes.group_size
        config = self._scenes.name if known else _builder_config(self._scenes.name)
        super().__init__(data_dir=data_dir, config=config, num_workers=num_workers)

    def _info(self) -> tfds.core.DatasetInfo:
        facts = facts_of(self.name)
        return tfds.core.DatasetInfo(
            builder=self,
            description=facts.description,
            features=features(),
            license=facts.licence,
        )

    def _plan(self) -> Plan:
        return Plan(
            {
                split: [(split, index) for index in range(self._scenes.images(split))]
                for split in SPLITS
            },
            classes={
                "category": [
                    AskedClass(f"all {kind.plural}", name)
                    for name, kind in KINDS.items()
                    if name != NOVEL_KIND
                ]
            },
        )

    def _maker(self) -> Callable[[tuple[str, int]], Outcome]:
        return functools.partial(make, self._scenes)

    def _finish(self, folder: Path, plan: Plan, built: Mapping[str, Summary]) -> None:
        del folder, plan, built


def build(data_dir: Path, config: ScenesConfig | None = None, *, num_workers: int = 0) -> Path:
    """Builds the dataset, unless it exists.

    Args:
        data_dir: folder of all datasets.
        config: settings of what to draw; `None` for the default.
        num_workers: number of processes that draw, as for `RecordBuilder`.

    Returns:
        The folder of the dataset.

    Raises:
        BuildError: another process is building it, or a worker process died.
    """
    builder = Scenes(scenes=config, num_workers=num_workers, data_dir=data_dir)
    folder = Path(str(builder.data_dir))
    return folder if folder.is_dir() else builder.build()
