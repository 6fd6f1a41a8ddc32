"""Opens the subjects of `tools.doctor`: a built dataset, or the downloaded files of one."""

import contextlib
import dataclasses
import functools
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from input_pipeline.building.conversion import (
    Conversion,
    Outcome,
    SourceError,
    as_given,
    converted,
    notes_of,
)
from input_pipeline.checks import CANNOT_BE_BUILT, Finding
from input_pipeline.datasets.registry import CONVERSIONS
from input_pipeline.facts.published import facts_of
from input_pipeline.formats import jsonl_records
from input_pipeline.formats.archives import source_folder
from input_pipeline.formats.places import Places
from input_pipeline.schema import Record
from input_pipeline.sources import DatasetError, RecordSource, dataset_folder, split_names
from refseg_jax.errors import UserError
from refseg_jax.images.decoding import ImageError
from refseg_jax.naming import unknown

#: Name that stands for a folder of your own.
_OWN = "jsonl"


class Reading(NamedTuple):
    """The record of an item, or `None` if it has none, and the findings while reading it."""

    record: Record | None
    findings: tuple[Finding, ...] = ()


@dataclasses.dataclass(frozen=True)
class Subject:
    """A dataset to examine.

    Attributes:
        name: name of the dataset, with its config.
        splits: split -> items.
        read: reads (split, item); picklable.
        facts: lines about the source.
        findings: findings about the dataset as a whole.
    """

    name: str
    splits: dict[str, Sequence[Any]]
    read: Callable[[tuple[str, Any]], Reading]
    facts: tuple[str, ...] = ()
    findings: tuple[Finding, ...] = ()


@contextlib.contextmanager
def opened(
    dataset: str,
    *,
    data_dir: Path | None,
    source_dir: Path | None,
    image_dir: Sequence[Path] = (),
    mask_threshold: int | None = None,
    splits: Sequence[str],
) -> Iterator[Subject]:
    """Opens a dataset while the `with` block runs; an archive is unpacked, and removed at the end.

    Args:
        dataset: name of the dataset.
        data_dir: folder of all built datasets; has the dataset, unless `source_dir` is given.
        source_dir: downloaded files (a folder or an archive), or `None` for a built dataset.
        image_dir: folders besides `source_dir` that may hold the images of your own lines.
        mask_threshold: level (1..255) at which the masks of your own lines are cut, or `None`.
        splits: splits to examine; empty examines all.

    Raises:
        UserError: there is no such dataset or split, or the files cannot be read.
    """
    if mask_threshold is not None and (dataset != _OWN or source_dir is None):
        raise UserError(f"{dataset}: --mask_threshold is for jsonl's files alone; leave it out")
    if source_dir is None:
        assert data_dir is not None
        yield _built(dataset, data_dir, splits)
    elif source_dir.is_dir():
        own = jsonl_records.conversion(Places(source_dir, tuple(image_dir)), mask_threshold)
        yield _raw(dataset, source_dir, source_dir, own, splits)
    else:
        # The doctor builds nothing, so it does not create a missing `data_dir` either.
        beside = data_dir if data_dir is not None and data_dir.is_dir() else None
        with (
            tempfile.TemporaryDirectory(prefix="doctor-", dir=beside) as room,
            source_folder(source_dir, Path(room)) as folder,
        ):
            own = jsonl_records.conversion(Places(folder, tuple(image_dir)), mask_threshold)
            yield _raw(dataset, folder, source_dir, own, splits)


def _built(dataset: str, data_dir: Path, wanted: Sequence[str]) -> Subject:
    folder = dataset_folder(str(data_dir), dataset)
    there = split_names(folder)
    sources = {
        split: RecordSource(str(data_dir), dataset, split)
        for split in _chosen(dataset, wanted, there)
    }
    return Subject(
        folder.parent.relative_to(data_dir).as_posix(),
        {split: range(len(source)) for split, source in sources.items()},
        functools.partial(_read_built, sources),
    )


def _read_built(sources: dict[str, RecordSource], item: tuple[str, int]) -> Reading:
    split, index = item
    try:
        record = sources[split][index]
    except DatasetError as error:
        return Reading(None, (Finding("damaged record", split, str(error)),))
    try:
        notes = notes_of(record)
    except ImageError:  # The checks say so.
        notes = {}
    where = f"{record.file_name} (image {record.image_id})"
    return Reading(record, tuple(_notes(notes, split, where)))


def _raw(
    dataset: str,
    folder: Path,
    source: Path,
    own: Conversion,
    wanted: Sequence[str],
) -> Subject:
    known = {**CONVERSIONS, _OWN: own}
    conversion = known.get(dataset)
    if conversion is None:
        raise UserError(unknown("dataset with a known format", dataset, known))
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder or archive; check --source_dir")
    plan = conversion.read_plan(folder)
    there = [split for split, items in plan.splits.items() if items]
    if not there and not plan.problems:
        layout = jsonl_records.LAYOUT if dataset == _OWN else facts_of(dataset).layout
        raise SourceError(f"{folder}: nothing of {dataset} is there; it must hold {layout}")
    said = functools.partial(as_given, folder=folder, source=source)
    problems = [Finding(CANNOT_BE_BUILT, "all", said(line)) for line in plan.problems]
    notes = _notes(plan.notes, "all", "annotation files")
    return Subject(
        dataset,
        {split: plan.splits[split] for split in _chosen(dataset, wanted, there)},
        functools.partial(_read_item, conversion, said),
        tuple(f"{name}: {number:,}" for name, number in plan.facts.items()),
        (*problems, *notes),
    )


def _read_item(
    conversion: Conversion, said: Callable[[str], str], item: tuple[str, Any]
) -> Reading:
    split, planned = item
    outcome: Outcome = converted(conversion.convert, conversion.name, planned)
    problems = [Finding(CANNOT_BE_BUILT, split, said(line)) for line in outcome.problems]
    record = outcome.record
    if record is None:
        notes = _notes(outcome.notes, split, "an image that is left out")
    else:
        where = f"{record.file_name} (image {record.image_id})"
        notes = _notes(outcome.notes, split, where, tuple(range(len(record.targets))))
    return Reading(record, (*problems, *notes))


def _notes(
    notes: Mapping[str, int], split: str, where: str, targets: tuple[int, ...] = ()
) -> list[Finding]:
    return [
        Finding(note, split, f"{where}: {number:,} of them", targets, number)
        for note, number in notes.items()
    ]


def _chosen(dataset: str, wanted: Sequence[str], there: Sequence[str]) -> Sequence[str]:
    for split in wanted:
        if split not in there:
            raise UserError(unknown(f"split of {dataset}", split, there))
    return wanted or there
