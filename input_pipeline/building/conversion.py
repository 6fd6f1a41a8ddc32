"""How a published dataset becomes records: what the module of each dataset gives to the builder.

A conversion has two halves. `read_plan` reads the annotation files and says what there is to make,
without opening an image. `convert` makes one record, on its own, so that processes and machines can
share the work.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from input_pipeline.schema import Expression, Record, Target, check_references
from refseg_jax.errors import UserError
from refseg_jax.images.preprocess import ImageError, decode_image
from refseg_jax.images.segmentation import SegmentationError, encode_segmentation


class BuildError(UserError):
    """A dataset cannot be built."""


class SourceError(UserError):
    """The downloaded files are not there, or not what they should be."""


class ItemError(UserError):
    """One image, or one region of it, cannot be converted; the others can."""


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What became of an item of the plan.

    Attributes:
        record: `None` where nothing of it is of use.
        problems: one line (file, reason, cure) for each thing that had to be left out.
        notes: how many things of a kind were left out, mended, or are odd, without being a fault
            of the copy at hand, e.g. `{"polygons of fewer than three points, left out of masks": 2}`.
    """

    record: Record | None
    problems: tuple[str, ...] = ()
    notes: Mapping[str, int] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Plan:
    """What is to be made.

    Attributes:
        splits: items by split; each becomes a record. Small, picklable, the same in every run.
        problems, notes: as of an `Outcome`, of what never became an item.
        held_out: image ids by evaluation split, of every one that the source knows, built or not;
            by them, training on another dataset leaves those images out. Where a split is missing
            here, those of its records are taken.
        facts: figures of the source that are no defect, e.g. its number of groups.
    """

    splits: Mapping[str, Sequence[Any]]
    problems: tuple[str, ...] = ()
    notes: Mapping[str, int] = dataclasses.field(default_factory=dict)
    held_out: Mapping[str, Sequence[str]] = dataclasses.field(default_factory=dict)
    facts: Mapping[str, int] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Conversion:
    """The code that converts a dataset; what is known about it is in `input_pipeline.facts`.

    Attributes:
        name: `"<dataset>[/<config>]"`, each of `a-z`, `0-9` and `_`: what `config.data.dataset` takes
            and records have as their source. A config is one way to split or to read a dataset.
        read_plan: the source folder -> its plan; raises `SourceError`.
        convert: (an item of the plan, `source`) -> its outcome; picklable (a function of a module,
            or a `functools.partial` of one). An `ItemError`, `ImageError` or `SegmentationError`
            that it raises makes the item a problem.
    """

    name: str
    read_plan: Callable[[Path], Plan]
    convert: Callable[[Any, str], Outcome]


def converted(convert: Callable[[Any, str], Outcome], source: str, item: Any) -> Outcome:
    """`convert(item, source)`, where an item that cannot be converted is a problem."""
    try:
        return convert(item, source)
    except (ItemError, ImageError, SegmentationError) as error:
        return Outcome(None, (str(error),))


def made(make: Callable[[Any], Record], item: Any) -> Outcome:
    """`make(item)`, for datasets of one's own; raises as `check_record` does."""
    return Outcome(check_record(make(item)))


def check_record(record: Record) -> Record:
    """The record, if it does not contradict itself.

    Raises:
        BuildError: the image's size is not the record's, a mask is empty or of another size, an
            index points nowhere, a granularity is unknown, or an expression has no word.
        ImageError: the image is damaged.
    """
    size = (record.height, record.width)
    found = decode_image(record.image, name=record.file_name).shape[:2]
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
        if not expression.text.strip():
            raise BuildError(
                f"{record.file_name}: expression {expression.id} has no word; leave it out"
            )
    return record


class ImageFile(NamedTuple):
    """Encoded bytes as they lie in the file, its name, and the size of the image in pixels."""

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
        """The record of the image; `file_name` where its own name does not tell it from others."""
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


def read_image(path: Path, *, size: tuple[int, int] | None = None, cure: str) -> ImageFile:
    """Reads an image and decodes it, to be sure that it can be.

    Args:
        path: the file.
        size: (height, width) that its annotations are for, where they say it.
        cure: what to do about a missing or wrong file, e.g. `"copy it from COCO train2014"`.

    Raises:
        ItemError: it cannot be read, or is of another size.
        ImageError: it is damaged.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ItemError(f"{path}: {error.strerror}; {cure}") from None
    height, width, _ = decode_image(data, name=str(path)).shape
    if size is not None and (height, width) != size:
        raise ItemError(
            f"{path}: is {width} x {height}, its annotations are for {size[1]} x {size[0]}; {cure}"
        )
    return ImageFile(data, path.name, height, width)


def as_given(text: str, folder: Path, source: Path) -> str:
    """A text about what `source_folder` made, with what it was made of in its place."""
    return text.replace(str(folder), str(source))
