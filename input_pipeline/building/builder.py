"""The base class of builders, which write records as a dataset that the pipeline reads.

An interrupted build keeps its finished shards in `unfinished-<version>`, and the same command continues
from there. The dataset's folder appears only when every split is complete.
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
from input_pipeline.schema import CLASSES, HELD_OUT, features
from refseg_jax.errors import UserError
from refseg_jax.storage.locks import exclusive

#: For fewer items than this, starting worker processes takes longer than making the records.
_FEW = 256


class RecordBuilder(FileReaderBuilder, skip_registration=True):
    """A TFDS builder of records that does not need TensorFlow.

    It writes its shards itself. TFDS's shuffling writer opens buffers through TensorFlow as soon as a
    split is larger than 1 GB, and neither of TFDS's writers can continue an interrupted build. Records
    keep the order of the plan; grain shuffles when reading.

    A subclass provides the items (`_plan`), the function that converts one (`_maker`), and the last step
    of a build (`_finish`).

    Attributes:
        together: number of consecutive items that one process converts, because they share work.
    """

    name = "records"
    together = 1
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
            data_dir: folder of all datasets.
            config: name of one of `BUILDER_CONFIGS`, or a config that is not among them; `None` for a
                dataset without configs.
            num_workers: number of processes that make records. For 0 or 1, or for fewer than 256
                items, this process makes them.
            runner: Beam runner that writes the shards; `None` writes them on this machine.
        """
        self._workers = num_workers
        self._runner = runner
        super().__init__(data_dir=data_dir, config=config, file_format="array_record")

    @abc.abstractmethod
    def _plan(self) -> Plan:
        """Returns the items of each split, of which records are made."""

    @abc.abstractmethod
    def _maker(self) -> Callable[[Any], Outcome]:
        """Returns the function that makes the outcome of an item; picklable, runs in workers."""

    @abc.abstractmethod
    def _finish(self, folder: Path, plan: Plan, built: Mapping[str, Summary]) -> None:
        """Makes the last checks and writes additional files, before the folder gets its name.

        Args:
            folder: the dataset's folder under its temporary name.
            plan: the plan that was built.
            built: split -> summary of its shards.
        """

    @property
    def source(self) -> str:
        """`"<dataset>[/<config>]"`, the value of `Record.source`."""
        return "/".join(filter(None, (self.name, self.builder_config_name)))

    def build(self) -> Path:
        """Builds the dataset, or continues an interrupted build.

        Returns:
            The folder of the dataset.

        Raises:
            UserError: the source or an item is wrong; no shard is kept.
            BuildError: another process is building the dataset, or a worker process died; finished
                shards are kept.
        """
        lock = self.unfinished.with_name(f"{self.unfinished.name}.lock")

        def busy(who: str) -> BuildError:
            return BuildError(f"{lock.parent}: {who} is building it; wait for it")

        with exclusive(lock, busy):
            for stale in self.unfinished.parent.glob(f"incomplete.*{self.VERSION}"):
                shutil.rmtree(stale)
            try:
                # TFDS creates a download folder even if it downloads nothing.
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
        """Removes `.config`, which TFDS writes beside a dataset's configs, if no config is built."""
        folder = self.unfinished.parent
        common = folder.with_name(".config")
        alone = self.builder_config and {*folder.parent.iterdir()} <= {folder, common}
        if alone and not any(path.is_dir() for path in folder.iterdir()):
            shutil.rmtree(common, ignore_errors=True)

    @property
    def unfinished(self) -> Path:
        """Folder of the finished shards until the build is complete."""
        return Path(str(self.data_dir)).with_name(f"unfinished-{self.VERSION}")

    def _download_and_prepare(self, dl_manager: Any, download_config: Any = None) -> None:
        """Builds all splits; TFDS calls this while the folder still has a temporary name."""
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
        if plan.classes:
            (folder / CLASSES).write_text(json.dumps(plan.classes), encoding="utf-8")
        for shard, _ in summaries:
            shard.path.rename(folder / shard.path.name)
        self._set_splits(built)
        shutil.rmtree(self.unfinished)

    def _enter(self, digest: str) -> None:
        """Creates the unfinished folder, or keeps its shards if they belong to the same plan."""
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
        """Writes the missing shards and returns all shards with their summaries, in order."""
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
        """Writes shards on this machine: one pool of processes makes records, this process writes."""
        items = [item for shard in missing for item in shard.items]
        workers = self._workers if self._workers > 1 and len(items) >= _FEW else 0
        progress: Any = functools.partial(tqdm, desc=self.source, unit="image", mininterval=0.5)
        with (
            progress(total=whole, initial=whole - len(items)) as bar,
            contextlib.closing(ordered_map(self._maker(), items, workers, self.together)) as stream,
        ):

            def counted(number: int) -> Iterator[Outcome]:
                for outcome in itertools.islice(stream, number):
                    bar.update()
                    yield outcome

            for shard in missing:
                shards.write_shard(shard, counted(len(shard.items)))

    def _check_ids(self, every: Sequence[Shard], built: Mapping[str, Summary]) -> None:
        """Checks that expression ids are unique over all splits: predictions are matched by id."""
        # Hashes first, since they fit in memory. Ids of equal hashes are then compared.
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
        """Logs nothing: there is no download."""

    def _log_download_done(self) -> None:
        """Logs nothing: the caller reports the end of the build."""


def _ids_of(shard: Shard) -> Iterator[tuple[str, str]]:
    """Yields (file name of the image, expression id) for every expression of a shard."""
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
