"""Builds a dataset of your own from a function that makes its records."""

import functools
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import tensorflow_datasets as tfds

from input_pipeline.building.beam import Runner
from input_pipeline.building.builder import RecordBuilder
from input_pipeline.building.conversion import BuildError, Outcome, Plan, made
from input_pipeline.building.counts import REPORT
from input_pipeline.building.shards import Summary
from input_pipeline.schema import Record, features

A = TypeVar("A")

#: Folder in that of a dataset with the lines that it was made of.
LINES = "lines"


def build_records(
    name: str,
    splits: Mapping[str, Sequence[A]],
    make: Callable[[A], Record | Outcome],
    *,
    data_dir: str | Path,
    num_workers: int = 0,
    runner: Runner | None = None,
    notes: Mapping[str, int] | None = None,
    lines: Mapping[str, Sequence[bytes]] | None = None,
) -> Path:
    """Builds a dataset of your own.

    Args:
        name: name of the dataset, the value of `config.data.dataset`: `a-z`, `0-9` and `_`, beginning
            with a letter.
        splits: split -> items, e.g. paths, each of which becomes a record; picklable.
        make: makes the record of an item, or an `Outcome` with notes about it. With worker processes it
            must be picklable: a function of a module, or a `functools.partial` of one.
        data_dir: folder of all datasets.
        num_workers: number of processes that make records. For 0 or 1, or for fewer than 256 items,
            this process makes them.
        runner: Beam runner that writes the shards; `None` writes them on this machine.
        notes: what the report of the build counts besides the notes of the records.
        lines: split -> lines that stay in `lines/SPLIT.jsonl` beside the records.

    Returns:
        The folder of the dataset.

    Raises:
        BuildError: the name is invalid or taken, a split is empty, a record is inconsistent, or the id
            of an expression occurs twice.
        ImageError: an image is damaged.
    """
    folder = own_folder(name, data_dir)
    for split, items in splits.items():
        if not items:
            raise BuildError(f"{name}: split {split!r} is empty; leave it out")
    if folder.exists():
        raise BuildError(f"{folder}: is built already; remove it, or take another name")
    builder = _own(name)(splits, make, data_dir=data_dir, num_workers=num_workers, runner=runner)
    builder.notes, builder.lines = notes or {}, lines or {}
    return builder.build()


def own_folder(name: str, data_dir: str | Path) -> Path:
    """Folder into which `build_records` writes a dataset.

    Raises:
        BuildError: the name is invalid.
    """
    if not re.fullmatch("[a-z][a-z0-9_]*", name):
        raise BuildError(f"dataset name {name!r}: use a-z, 0-9 and _, beginning with a letter")
    return Path(data_dir) / name / str(RecordBuilder.VERSION)


def _own(name: str) -> type["_OwnBuilder"]:
    """Returns a builder class of the dataset's name: TFDS takes the name from the class."""
    return type(name, (_OwnBuilder,), {"name": name}, skip_registration=True)


class _OwnBuilder(RecordBuilder, skip_registration=True):
    name = "own"
    notes: Mapping[str, int]
    lines: Mapping[str, Sequence[bytes]]

    def __init__(
        self,
        splits: Mapping[str, Sequence[Any]],
        make: Callable[[Any], Record | Outcome],
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
        del plan
        notes = sum((summary.notes for summary in built.values()), Counter(self.notes))
        if notes:
            lines = [f"{note}: {number}" for note, number in notes.items()]
            (folder / REPORT).write_text("\n".join(lines) + "\n", encoding="utf-8")
        for split, kept in self.lines.items():
            path = folder / LINES / f"{split}.jsonl"
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(b"".join(line + b"\n" for line in kept))
