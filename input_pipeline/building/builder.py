"""Writes records to a dataset that the pipeline reads: the base of all builders.

A build that is stopped in the middle keeps its whole shards in `unfinished-<version>`, and the same
command goes on from there; nothing has the dataset's name before every split is whole.
"""

import abc
import contextlib
import functools
import itertools
import json
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import tensorflow_datasets as tfds
from absl import logging
from array_record.python.array_record_data_source import ArrayRecordDataSource
from tensorflow_datasets.core.dataset_builder import FileReaderBuilder
from tensorflow_datasets.core.splits import SplitDict
from tqdm import tqdm

from input_pipeline.building import beam, shards
from input_pipeline.building.conversion import BuildError, Outcome, Plan
from input_pipeline.building.processes import ordered_map
from input_pipeline.building.shards import Shard, Summary
from input_pipeline.schema import HELD_OUT, features
from refseg_jax.errors import UserError
from refseg_jax.locks import exclusive

#: Fewer images than this are read before processes have started.
_FEW = 256


class RecordBuilder(FileReaderBuilder, skip_registration=True):
    """A TFDS builder of records, without TensorFlow.

    It writes its shards itself: TFDS's shuffling writer opens buffers through TensorFlow as soon as
    a split is larger than 1 GB, and neither it nor the other can go on where it was stopped. Records
    keep the order of the plan; grain shuffles when reading.
    """

    name = "records"
    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES: ClassVar[dict[str, str]] = {"1.0.0": "First release."}

    def __init__(
        self,
        *,
        data_dir: str | Path,
        config: str | tfds.core.BuilderConfig | None = None,
        num_workers: int = 0,
        runner: beam.Runner | None = None,
    ) -> None:
        """Prepares a build.

        Args:
            data_dir: where datasets lie.
            config: one of `BUILDER_CONFIGS`, by name, or another; `None` where there is none.
            num_workers: processes that make records; at most 1, or few records, make them in this
                one.
            runner: makes whole shards by Apache Beam instead.
        """
        self._workers = num_workers
        self._runner = runner
        super().__init__(data_dir=data_dir, config=config, file_format="array_record")

    @abc.abstractmethod
    def _plan(self) -> Plan:
        """What is to be made."""

    @abc.abstractmethod
    def _maker(self) -> Callable[[Any], Outcome]:
        """Makes an item of the plan; picklable, runs in worker processes."""

    @abc.abstractmethod
    def _finish(self, folder: Path, plan: Plan, built: Mapping[str, Summary]) -> None:
        """Last checks and files, before the folder gets its name."""

    @property
    def source(self) -> str:
        """`"<dataset>[/<config>]"`, as records have it."""
        return "/".join(filter(None, (self.name, self.builder_config_name)))

    def build(self) -> Path:
        """Builds the dataset, or goes on with a build that was stopped.

        Returns:
            The folder of the dataset.

        Raises:
            BuildError: what is wrong with the items; nothing of the build is kept.
        """
        lock = self.unfinished.with_name(f"{self.unfinished.name}.lock")

        def busy(who: str) -> BuildError:
            return BuildError(f"{lock.parent}: {who} is building it; wait for it")

        with exclusive(lock, busy):
            for stale in self.unfinished.parent.glob(f"incomplete.*{self.VERSION}"):
                shutil.rmtree(stale)
            try:
                # TFDS makes folders for what it would download.
                self.download_and_prepare(download_dir=self.unfinished / "downloads")
            except BrokenProcessPool:
                raise BuildError(
                    f"{self.source}: a worker process died, perhaps for want of memory; run it "
                    "again, with fewer --num_workers: it goes on from the last whole file"
                ) from None
            except (UserError, ValueError):
                shutil.rmtree(self.unfinished, ignore_errors=True)
                raise
            finally:
                if not any(self.unfinished.glob("*.done.npz")):
                    shutil.rmtree(self.unfinished, ignore_errors=True)
                    self._remove_config_file()
        return Path(str(self.data_dir))

    def _remove_config_file(self) -> None:
        """Takes away what TFDS writes beside the configs of a dataset, where none is built."""
        folder = self.unfinished.parent
        common = folder.with_name(".config")
        alone = self.builder_config and {*folder.parent.iterdir()} <= {folder, common}
        if alone and not any(path.is_dir() for path in folder.iterdir()):
            shutil.rmtree(common, ignore_errors=True)

    @property
    def unfinished(self) -> Path:
        """Where a build keeps its shards until all are there."""
        return Path(str(self.data_dir)).with_name(f"unfinished-{self.VERSION}")

    def _download_and_prepare(self, dl_manager: Any, download_config: Any = None) -> None:
        """TFDS calls this with the folder still under a temporary name, `self.data_path`."""
        del dl_manager, download_config
        plan = self._plan()
        self._enter(shards.plan_digest(self.source, plan.splits))
        todo = {split: self._shards(split, items) for split, items in plan.splits.items()}
        summaries = self._write([shard for of_split in todo.values() for shard in of_split])
        built = {split: Summary() for split in todo}
        for shard, summary in summaries:
            built[shard.split].merge(summary)
        self._check_ids([shard for shard, _ in summaries], built)
        folder = Path(str(self.data_path))
        self._finish(folder, plan, built)
        _write_held_out(folder, plan, built)
        for shard, _ in summaries:
            shard.path.rename(folder / shard.path.name)
        self._set_splits(built)
        shutil.rmtree(self.unfinished)

    def _enter(self, digest: str) -> None:
        """Opens the unfinished folder, emptied if it is of another plan."""
        mark = self.unfinished / "plan.sha256"
        if mark.is_file() and mark.read_text() == digest:
            logging.info("%s: going on with the build that was stopped", self.source)
            return
        shutil.rmtree(self.unfinished, ignore_errors=True)
        self.unfinished.mkdir(parents=True)
        mark.write_text(digest)

    def _shards(self, split: str, items: Sequence[Any]) -> list[Shard]:
        size = shards.IMAGES_OF_A_SHARD
        number = -(-len(items) // size)
        template = self._get_filename_template(split_name=split).replace(split=split)
        return [
            Shard(
                split,
                self.unfinished
                / template.sharded_filepath(shard_index=index, num_shards=number).name,
                items[index * size : (index + 1) * size],
            )
            for index in range(number)
        ]

    def _write(self, every: Sequence[Shard]) -> list[tuple[Shard, Summary]]:
        """Writes the shards that are missing; the summaries of all, in order."""
        missing = [shard for shard in every if not shard.is_whole()]
        if self._runner is not None:
            beam.write_shards(missing, self._maker(), self._runner)
        else:
            self._write_here(missing, whole=sum(len(s.items) for s in every))
        for shard in missing:
            if not shard.is_whole():
                raise BuildError(
                    f"{shard.path}: was not written; the data folder must be one that all workers of "
                    "the runner see"
                )
        return [(shard, shards.read_summary(shard)) for shard in every]

    def _write_here(self, missing: Sequence[Shard], whole: int) -> None:
        """By one pool of processes for all shards; this process writes."""
        items = [item for shard in missing for item in shard.items]
        workers = self._workers if self._workers > 1 and len(items) >= _FEW else 0
        progress: Any = functools.partial(tqdm, desc=self.source, unit="image", mininterval=0.5)
        with (
            progress(total=whole, initial=whole - len(items)) as bar,
            contextlib.closing(ordered_map(self._maker(), items, workers)) as stream,
        ):

            def counted(number: int) -> Iterator[Outcome]:
                for outcome in itertools.islice(stream, number):
                    bar.update()
                    yield outcome

            for shard in missing:
                shards.write_shard(shard, counted(len(shard.items)))

    def _check_ids(self, every: Sequence[Shard], built: Mapping[str, Summary]) -> None:
        """Expressions' ids must be unique over all splits, or scores by id would be of nothing."""
        ids = np.sort(np.concatenate([s.expression_ids for s in built.values()] or [[]]))
        twice = set(ids[1:][ids[1:] == ids[:-1]].tolist())
        if not twice:
            return
        seen: set[str] = set()
        for shard in every:
            for file_name, expression_id in _ids_of(shard):
                if expression_id in seen:
                    raise BuildError(
                        f"{file_name}: expression id {expression_id!r} occurs twice; ids must be "
                        "unique over all splits"
                    )
                if shards.expression_hash(expression_id) in twice:
                    seen.add(expression_id)

    def _set_splits(self, built: Mapping[str, Summary]) -> None:
        self.info.set_splits(
            SplitDict(
                [
                    tfds.core.SplitInfo(
                        name=split,
                        shard_lengths=summary.lengths,
                        num_bytes=summary.bytes,
                        filename_template=self._get_filename_template(split_name=split),
                    )
                    for split, summary in built.items()
                ]
            )
        )

    def _log_download_bytes(self) -> None:
        """Nothing is downloaded."""

    def _log_download_done(self) -> None:
        """The caller says it."""


def _ids_of(shard: Shard) -> Iterator[tuple[str, str]]:
    """(file name of the image, expression id) of every expression of a shard."""
    structure = features()
    with ArrayRecordDataSource(str(shard.path)) as stored:
        for index in range(len(stored)):
            example = structure.deserialize_example_np(stored[index])
            name = example["file_name"].decode()
            yield from ((name, i.decode()) for i in example["expression/id"])


def _write_held_out(folder: Path, plan: Plan, built: Mapping[str, Summary]) -> None:
    splits = {split: sorted(set(ids)) for split, ids in plan.held_out.items()}
    for split, summary in built.items():
        if not split.startswith("train") and split not in splits:
            splits[split] = sorted(set(summary.image_ids))
    (folder / HELD_OUT).write_text(json.dumps(splits), encoding="utf-8")
