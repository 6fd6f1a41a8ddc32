"""Converts a dataset to records: the interface between the module of a dataset and the builder.

A conversion has two parts. `read_plan` reads the annotation files and lists the items, without opening
an image. `convert` makes the record of one item independently of the others, so that processes and
machines can share the work.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from input_pipeline.schema import (
    AskedClass,
    Expression,
    Record,
    Target,
    check_references,
    id_fault,
)
from refseg_jax.errors import UserError, escaped, shown
from refseg_jax.images.decoding import ImageError, decode_image, image_notes
from refseg_jax.images.files import read_file
from refseg_jax.images.segmentation import SegmentationError, encode_segmentation
from refseg_jax.text.cleaning import has_word

#: Note of a build that leaves out expressions, see `refseg_jax.text.cleaning.has_word`.
NO_WORD = "expressions without a word, left out"


class BuildError(UserError):
    """A dataset cannot be built."""


class SourceError(UserError):
    """The source files are missing, damaged or of another dataset."""


class ItemError(UserError):
    """One image, or one region of it, cannot be converted; the others can."""


@dataclasses.dataclass(frozen=True)
class Outcome:
    """The result of converting one item of the plan.

    Attributes:
        record: the record, or `None` if nothing of the item is usable.
        problems: one line (file, reason, cure) for each part of the item that was left out because this
            copy of the files is damaged or incomplete. A build with problems fails, unless it is told to
            skip them (`--skip_missing`).
        notes: kind -> number of parts that were left out, were repaired or are unusual in every copy of
            the dataset, e.g. `{"polygons of fewer than three points, left out of masks": 2}`.
    """

    record: Record | None
    problems: tuple[str, ...] = ()
    notes: Mapping[str, int] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Plan:
    """The work of a build.

    Attributes:
        splits: split -> items, each of which becomes at most one record. Items are small, picklable and
            the same in every run.
        problems, notes: as those of `Outcome`, for annotations that did not become an item.
        held_out: evaluation split -> image ids, for all evaluation splits that the source describes,
            built or not. Training on other datasets leaves these images out. A built evaluation split
            that is missing here holds out the images of its records.
        facts: figures of the source for the build report that are no defects, e.g. its number of groups.
        classes: granularity (`"category"` or `"part"`) -> the dataset's closed list of classes, in its
            order, whether or not the built images show all of them.
    """

    splits: Mapping[str, Sequence[Any]]
    problems: tuple[str, ...] = ()
    notes: Mapping[str, int] = dataclasses.field(default_factory=dict)
    held_out: Mapping[str, Sequence[str]] = dataclasses.field(default_factory=dict)
    facts: Mapping[str, int] = dataclasses.field(default_factory=dict)
    classes: Mapping[str, Sequence[AskedClass]] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Conversion:
    """The code that converts one dataset; the facts about it are in `input_pipeline.facts`.

    Attributes:
        name: `"<dataset>[/<config>]"`, both of `a-z`, `0-9` and `_`: the value of `config.data.dataset`
            and of `Record.source`. A config is one way to split or to read a dataset.
        read_plan: maps the source folder to its plan; raises `SourceError`.
        convert: maps (item of the plan, `source`) to the outcome; picklable (a function of a module, or
            a `functools.partial` of one). If it raises `ItemError`, `ImageError` or
            `SegmentationError`, the whole item becomes a problem.
    """

    name: str
    read_plan: Callable[[Path], Plan]
    convert: Callable[[Any, str], Outcome]


def converted(convert: Callable[[Any, str], Outcome], source: str, item: Any) -> Outcome:
    """Returns `convert(item, source)`, with the error of an unusable item as a problem.

    Whatever a decoder raises is such an error. Expressions without a word are left out alone.
    """
    try:
        return _storable(_noted(convert(item, source)))
    except (ItemError, ImageError, SegmentationError) as error:
        return Outcome(None, (str(error),))
    except UserError:
        raise
    except Exception as error:
        reason = escaped(" ".join(f"{type(error).__name__}: {error}".split()))
        line = f"{shown(item)}: {reason}; put back a sound copy of its files, or report this line"
        return Outcome(None, (line,))


def _storable(outcome: Outcome) -> Outcome:
    """The outcome without expressions that have no word, and without a record that is no UTF-8."""
    record = outcome.record
    if record is None:
        return outcome
    if (name := _not_utf8(record)) is not None:
        line = f"{shown(record.file_name)}: the name {name!a} is not UTF-8; rename it"
        return dataclasses.replace(outcome, record=None, problems=(*outcome.problems, line))
    kept = tuple(e for e in record.expressions if has_word(e.text))
    lost = len(record.expressions) - len(kept)
    if not lost:
        return outcome
    notes = {**outcome.notes, NO_WORD: outcome.notes.get(NO_WORD, 0) + lost}
    return dataclasses.replace(
        outcome, record=dataclasses.replace(record, expressions=kept), notes=notes
    )


def _not_utf8(record: Record) -> str | None:
    """A name of a record that has bytes of another encoding, or `None`."""
    names = [record.file_name, record.image_id, *(t.category for t in record.targets)]
    for expression in record.expressions:
        names += [expression.group, expression.text, expression.id]
    for name in names:
        try:
            name.encode()
        except UnicodeEncodeError:
            return name
    return None


def made(make: Callable[[Any], Record | Outcome], item: Any) -> Outcome:
    """Returns `make(item)` as an outcome, for a dataset of your own; raises as `check_record` does."""
    found = make(item)
    outcome = found if isinstance(found, Outcome) else Outcome(found)
    if outcome.record is not None:
        check_record(outcome.record)
    return _noted(outcome)


def notes_of(record: Record) -> dict[str, int]:
    """Notes about a sound image: an EXIF flag, or a depth that was guessed.

    Raises:
        ImageError: the image is damaged.
    """
    size = (record.height, record.width)
    notes = image_notes(record.image, annotated=size, name=record.file_name)
    return dict.fromkeys(notes, 1)


def _noted(outcome: Outcome) -> Outcome:
    """The outcome with the notes about its image."""
    if outcome.record is None:
        return outcome
    return dataclasses.replace(outcome, notes={**outcome.notes, **notes_of(outcome.record)})


def check_record(record: Record) -> Record:
    """Returns the record after checking that it is consistent.

    Raises:
        BuildError: the size of the image differs from the record's, a mask is empty or has another
            size, an index is out of range, a granularity is unknown, a name is not UTF-8, an
            expression has no word, or the image's id is spelt otherwise than elsewhere (`id_fault`).
        ImageError: the image is damaged.
    """
    if (name := _not_utf8(record)) is not None:
        raise BuildError(f"{shown(record.file_name)}: {name!a} is not UTF-8; correct its record")
    if fault := id_fault(record.image_id):
        raise BuildError(f"{shown(record.file_name)}: its image_id {record.image_id!r:.80} {fault}")
    size = (record.height, record.width)
    found = decode_image(record.image, name=record.file_name, annotated=size).shape[:2]
    if found != size:
        raise BuildError(
            f"{record.file_name}: is {found[1]} x {found[0]}, its record says {record.width} x "
            f"{record.height}; correct one of them"
        )
    try:
        check_references(record)
    except ValueError as error:
        raise BuildError(f"{record.file_name}: {error}; correct its record") from None
    for number, target in enumerate(record.targets):
        try:
            encode_segmentation({"size": list(size), "counts": target.counts}, *size)
        except SegmentationError as error:
            raise BuildError(
                f"{record.file_name}: target {number}: {error}; make counts by schema.encode_mask"
            ) from None
    for expression in record.expressions:
        if not has_word(expression.text):
            raise BuildError(
                f"{record.file_name}: expression {expression.id} is {expression.text[:40]!a}, which "
                "has no word; leave it out"
            )
    return record


class ImageFile(NamedTuple):
    """An image file: its encoded bytes, its name, and the size of the image in pixels."""

    data: bytes
    name: str
    height: int
    width: int

    def record(
        self,
        image_id: str,
        source: str,
        *,
        targets: tuple[Target, ...],
        expressions: tuple[Expression, ...],
        metadata: str = "",
        file_name: str = "",
    ) -> Record:
        """Makes the record of the image; `file_name` replaces a name that is not unique."""
        return Record(
            image=self.data,
            image_id=image_id,
            file_name=file_name or self.name,
            height=self.height,
            width=self.width,
            source=source,
            targets=targets,
            expressions=expressions,
            metadata=metadata,
        )


def read_image(
    path: Path,
    *,
    size: tuple[int, int] | None = None,
    cure: str,
    masks: tuple[int, int] | None = None,
) -> ImageFile:
    """Reads an image and decodes it once, to find out whether it is damaged.

    The size is that of the image as a person sees it, turned by its EXIF flag, unless the annotations
    are of the size of its stored pixels alone (`images.orientation.is_followed`). The build report
    counts both.

    Args:
        path: the file.
        size: (height, width) that the annotations state, or `None`.
        cure: what to do about a missing or wrong file, e.g. `"copy it from COCO train2014"`.
        masks: (height, width) of masks that are compared later, in place of `size`.

    Raises:
        ItemError: the file cannot be read, or the image has another size.
        ImageError: the image is damaged.
    """
    try:
        data = read_file(path)
    except OSError as error:
        raise ItemError(f"{path}: {error.strerror}; {cure}") from None
    height, width, _ = decode_image(data, name=str(path), annotated=size or masks).shape
    if size is not None and (height, width) != size:
        raise ItemError(
            f"{path}: is {width} x {height}, its annotations are for {size[1]} x {size[0]}; {cure}"
        )
    return ImageFile(data, path.name, height, width)


def as_given(text: str, folder: Path, source: Path) -> str:
    """Replaces the path of an unpacked folder in a text by the path of its archive.

    Args:
        text: e.g. an error message.
        folder: the temporary folder into which `source_folder` unpacked the archive.
        source: the path that the user gave.
    """
    return text.replace(str(folder), str(source))
