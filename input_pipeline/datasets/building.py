"""Writes records to a dataset that the pipeline reads: one's own data, and the base of builders."""

import abc
import contextlib
import functools
import itertools
import re
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import tensorflow_datasets as tfds
from tqdm import tqdm

from input_pipeline.datasets.processes import ordered_map
from input_pipeline.schema import Record, features, to_features
from input_pipeline.segmentation import SegmentationError, encode_segmentation
from refseg_jax.errors import UserError
from refseg_jax.preprocess import decode_image

A = TypeVar("A")

#: Images of a file of records (about 160 MB of COCO's). TFDS keeps one such file's in memory.
_SHARD = 1000
#: Fewer images than this are read before processes have started.
_FEW = 256


class BuildError(UserError):
    """A dataset cannot be built."""


class RecordBuilder(tfds.core.ShardBasedBuilder, skip_registration=True):
    """A TFDS builder of records, without TensorFlow.

    Built by shards and not by TFDS's shuffling writer, because that one opens its buffers through
    TensorFlow as soon as a split is larger than 1 GB; grain shuffles when reading. Records keep the
    order of the plan. Nothing is renamed to its place before every split is whole.
    """

    name = "records"
    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES: ClassVar[dict[str, str]] = {"1.0.0": "First release."}

    def __init__(
        self,
        *,
        data_dir: str | Path,
        config: str | tfds.core.BuilderConfig | None,
        num_workers: int,
    ) -> None:
        """Prepares a build.

        Args:
            data_dir: where datasets lie.
            config: one of `BUILDER_CONFIGS`, by name, or another; `None` where there is none.
            num_workers: processes that make records; at most 1, or few records, make them in this
                one.
        """
        self._workers = num_workers
        super().__init__(data_dir=data_dir, config=config, file_format="array_record")

    @abc.abstractmethod
    def _plan(self) -> Mapping[str, Sequence[Any]]:
        """What is to be made, by split."""

    @abc.abstractmethod
    def _maker(self) -> Callable[[Any], Any]:
        """Turns an item of the plan into something; picklable, runs in worker processes."""

    @abc.abstractmethod
    def _record(self, split: str, made: Any) -> Record | None:
        """The record out of what was made; runs in this process, in order."""

    @abc.abstractmethod
    def _finish(self, folder: Path) -> None:
        """Last checks, before the folder gets its name."""

    @property
    def source(self) -> str:
        """`"<dataset>[/<config>]"`, as records have it."""
        return "/".join(filter(None, (self.name, self.builder_config_name)))

    def _download_and_prepare(self, dl_manager: Any, download_config: Any = None) -> None:
        """TFDS calls this with the folder still under its temporary name."""
        self._items = self._plan()
        try:
            with contextlib.closing(self._made()) as self._stream:
                super()._download_and_prepare(dl_manager, download_config)
        except BrokenProcessPool:
            raise BuildError(
                f"{self.source}: a worker process died, perhaps for want of memory; "
                "nothing was built; use fewer --num_workers"
            ) from None
        self._finish(Path(str(self.data_path)))

    def _shard_iterators_per_split(
        self, dl_manager: Any
    ) -> Mapping[str, Sequence[Callable[[], Iterator[tuple[str, dict[str, Any]]]]]]:
        del dl_manager
        return {
            split: [
                functools.partial(self._shard, split, min(_SHARD, len(items) - start))
                for start in range(0, len(items), _SHARD)
            ]
            for split, items in self._items.items()
        }

    def _shard(self, split: str, items: int) -> Iterator[tuple[str, dict[str, Any]]]:
        """The next items of the stream: TFDS asks for the shards in their order."""
        for made in itertools.islice(self._stream, items):
            record = self._record(split, made)
            if record is not None:
                yield record.image_id, to_features(record)

    def _made(self) -> Generator[Any, None, None]:
        """Every item of every split in turn, made by one pool of processes."""
        items = [item for items in self._items.values() for item in items]
        workers = self._workers if self._workers > 1 and len(items) >= _FEW else 0
        with tqdm(total=len(items), desc=self.source, unit="image", mininterval=0.5) as bar:
            for made in ordered_map(self._maker(), items, workers):
                bar.update()
                yield made

    def _log_download_bytes(self) -> None:
        """Nothing is downloaded."""

    def _log_download_done(self) -> None:
        """The caller says it."""


def build_records(
    name: str,
    splits: Mapping[str, Sequence[A]],
    make: Callable[[A], Record],
    *,
    data_dir: str | Path,
    num_workers: int = 0,
) -> Path:
    """Builds a dataset of one's own.

    Args:
        name: of the dataset: `a-z`, `0-9` and `_`, a letter first; what `config.data.dataset` takes.
        splits: what records are made of, e.g. paths, by the name of the split.
        make: an item to its record. With worker processes it must be a function of a module.
        data_dir: where datasets lie.
        num_workers: processes that make records; at most 1 makes them in this one.

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
    builder = _own(name)(splits, make, data_dir=data_dir, num_workers=num_workers)
    builder.download_and_prepare()
    return folder


def own_folder(name: str, data_dir: str | Path) -> Path:
    """Where `build_records` writes a dataset.

    Raises:
        BuildError: the name cannot be used.
    """
    if not re.fullmatch("[a-z][a-z0-9_]*", name):
        raise BuildError(f"dataset name {name!r}: use a-z, 0-9 and _, beginning with a letter")
    return Path(data_dir) / name / str(RecordBuilder.VERSION)


def check_record(record: Record) -> Record:
    """The record, if it does not contradict itself.

    Raises:
        BuildError: the image's size is not the record's, a mask is empty or of another size, or an
            expression has no word.
        ImageError: the image is damaged.
    """
    size = (record.height, record.width)
    found = decode_image(record.image, name=record.file_name).shape[:2]
    if found != size:
        raise BuildError(
            f"{record.file_name}: is {found[1]} x {found[0]}, its record says {record.width} x "
            f"{record.height}; correct one of them"
        )
    for number, target in enumerate(record.targets):
        try:
            encode_segmentation({"size": list(size), "counts": target.counts}, *size)
        except SegmentationError as error:
            raise BuildError(
                f"{record.file_name}: target {number}: {error}; make counts by schema.encode_mask"
            ) from None
    for expression in record.expressions:
        if not expression.text.strip():
            raise BuildError(
                f"{record.file_name}: expression {expression.id} has no word; leave it out"
            )
    return record


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
    ) -> None:
        self._own_splits = splits
        self._make = make
        self._ids: set[str] = set()
        super().__init__(data_dir=data_dir, config=None, num_workers=num_workers)

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(builder=self, description=self.name, features=features())

    def _plan(self) -> Mapping[str, Sequence[Any]]:
        return self._own_splits

    def _maker(self) -> Callable[[Any], Record]:
        return functools.partial(_make_checked, self._make)

    def _record(self, split: str, made: Record) -> Record:
        del split
        for expression in made.expressions:
            if expression.id in self._ids:
                raise BuildError(
                    f"{made.file_name}: expression id {expression.id!r} occurs twice; ids must be "
                    "unique over all splits"
                )
            self._ids.add(expression.id)
        return made

    def _finish(self, folder: Path) -> None:
        del folder


def _make_checked(make: Callable[[Any], Record], item: Any) -> Record:
    return check_record(make(item))
