"""Built datasets as random-access sources of records, and the table of their expressions."""

import dataclasses
import functools
import hashlib
import io
import json
import logging as python_logging
import re
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from difflib import get_close_matches
from pathlib import Path
from typing import IO, Any

import numpy as np
from absl import logging

from input_pipeline.facts.published import all_facts
from input_pipeline.schema import Record, check_references, from_features
from refseg_jax.batch import GRANULARITIES
from refseg_jax.errors import UserError
from refseg_jax.naming import unknown
from refseg_jax.storage import buckets
from refseg_jax.text.lengths import count_tokens
from refseg_jax.text.tokenizers import build_tokenizer, tokenizer_identity

#: A folder that has this file is a built dataset.
_INFO = "features.json"
#: Value of `ExpressionTable.position` for a record that could not be read.
DAMAGED = -1
#: Records of a bucket that are read at once for a table: each is a request of its own.
_AT_ONCE = 32


class DatasetError(UserError):
    """A dataset is missing, incomplete or damaged."""


class UnreachableError(DatasetError):
    """A record in a bucket that does not answer; the record may be sound."""


def dataset_folder(data_dir: str, dataset: str) -> Path:
    """Folder of the newest version of a built dataset, `<data_dir>/<name>[/<config>]/<version>`.

    Args:
        data_dir: folder of all datasets, on a disk or in a bucket.
        dataset: `name/config`, or `name` alone if only one config of it is built.

    Raises:
        DatasetError: the dataset has not been built, or `dataset` names no config and several are built.
        UserError: the bucket cannot be read.
    """
    base = buckets.located(data_dir) / dataset
    built = _versions(base, "*") or _versions(base, "*/*")
    if not built:
        copied = f"; copy it: gcloud storage cp -r data/... {data_dir}/..."
        advice = _advice(data_dir, dataset) + copied * buckets.is_remote(data_dir)
        raise DatasetError(f"{base}: no built dataset; {advice}")
    configs = {folder.parent for folder in built}
    if len(configs) > 1:
        names = ", ".join(sorted(f"{dataset}/{path.name}" for path in configs))
        raise DatasetError(f"{base}: several configs are built; choose one of {names}")
    return max(built, key=_version)


def built_datasets(data_dir: str) -> dict[str, Path]:
    """Name of every dataset in `data_dir`, as `dataset_folder` takes it -> its newest folder."""
    base = buckets.located(data_dir)
    found = _versions(base, "*/*") + _versions(base, "*/*/*")
    names = sorted({folder.parent.relative_to(base).as_posix() for folder in found})
    return {name: dataset_folder(data_dir, name) for name in names}


def has_records(folder: Path) -> bool:
    """Whether a built dataset has records of `input_pipeline.schema`, and not of another program."""
    return '"expression/id"' in (folder / _INFO).read_text(encoding="utf-8")


def split_names(folder: Path) -> list[str]:
    """The splits of a built dataset.

    Raises:
        DatasetError: its `dataset_info.json` is missing or damaged.
    """
    return [split["name"] for split in _dataset_info(folder).get("splits", [])]


class RecordSource:
    """The records of one split by index. It can be pickled: each process opens the files itself."""

    def __init__(self, data_dir: str, dataset: str, split: str) -> None:
        """Finds a split; the files are opened when the first record is read.

        Args:
            data_dir, dataset: as for `dataset_folder`.
            split: name of the split.

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
        """Reads a record.

        Raises:
            DatasetError: the record or a file of the split is damaged.
            UnreachableError: they lie in a bucket that does not answer.
        """
        try:
            record = from_features(self._data[index])
            check_references(record)
            return record
        except Exception as error:  # ArrayRecord and TFDS have many, other programs' records more.
            if buckets.is_remote(self.folder) and (told := buckets.trouble(error)):
                what = f"record {index} of split {self.split!r}"
                raise UnreachableError(f"{self.folder}: {what} cannot be read: {told}") from None
            reason = " ".join(f"{type(error).__name__}: {error}".split())[:120]
            raise DatasetError(
                f"{self.folder}: record {index} of split {self.split!r} is damaged ({reason}); "
                "put back a sound copy of the split's files or build the dataset again"
            ) from None

    def __getstate__(self) -> dict[str, Any]:
        return {"folder": self.folder, "split": self.split}

    def fingerprint(self) -> str:
        """Hash of the names, sizes and times of the split's files; identifies a cached table."""
        facts = buckets.versions(self.folder, f"*-{self.split}.*")
        return hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:16]


@dataclasses.dataclass(frozen=True)
class ExpressionTable:
    """All `E` expressions of a split as columns, without the images.

    A record that could not be read has one row for each granularity. Training and evaluation therefore
    meet (and quarantine) it, whichever granularities they select.

    Attributes:
        record: i32 `[E]`, index of the record.
        position: i32 `[E]`, index in `Record.expressions`, or `DAMAGED`.
        referent: i32 `[E]`, as in `Expression`.
        granularity: i8 `[E]`, index in `GRANULARITIES`.
        group: i32 `[E]`, a number for each pair (group, text), or -1 for expressions without a group.
        text: i32 `[E]`, a number for each text, or -1 where the record could not be read.
        present: bool `[E]`, whether the expression has a target.
        largest: i32 `[2]`, the largest height and the largest width of the split's images in pixels.
        image, name: bytes `[R]`, image ids and file names of the `R` records in UTF-8, empty if one
            could not be read.
        tokens: i32 `[E]`, tokens that the text takes when nothing is cut, SOS and EOS included; 0 if it
            has no word, -1 where the record could not be read. `None` if no tokenizer was given.
    """

    record: np.ndarray
    position: np.ndarray
    referent: np.ndarray
    granularity: np.ndarray
    group: np.ndarray
    text: np.ndarray
    present: np.ndarray
    largest: np.ndarray
    image: np.ndarray
    name: np.ndarray
    tokens: np.ndarray | None = None

    @classmethod
    def of(
        cls, source: RecordSource, tokenizer: str = "", *, keep: bool = True
    ) -> "ExpressionTable":
        """Loads the table that lies beside the dataset, or makes it by reading every record once.

        A new table is kept beside the dataset, and the tokens in a file for each tokenizer.

        Args:
            source: the records of the split.
            tokenizer: name as in `build_tokenizer`, to count `tokens`; `""` leaves them out.
            keep: whether to keep a new table.

        Raises:
            DatasetError: no record can be read.
            UnreachableError: the bucket of the records does not answer.
            UserError: there is no such tokenizer.
        """
        mark = f"{source.split}-{source.fingerprint()}.npz"
        path = source.folder / f"expressions-{mark}"
        counts = source.folder / f"tokens-{tokenizer_identity(tokenizer)}-{mark}"
        columns = _load(path, cls._columns())
        counted = _load(counts, ("tokens",)) if tokenizer else {}
        if columns is not None and counted is not None:
            return cls(**columns, **counted)
        table = cls._read(source, tokenizer)
        # Not kept with damaged records: they may be readable later, or on another machine.
        if keep and not (table.position == DAMAGED).any():
            stored = {name: getattr(table, name) for name in cls._columns()}
            keep_beside(path, lambda file: np.savez(file, **stored))
            if table.tokens is not None:
                kept = table.tokens
                keep_beside(counts, lambda file: np.savez(file, tokens=kept))
        return table

    @classmethod
    def _columns(cls) -> tuple[str, ...]:
        return tuple(field.name for field in dataclasses.fields(cls) if field.name != "tokens")

    @classmethod
    def _read(cls, source: RecordSource, tokenizer: str) -> "ExpressionTable":
        count = None
        if tokenizer:
            # Many expressions have the same text, in datasets of prompts nearly all.
            once = functools.lru_cache(maxsize=1 << 16)
            count = once(functools.partial(count_tokens, build_tokenizer(tokenizer)))
        tokens: list[int] = []
        rows: list[tuple[int, ...]] = []
        groups: dict[tuple[str, str], int] = {}
        texts: dict[str, int] = {}
        largest = np.zeros(2, np.int32)
        images, files = [b""] * len(source), [b""] * len(source)
        damaged: list[DatasetError] = []
        for index, record in enumerate(_records(source)):
            if isinstance(record, DatasetError):
                damaged.append(record)
                tokens += [-1] * len(GRANULARITIES)
                rows += [(index, DAMAGED, 0, kind, -1, -1, 0) for kind in range(len(GRANULARITIES))]
                continue
            images[index], files[index] = record.image_id.encode(), record.file_name.encode()
            largest = np.maximum(largest, (record.height, record.width))
            for position, expression in enumerate(record.expressions):
                group = -1
                if expression.group:
                    group = groups.setdefault((expression.group, expression.text), len(groups))
                granularity = GRANULARITIES.index(expression.granularity)
                if count is not None:
                    tokens.append(count(expression.text))
                text = texts.setdefault(expression.text, len(texts))
                places = (index, position, expression.referent, granularity)
                rows.append((*places, group, text, bool(expression.targets)))
        if damaged and len(damaged) == len(source):
            raise damaged[0]
        columns = np.array(rows, np.int32).reshape(-1, 7).T
        record, position, referent, granularity, group, text, present = columns
        kinds = granularity.astype(np.int8)
        of_records = (largest, np.array(images, np.bytes_), np.array(files, np.bytes_))
        counted = np.array(tokens, np.int32) if count is not None else None
        there = present.astype(bool)
        return cls(record, position, referent, kinds, group, text, there, *of_records, counted)

    def select(self, wanted: np.ndarray) -> "ExpressionTable":
        """The table of the expressions for which `wanted`, bool `[E]`, is true.

        Records keep their indices.
        """
        columns = ["record", "position", "referent", "granularity", "group", "text", "present"]
        columns += ["tokens"] * (self.tokens is not None)
        return dataclasses.replace(self, **{name: getattr(self, name)[wanted] for name in columns})

    def of_targets(self) -> "ExpressionTable":
        """The table of the expressions with a target, and of the records that could not be read."""
        return self.select(self.present | (self.position == DAMAGED))

    def __len__(self) -> int:
        return len(self.record)


def _records(source: RecordSource) -> Iterator[Record | DatasetError]:
    """All records in order, or the errors of those that cannot be read."""

    def read(index: int) -> Record | DatasetError:
        try:
            return source[index]
        except UnreachableError:
            # A table without the record would differ from those of other hosts and of the next start.
            raise
        except DatasetError as error:
            return error

    if not buckets.is_remote(source.folder):
        yield from map(read, range(len(source)))
        return
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        for start in range(0, len(source), 4 * _AT_ONCE):
            yield from pool.map(read, range(start, min(start + 4 * _AT_ONCE, len(source))))


def _load(path: Path, names: Sequence[str]) -> dict[str, np.ndarray] | None:
    """Arrays of a file by their names, or `None` if there is no sound file."""
    try:
        # Opened here, because numpy does not close a truncated file that it opened itself.
        with path.open("rb") as file, np.load(file, allow_pickle=False) as stored:
            return {name: stored[name] for name in names}
    except FileNotFoundError:
        return None
    except _UNREADABLE as error:
        logging.info("%s is damaged or of another version, and made again: %s", path, error)
        return None


def keep_beside(path: Path, write: Callable[[IO[bytes]], Any]) -> None:
    """Writes a file beside a dataset, completely or not at all.

    If it cannot be written, the reason is logged and no error is raised: these files save time or
    inform, and nothing depends on them.

    Args:
        path: path of the file, in the folder of a built dataset.
        write: writes the content to a binary file.
    """
    partial: Path | None = None
    try:
        if buckets.is_remote(path):
            content = io.BytesIO()
            write(content)
            with buckets.told():
                path.write_bytes(content.getvalue())
            return
        with tempfile.NamedTemporaryFile(dir=path.parent, suffix=".partial", delete=False) as file:
            partial = Path(file.name)
            write(file)  # pyright: ignore[reportArgumentType]
        # Temporary files are private. Everybody who can read the dataset should be able to read this.
        partial.chmod((path.parent / _INFO).stat().st_mode & 0o666)
        partial.replace(path)
    except (OSError, UserError) as error:
        logging.info("%s is not kept: %s", path, error)
        if partial is not None:
            partial.unlink(missing_ok=True)


#: Errors of numpy for a damaged file of arrays, or one with other contents.
_UNREADABLE = (OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile, zlib.error)


def _versions(base: Path, pattern: str) -> list[Path]:
    """Folders named by a version. Builds in progress have other names, e.g. `unfinished-1.0.0`."""
    folders = [path.parent for path in base.glob(f"{pattern}/{_INFO}")]
    return [folder for folder in folders if re.fullmatch(r"\d+(\.\d+)*", folder.name)]


def _advice(data_dir: str, dataset: str) -> str:
    """What to do about a dataset that has not been built, as the end of a message."""
    facts = all_facts()
    # Papers write `refcoco+`; names of datasets have no `+`.
    name = dataset.replace("+", "_plus")
    others = list(built_datasets(data_dir))
    if name in others:
        return f"its name is {name}"
    nearest = get_close_matches(name, [*facts, *others], n=1)
    if name not in facts and nearest and nearest[0] in others:
        return unknown("dataset", name, nearest)
    # It builds on a disk alone.
    target = "data" if buckets.is_remote(data_dir) else data_dir
    command = f"python -m tools.build_dataset --data_dir={target}"
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
    """Drops the messages that TFDS logs each time a dataset is opened; keeps its warnings."""
    ours = "/tensorflow_datasets/" not in record.pathname.replace("\\", "/")
    return ours or record.levelno >= python_logging.WARNING


python_logging.getLogger("absl").addFilter(_hide_tfds)
