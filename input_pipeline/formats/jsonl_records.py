"""Makes records from the lines of a user's own images.

Runs in worker processes, so it does not import TFDS. `input_pipeline.datasets.jsonl` has the format.
"""

import functools
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
from pycocotools import mask as coco_mask

from input_pipeline.building.conversion import (
    BuildError,
    Conversion,
    ItemError,
    Outcome,
    Plan,
    made,
)
from input_pipeline.formats.jsonl_files import ImageLines, find_splits, read_images
from input_pipeline.formats.jsonl_lines import BOX, Line
from input_pipeline.formats.mask_files import read_mask
from input_pipeline.formats.places import Places
from input_pipeline.schema import Expression, Record, Target, encode_mask
from refseg_jax.errors import shown
from refseg_jax.images.decoding import decode
from refseg_jax.images.placement import check_inside, is_of_corners, misplaced, nested
from refseg_jax.images.segmentation import SegmentationError, checked_rle, encode_segmentation

#: Files of the folder, for messages.
LAYOUT = "train.jsonl and the like"

#: What to add to an error about a region.
_TURNED = "An EXIF flag turns the picture to {} x {}: draw on what is seen, or save it upright"


def conversion(places: Places, mask_threshold: int | None = None) -> Conversion:
    """The conversion of a folder, in which an error that stops a build is a problem of one item.

    With it, the doctor examines the folder as it does a published dataset.

    Args:
        places: the folders that may hold the files.
        mask_threshold: as that of `read_images`.
    """
    read = functools.partial(_read_plan, others=places.others, mask_threshold=mask_threshold)
    return Conversion("jsonl", read, functools.partial(_convert, places=places))


def _read_plan(folder: Path, *, others: tuple[Path, ...], mask_threshold: int | None) -> Plan:
    places = Places(folder, others)
    splits = find_splits(folder)
    return Plan(
        {split: read_images(files, places, mask_threshold) for split, files in splits.items()}
    )


def _convert(item: ImageLines, source: str, *, places: Places) -> Outcome:
    try:
        return made(functools.partial(make_record, places=places, source=source), item)
    except BuildError as error:
        raise ItemError(str(error)) from None


def make_record(item: ImageLines, *, places: Places, source: str) -> Outcome:
    """Makes the record of an image from its lines and its masks, with notes about them.

    The image is what a person sees: if an EXIF flag turns it, its regions are those of the turned image.

    Args:
        item: the image and its lines.
        places: the folders that may hold the files.
        source: the record's `source`.

    Raises:
        BuildError: a file is missing, or a line does not fit the image.
        ImageError: an image or a mask file is damaged.
    """
    lines = item.lines()
    path = places.folder / item.key
    data = item.read(item.name, places, lines[0].where)
    image = decode(data, name=shown(path))
    height, width, _ = image.pixels.shape
    regions = _Regions()
    means: dict[str, tuple[int, ...]] = {}
    notes: Counter[str] = Counter()
    for line in lines:
        try:
            found = _regions(line, item, places, (height, width), notes)
        except BuildError as error:
            turned = f". {_TURNED.format(width, height)}" if image.turned else ""
            raise BuildError(f"{error}{turned}") from None
        means[line.id] = regions.add(line, found)
    for line in lines:
        if line.parent:
            regions.set_parent(line, means)
    referents: dict[Any, int] = {}
    expressions = tuple(
        Expression(
            id=line.id,
            text=line.text,
            targets=means[line.id],
            granularity=_granularity(line, len(means[line.id])),
            # Different texts that match nothing do not share a referent.
            referent=referents.setdefault(means[line.id] or line.text, len(referents)),
            form=line.form,
        )
        for line in lines
    )
    record = Record(
        image=data,
        image_id=_image_id(lines) or f"{source}/{item.key}",
        file_name=item.key,
        height=height,
        width=width,
        source=source,
        targets=regions.targets(),
        expressions=expressions,
        metadata=regions.metadata(),
    )
    return Outcome(record, notes=notes)


class _Regions:
    """Collects the targets of an image; lines with equal regions share a target."""

    def __init__(self) -> None:
        self._number: dict[bytes, int] = {}
        self._category: list[str] = []
        self._kind: list[str] = []
        self._parent: list[int] = []
        self._box: list[bool] = []

    def add(self, line: Line, found: Sequence[bytes]) -> tuple[int, ...]:
        """Adds the regions of a line; returns the indices of its targets."""
        chosen: set[int] = set()
        for counts in found:
            number = self._number.setdefault(counts, len(self._number))
            if number == len(self._kind):
                self._category.append("")
                self._kind.append("part" if line.granularity == "part" else "object")
                self._parent.append(-1)
                self._box.append(True)
            self._category[number] = self._category[number] or line.category
            self._box[number] &= line.segmentation == BOX
            chosen.add(number)
        return tuple(sorted(chosen))

    def set_parent(self, line: Line, means: Mapping[str, tuple[int, ...]]) -> None:
        whole = means.get(line.parent)
        if whole is None or len(whole) != 1:
            what = "no expression" if whole is None else f"{len(whole)} regions"
            raise BuildError(
                f"{line.where}: its parent {line.parent!r:.40} is {what} of this image; name the "
                "expression of one region"
            )
        for number in means[line.id]:
            if number == whole[0] or self._parent[number] not in (-1, whole[0]):
                raise BuildError(
                    f"{line.where}: a region that is its own parent, or has two; give the part a "
                    "region of its own"
                )
            self._parent[number] = whole[0]

    def targets(self) -> tuple[Target, ...]:
        return tuple(map(Target, self._number, self._category, self._parent, self._kind))

    def metadata(self) -> str:
        boxes = [number for number, box in enumerate(self._box) if box]
        return json.dumps({"boxes": boxes}) if boxes else ""


def _granularity(line: Line, number: int) -> str:
    if (line.granularity == "none") != (number == 0) and line.granularity:
        raise BuildError(
            f"{line.where}: granularity {line.granularity!r} with {number} targets; it is "
            "'none' exactly where nothing matches"
        )
    return line.granularity or ("none", "object", "multi")[min(number, 2)]


def _image_id(lines: Sequence[Line]) -> str:
    """The `image_id` that the lines of an image give, or `""`."""
    given = {line.image_id: line for line in lines if line.image_id}
    if len(given) > 1:
        raise BuildError(
            f"{lines[-1].where}: the image has the ids {' and '.join(map(repr, given))}; give one"
        )
    return next(iter(given), "")


def _regions(
    line: Line, item: ImageLines, places: Places, size: tuple[int, int], notes: Counter[str]
) -> list[bytes]:
    """RLE counts of the regions that the line means; adds to the notes of the build."""
    counts = []
    for name in line.masks:
        mask = read_mask(
            item.read(name, places, line.where),
            name=f"{line.where}: {shown(name)}",
            threshold=line.threshold or item.threshold,
        )
        notes.update(mask.notes)
        counts.append(_file_counts(mask.region, name, size, line.where))
    region = line.shape
    try:
        check_inside(region, *size)
        empty = isinstance(region, Mapping) and not coco_mask.area(
            cast(Any, checked_rle(region, *size))
        )
        if region is not None and not empty:
            counts.append(encode_segmentation(region, *size, box=line.box).counts)
            notes.update(nested(region, *size))
    except SegmentationError as error:
        cure = "correct the segmentation"
        if line.segmentation == BOX:
            cure = "correct 'box', which is [x, y, width, height] in pixels"
        raise BuildError(f"{line.where}: {error.with_cure(cure)}") from None
    if line.cleared:
        counts = []
    if line.box and line.segmentation != BOX:
        _check_box(line, counts, size)
        if len(counts) == 1:
            away = misplaced({}, counts[0], line.box, *size)
            notes.update(away)
    return counts


def _check_box(line: Line, counts: Sequence[bytes], size: tuple[int, int]) -> None:
    """Refuses a box that shares no pixel with a mask: it has other units, or is of another image."""
    rles: Any = [{"size": list(size), "counts": c} for c in counts]
    if len(rles) == 1 and is_of_corners(rles[0], line.box):
        raise BuildError(
            f"{line.where}: its 'box' {list(line.box)} is [left, top, right, bottom]; write [x, y, "
            "width, height] in pixels"
        )
    for rle in rles:
        x, y, width, height = coco_mask.toBbox(rle)
        left, top, wide, high = line.box
        if not (left < x + width and x < left + wide and top < y + height and y < top + high):
            raise BuildError(
                f"{line.where}: a mask lies outside of its 'box' {list(line.box)}; that is [x, y, "
                "width, height] in pixels"
            )
    if not rles:
        raise BuildError(f"{line.where}: a 'box', and nothing matches; leave one of them out")


def _file_counts(mask: np.ndarray, name: str, size: tuple[int, int], where: str) -> bytes:
    if mask.shape != size:
        raise BuildError(
            f"{where}: {shown(name)} is {mask.shape[1]} x {mask.shape[0]}, its image "
            f"{size[1]} x {size[0]}; draw it at the image's size"
        )
    if not mask.any():
        raise BuildError(f"{where}: {shown(name)} has no pixel; write null where nothing matches")
    return encode_mask(mask)
