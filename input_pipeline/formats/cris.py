"""Reads CRIS's format: a JSON list of regions with their sentences, and masks as PNG.

RefCOCO as CRIS and ETRIS prepare it has this format, and so does RefCOCOm.
"""

import dataclasses
import json
import os
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from input_pipeline.building.conversion import (
    NO_WORD,
    ItemError,
    Outcome,
    Plan,
    SourceError,
    read_image,
)
from input_pipeline.formats.image_files import ImageFiles
from input_pipeline.formats.json_stream import elements, integer
from input_pipeline.formats.mask_files import read_mask
from input_pipeline.formats.refer.layout import IMAGE_FOLDERS
from input_pipeline.formats.refer.refs import stored_text
from input_pipeline.schema import Expression, Target, encode_mask
from refseg_jax.images.decoding import ImageError
from refseg_jax.images.files import read_file
from refseg_jax.text.cleaning import has_word

#: A note of a build.
SOFT = "masks with greys, of which all that is not black is taken"


@dataclasses.dataclass(frozen=True)
class Segment:
    """A region with its sentences.

    Attributes:
        segment_id: name of its mask file, without `.png`.
        img_name: name of its image file.
        sentences: pairs of expression id and text.
        granularity: `object` or `part`.
    """

    segment_id: str
    img_name: str
    sentences: tuple[tuple[str, str], ...]
    granularity: str = "object"


@dataclasses.dataclass(frozen=True)
class ImagePlan:
    """An image of one split, and its regions with the files of their masks."""

    image_id: str
    path: Path
    segments: tuple[tuple[Segment, Path], ...]


def read_segments(file: Path, *, prefix: str | None = None) -> tuple[list[Segment], int]:
    """Reads the regions of an annotation file.

    Args:
        file: the JSON file.
        prefix: makes the expressions' ids `<prefix>-<segment_id>-<k>`; with `None` they are the
            file's `sent_id`.

    Returns:
        The regions that have a sentence, and the number of sentences without a word.

    Raises:
        SourceError: the file is missing, damaged or of another format.
    """
    segments: list[Segment] = []
    seen: dict[str, int] = {}
    empty = 0
    for number, (_, entry) in enumerate(elements(file)):
        try:
            segment_id = str(entry["segment_id"])
            said = []
            for sentence in entry["sentences"]:
                place = seen[segment_id] = seen.get(segment_id, -1) + 1
                named = f"{prefix}-{segment_id}-{place}" if prefix is not None else None
                said.append(
                    (named or str(integer(sentence["sent_id"])), stored_text(sentence["sent"]))
                )
            words = tuple((i, text) for i, text in said if has_word(text))
            name = str(entry["img_name"])
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise SourceError(
                f"{file}: entry {number} is not of CRIS's form ({type(error).__name__}: {error}); "
                "use the file that its authors distribute"
            ) from None
        empty += len(said) - len(words)
        if words:
            segments.append(Segment(segment_id, name, words))
    if not seen:
        raise SourceError(f"{file}: holds no region; use the file that its authors distribute")
    return segments, empty


def plan_of(source: Path, splits: Mapping[str, Sequence[Segment]], masks: Path, empty: int) -> Plan:
    """Joins regions, masks and images into a plan.

    Args:
        source: the source folder, which has the images.
        splits: split -> its regions.
        masks: the folder of the masks.
        empty: number of sentences without a word, for the notes.

    Raises:
        SourceError: the folder of the images or of the masks is missing.
    """
    if not masks.is_dir():
        raise SourceError(f"{masks}: no folder of masks; unpack it there")
    images = ImageFiles(source, IMAGE_FOLDERS, "COCO's train2014")
    drawn = {entry.name for entry in os.scandir(masks)}
    problems: dict[str, None] = {}
    plans: dict[str, tuple[ImagePlan, ...]] = {}
    held_out: dict[str, tuple[str, ...]] = {}
    for split, segments in splits.items():
        found: dict[tuple[str, Path], list[tuple[Segment, Path]]] = {}
        ids: dict[str, None] = {}
        for segment in segments:
            mask = f"{segment.segment_id}.png"
            image_id = coco_id(segment.img_name)
            if image_id is None:
                what = f"{segment.img_name!r:.60} is no name of COCO's"
                problems[f"{images.expected('')}: {what}; correct it"] = None
                continue
            ids[image_id] = None
            path = images.find(segment.img_name)
            if path is None:
                missing = images.expected(segment.img_name)
                problems[f"{missing}: not there; copy it from COCO train2014"] = None
            elif mask not in drawn:
                line = f"{masks}: no {mask!r:.60} there (of {segment.img_name}); unpack all of them"
                problems[line] = None
            else:
                found.setdefault((image_id, path), []).append((segment, masks / mask))
        plans[split] = tuple(
            ImagePlan(image_id, path, tuple(those)) for (image_id, path), those in found.items()
        )
        if split != "train":
            held_out[split] = tuple(ids)
    return Plan(plans, tuple(problems), {NO_WORD: empty} if empty else {}, held_out)


def coco_id(name: str) -> str | None:
    """`"COCO_train2014_000000000154.jpg"`, or its name of 2017 -> `"154"`; `None` for other names."""
    number = re.fullmatch(r"(?:COCO_\w+2014_)?(\d{12})\.jpg", name, re.ASCII)
    return str(int(number[1])) if number else None


def convert(plan: ImagePlan, source: str) -> Outcome:
    """Reads an image and the masks of its regions into a record.

    Args:
        plan: the image and its regions.
        source: the record's `source`.

    Raises:
        ItemError: the image is missing.
        ImageError: the image is damaged.
    """
    masks = _masks(plan)
    drawn = next((mask.size for mask in masks.values() if isinstance(mask, _Drawn)), None)
    image = read_image(plan.path, cure="copy it from COCO train2014", masks=drawn)
    targets: list[Target] = []
    expressions: list[Expression] = []
    segment_ids: list[str] = []
    problems: list[str] = []
    notes: Counter[str] = Counter()
    # A region may be listed once for each of its sentences.
    numbers: dict[str, int] = {}
    for segment, path in plan.segments:
        if segment.segment_id not in numbers:
            try:
                counts = _counts(masks[path], path, (image.height, image.width), notes)
            except ItemError as error:
                problems.append(str(error))
                continue
            numbers[segment.segment_id] = len(targets)
            segment_ids.append(segment.segment_id)
            targets.append(Target(counts, "", granularity=segment.granularity))
        number = numbers[segment.segment_id]
        expressions.extend(
            Expression(i, text, (number,), segment.granularity, number)
            for i, text in segment.sentences
        )
    if not expressions:
        return Outcome(None, tuple(problems), notes)
    record = image.record(
        plan.image_id,
        source,
        targets=tuple(targets),
        expressions=tuple(expressions),
        metadata=json.dumps({"segment_ids": segment_ids}),
    )
    return Outcome(record, tuple(problems), notes)


class _Drawn(NamedTuple):
    """A mask file: height and width, RLE counts, and notes of a build."""

    size: tuple[int, int]
    counts: bytes
    notes: tuple[str, ...]


def _masks(plan: ImagePlan) -> dict[Path, _Drawn | str]:
    """The masks of an image by their files, or why one cannot be used."""
    masks: dict[Path, _Drawn | str] = {}
    for _, path in plan.segments:
        if path in masks:
            continue
        try:
            # What is not zero, as in CRIS's code.
            mask = read_mask(read_file(path), name=str(path), threshold=1, brightness=True)
        except OSError as error:
            masks[path] = f"{path}: {error.strerror}; unpack the masks again"
            continue
        except ImageError as error:
            masks[path] = str(error)
            continue
        if not mask.region.any():
            masks[path] = f"{path}: has no pixel; use its authors' masks"
            continue
        height, width = mask.region.shape
        # Where polygons overlap, CRIS's masks have 254. 1 is a mask of 0 and 1.
        soft = () if {0, 1, 254, 255}.issuperset(mask.levels) else (SOFT,)
        masks[path] = _Drawn((height, width), encode_mask(mask.region), (*soft, *mask.notes))
    return masks


def _counts(mask: _Drawn | str, path: Path, size: tuple[int, int], notes: Counter[str]) -> bytes:
    """RLE counts of a mask; adds to the notes. Raises an `ItemError` if it cannot be used."""
    if isinstance(mask, str):
        raise ItemError(mask)
    if mask.size != size:
        raise ItemError(
            f"{path}: is {mask.size[1]} x {mask.size[0]}, its image {size[1]} x {size[0]}; use "
            "the masks and the images of the same distribution"
        )
    notes.update(mask.notes)
    return mask.counts
