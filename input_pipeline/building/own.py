"""Datasets of one's own: records out of whatever one has, by a function."""

import functools
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import tensorflow_datasets as tfds

from input_pipeline.building.beam import Runner
from input_pipeline.building.builder import RecordBuilder
from input_pipeline.building.conversion import BuildError, Outcome, Plan, made
from input_pipeline.building.shards import Summary
from input_pipeline.schema import Record, features

A = TypeVar("A")


def build_records(
    name: str,
    splits: Mapping[str, Sequence[A]],
    make: Callable[[A], Record],
    *,
    data_dir: str | Path,
    num_workers: int = 0,
    runner: Runner | None = None,
) -> Path:
    """Builds a dataset of one's own.

    Args:
        name: of the dataset: `a-z`, `0-9` and `_`, a letter first; what `config.data.dataset` takes.
        splits: what records are made of, e.g. paths, by the name of the split.
        make: an item to its record. With worker processes it must be a function of a module.
        data_dir: where datasets lie.
        num_workers: processes that make records; at most 1 makes them in this one.
        runner: makes whole shards by Apache Beam instead.

    Returns:
        The folder of the dataset.

    Raises:
        BuildError: the name cannot be used or is taken, a split is empty, a record contradicts
            itself, or an expression's id occurs twice.
        ImageError: an image is damaged.
    """
    folder = own_folder(name, data_dir)
    for split, items in splits.items():
        if not items:
            raise BuildError(f"{name}: split {split!r} is empty; leave it out")
    if folder.exists():
        raise BuildError(f"{folder}: is built already; remove it, or take another name")
    builder = _own(name)(splits, make, data_dir=data_dir, num_workers=num_workers, runner=runner)
    return builder.build()


def own_folder(name: str, data_dir: str | Path) -> Path:
    """Where `build_records` writes a dataset.

    Raises:
        BuildError: the name cannot be used.
    """
    if not re.fullmatch("[a-z][a-z0-9_]*", name):
        raise BuildError(f"dataset name {name!r}: use a-z, 0-9 and _, beginning with a letter")
    return Path(data_dir) / name / str(RecordBuilder.VERSION)


def _own(name: str) -> type["_OwnBuilder"]:
    """TFDS takes the name of a dataset from its class."""
    return type(name, (_OwnBuilder,), {"name": name}, skip_registration=True)


class _OwnBuilder(RecordBuilder, skip_registration=True):
    name = "own"

    def __init__(
        self,
        splits: Mapping[str, Sequence[Any]],
        make: Callable[[Any], Record],
        *,
        data_dir: str | Path,
        num_workers: int,
        runner: Runner | None,
    ) -> None:
        self._own_splits = splits
        self._make = make
        super().__init__(data_dir=data_dir, num_workers=num_workers, runner=runner)

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(builder=self, description=self.name, features=features())

    def _plan(self) -> Plan:
        return Plan(self._own_splits)

    def _maker(self) -> Callable[[Any], Outcome]:
        return functools.partial(made, self._make)

    def _finish(self, folder: Path, plan: Plan, built: Mapping[str, Summary]) -> None:
        del folder, plan, built
