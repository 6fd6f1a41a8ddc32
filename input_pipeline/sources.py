"""Built datasets as random-access sources of records, and the table of their expressions."""

import dataclasses
import functools
import hashlib
import json
import logging as python_logging
import re
import tempfile
import zipfile
import zlib
from collections.abc import Callable
from difflib import get_close_matches
from pathlib import Path
from typing import IO, Any

import numpy as np
from absl import logging

from input_pipeline.facts.published import all_facts
from input_pipeline.schema import Record, from_features
from refseg_jax.batch import GRANULARITIES
from refseg_jax.errors import UserError
from refseg_jax.naming import unknown

#: A folder that has this file is a built dataset.
_INFO = "features.json"
#: Position of a record that could not be read, in `ExpressionTable`.
DAMAGED = -1


class DatasetError(UserError):
    """A dataset that is not there or not whole."""


def dataset_folder(data_dir: str, dataset: str) -> Path:
    """The newest version of a built dataset, `<data_dir>/<name>[/<config>]/<version>`.

    Args:
        data_dir: where datasets lie.
        dataset: `name/config`, or `name` alone where one config of it is built.

    Raises:
        DatasetError: it has not been built, or several configs of it are.
    """
    base = Path(data_dir) / dataset
    built = _versions(base, "*") or _versions(base, "*/*")
    if not built:
        raise DatasetError(f"{base}: no built dataset; {_advice(data_dir, dataset)}")
    configs = {folder.parent for folder in built}
    if len(configs) > 1:
        names = ", ".join(sorted(f"{dataset}/{path.name}" for path in configs))
        raise DatasetError(f"{base}: several configs are built; choose one of {names}")
    return max(built, key=_version)


def built_datasets(data_dir: str) -> dict[str, Path]:
    """The newest version of every dataset in `data_dir`, by the name that `dataset_folder` takes."""
    base = Path(data_dir)
    found = _versions(base, "*/*") + _versions(base, "*/*/*")
    names = sorted({folder.parent.relative_to(base).as_posix() for folder in found})
    return {name: dataset_folder(data_dir, name) for name in names}


def has_records(folder: Path) -> bool:
    """Whether a built dataset is of the one record, and not another program's."""
    return '"expression/id"' in (folder / _INFO).read_text(encoding="utf-8")


def split_names(folder: Path) -> list[str]:
    """The splits of a built dataset.

    Raises:
        DatasetError: the dataset is not whole.
    """
    return [split["name"] for split in _dataset_info(folder).get("splits", [])]


class RecordSource:
    """The records of one split by index; may be pickled (workers open the files again)."""

    def __init__(self, data_dir: str, dataset: str, split: str) -> None:
        """Opens a split.

        Raises:
            DatasetError: the dataset has not been built, or has no such split.
        """
        self.folder = dataset_folder(data_dir, dataset)
        self.split = split
        splits = split_names(self.folder)
        if split not in splits:
            raise DatasetError(
                f"{self.folder}: no split {split!r}; there are {', '.join(sorted(splits))}"
            )

    @functools.cached_property
    def _data(self) -> Any:
        import tensorflow_datasets as tfds

        builder: Any = tfds.builder_from_directory(str(self.folder))
        return builder.as_data_source(split=self.split)

    def __len__(self) -> int:
        return len(self._data)

    def __getitem__(self, index: int) -> Record:
        """A record.

        Raises:
            DatasetError: its bytes are damaged, or a file of the split is.
        """
        try:
            return from_features(self._data[index])
        except (RuntimeError, ValueError, OSError) as error:  # Whatever ArrayRecord and TFDS raise.
            reason = " ".join(str(error).split())[:120]
            raise DatasetError(
                f"{self.folder}: record {index} of split {self.split!r} is damaged ({reason}); "
                "put back a sound copy of the split's files or build the dataset again"
            ) from None

    def __getstate__(self) -> dict[str, Any]:
        return {"folder": self.folder, "split": self.split}

    def fingerprint(self) -> str:
        """Names and sizes of the split's files, hashed: what the cached table belongs to."""
        files = sorted(self.folder.glob(f"*-{self.split}.*"))
        facts = [(f.name, f.stat().st_size, f.stat().st_mtime_ns) for f in files]
        return hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:16]


@dataclasses.dataclass(frozen=True)
class ExpressionTable:
    """All expressions of a split as columns, without their images.

    A record that could not be read has one line for each granularity, so that its row is met (and
    quarantined) in training and evaluation.

    Attributes:
        record: i32 `[E]`, index of the record.
        position: i32 `[E]`, index in `Record.expressions`, or `DAMAGED`.
        referent: i32 `[E]`.
        granularity: i8 `[E]`, index in `GRANULARITIES`.
        group: i32 `[E]`, a number for each (group, text), -1 for expressions without a group.
        largest: i32 `[2]`, the largest height and width of the split's images.
        image: bytes `[R]`, the image id of every record in UTF-8, empty where it could not be read.
    """

    record: np.ndarray
    position: np.ndarray
    referent: np.ndarray
    granularity: np.ndarray
    group: np.ndarray
    largest: np.ndarray
    image: np.ndarray

    @classmethod
    def of(cls, source: RecordSource) -> "ExpressionTable":
        """Reads every record once and keeps the table beside the dataset for the next time.

        Raises:
            DatasetError: no record can be read.
        """
        path = source.folder / f"expressions-{source.split}-{source.fingerprint()}.npz"
        table = cls._load(path)
        if table is None:
            table = cls._read(source)
            # A record may be sound again the next time, or on another machine.
            if not (table.position == DAMAGED).any():
                keep_beside(path, lambda file: np.savez(file, **dataclasses.asdict(table)))
        return table

    @classmethod
    def _load(cls, path: Path) -> "ExpressionTable | None":
        try:
            # numpy leaves a file that it opened itself open where its end is missing.
            with path.open("rb") as file, np.load(file, allow_pickle=False) as stored:
                return cls(**{f.name: stored[f.name] for f in dataclasses.fields(cls)})
        except FileNotFoundError:
            return None
        except _UNREADABLE as error:
            logging.info("%s is damaged and made again: %s", path, error)
            return None

    @classmethod
    def _read(cls, source: RecordSource) -> "ExpressionTable":
        rows: list[tuple[int, int, int, int, int]] = []
        groups: dict[tuple[str, str], int] = {}
        largest = np.zeros(2, np.int32)
        images = [b""] * len(source)
        damaged: list[DatasetError] = []
        for index in range(len(source)):
            try:
                record = source[index]
            except DatasetError as error:
                damaged.append(error)
                rows += [(index, DAMAGED, 0, kind, -1) for kind in range(len(GRANULARITIES))]
                continue
            images[index] = record.image_id.encode()
            largest = np.maximum(largest, (record.height, record.width))
            for position, expression in enumerate(record.expressions):
                group = -1
                if expression.group:
                    group = groups.setdefault((expression.group, expression.text), len(groups))
                granularity = GRANULARITIES.index(expression.granularity)
                rows.append((index, position, expression.referent, granularity, group))
        if damaged and len(damaged) == len(source):
            raise damaged[0]
        columns = np.array(rows, np.int32).reshape(-1, 5).T
        record, position, referent, granularity, group = columns
        kinds = granularity.astype(np.int8)
        return cls(record, position, referent, kinds, group, largest, np.array(images, np.bytes_))

    def select(self, wanted: np.ndarray) -> "ExpressionTable":
        """The table of some of its expressions, bool `[E]`; records keep their numbers."""
        columns = ("record", "position", "referent", "granularity", "group")
        return dataclasses.replace(self, **{name: getattr(self, name)[wanted] for name in columns})

    def __len__(self) -> int:
        return len(self.record)


def keep_beside(path: Path, write: Callable[[IO[bytes]], Any]) -> None:
    """Writes a file beside a dataset, whole or not at all.

    Does nothing where nothing can be written: such files are only there to save time, or to tell.
    """
    partial: Path | None = None
    try:
        with tempfile.NamedTemporaryFile(dir=path.parent, suffix=".partial", delete=False) as file:
            partial = Path(file.name)
            write(file)  # pyright: ignore[reportArgumentType]
        # Temporary files are private, but who may read the dataset may read what stands beside it.
        partial.chmod((path.parent / _INFO).stat().st_mode & 0o666)
        partial.replace(path)
    except OSError as error:
        logging.info("%s is not kept: %s", path, error)
        if partial is not None:
            partial.unlink(missing_ok=True)


#: What numpy raises on a damaged or foreign file of arrays.
_UNREADABLE = (OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile, zlib.error)


def _versions(base: Path, pattern: str) -> list[Path]:
    """Folders of whole datasets; those of builds that go on have longer names."""
    folders = [path.parent for path in base.glob(f"{pattern}/{_INFO}")]
    return [folder for folder in folders if re.fullmatch(r"\d+(\.\d+)*", folder.name)]


def _advice(data_dir: str, dataset: str) -> str:
    """What to do about a dataset that is not there."""
    facts = all_facts()
    # Papers write `refcoco+`.
    name = dataset.replace("+", "_plus")
    others = list(built_datasets(data_dir))
    if name in others:
        return f"its name is {name}"
    nearest = get_close_matches(name, [*facts, *others], n=1)
    if name not in facts and nearest and nearest[0] in others:
        return unknown("dataset", name, nearest)
    command = f"python -m tools.build_dataset --data_dir={data_dir}"
    if name in facts:
        source = " --source_dir=DIR" if facts[name].layout else ""
        called = "" if name == dataset else f"its name is {name}; "
        return f"{called}build it: {command} --dataset={name}{source}"
    published = unknown("dataset", name, facts)
    return f"{published} (one of your own: {command} --dataset=jsonl --name=NAME --source_dir=DIR)"


def _version(folder: Path) -> tuple[int, ...]:
    return tuple(int(number) for number in folder.name.split("."))


def _dataset_info(folder: Path) -> dict[str, Any]:
    try:
        return json.loads((folder / "dataset_info.json").read_text())
    except (OSError, json.JSONDecodeError) as error:
        raise DatasetError(
            f"{folder}/dataset_info.json: {error}; build the dataset again"
        ) from None


def _hide_tfds(record: python_logging.LogRecord) -> bool:
    """Drops what TFDS tells each time a dataset is opened."""
    ours = "/tensorflow_datasets/" not in record.pathname.replace("\\", "/")
    return ours or record.levelno >= python_logging.WARNING


python_logging.getLogger("absl").addFilter(_hide_tfds)
