"""Converts regions with category names from files in COCO's format: PACO's, PartImageNet's."""

import dataclasses
import json
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from input_pipeline.building.conversion import Outcome, Plan, SourceError, read_image
from input_pipeline.formats.json_stream import elements, integer, packed, words
from input_pipeline.formats.parts import NamedRegion, expressions_of, targets_of
from input_pipeline.formats.regions import counts_of
from input_pipeline.schema import Record
from refseg_jax.images.files import spelled
from refseg_jax.images.placement import stated_box
from refseg_jax.images.segmentation import SegmentationError, check_form
from refseg_jax.images.units import Evidence

#: Notes in the report of a build.
EMPTY = "annotations without a pixel, left out"
NO_ANNOTATION = "images without an annotation, left out"
INCOMPLETE = "categories that were not annotated everywhere in an image, not asked for there"

#: Category name in the file -> words for it: (object category, part category or `""`).
Spoken = Callable[[str], tuple[str, str]]


@dataclasses.dataclass(frozen=True)
class Annotation:
    """A region.

    Attributes:
        id: id of the annotation.
        whole: category of the object.
        part: category of the part, or `""` for the object itself.
        parent: of a part, the id of its object's annotation; else -1.
        segmentation: JSON text.
        box: (x, y, width, height) in pixels, or empty if none is stated.
    """

    id: int
    whole: str
    part: str
    parent: int
    segmentation: bytes
    box: tuple[float, ...]


@dataclasses.dataclass(frozen=True)
class CocoImage:
    """An image with its annotations.

    Attributes:
        name: name of the image file, without folders.
        height, width: size in pixels.
        incomplete: pairs (whole, part) that are not annotated everywhere in the image (LVIS).
        annotations: the regions.
    """

    name: str
    height: int
    width: int
    incomplete: tuple[tuple[str, str], ...]
    annotations: tuple[Annotation, ...]


@dataclasses.dataclass(frozen=True)
class PlannedImage:
    """An image to convert.

    Attributes:
        image: the image with its annotations.
        image_id: as in `Record`.
        path: path of the image file.
        cure: what to do about a missing or wrong image, for messages.
    """

    image: CocoImage
    image_id: str
    path: Path
    cure: str


def read_plan(
    files: Mapping[str, Path],
    spoken: Spoken,
    *,
    locate: Callable[[str, str], Path],
    image_id: Callable[[str], str],
    cure: str,
) -> Plan:
    """Reads the plan of some splits.

    Args:
        files: split -> file of annotations.
        spoken: category name in the file -> (object category, part category or `""`).
        locate: (split, name of an image file) -> path where it should be.
        image_id: name of an image file -> `Record.image_id`; raises a `ValueError` for other names.
        cure: what to do about a missing image, e.g. `"copy it from COCO 2017"`.

    Raises:
        SourceError: a file of annotations is missing, damaged or of another format.
    """
    problems: list[str] = []
    notes: dict[str, int] = {}
    splits: dict[str, tuple[PlannedImage, ...]] = {}
    held_out: dict[str, tuple[str, ...]] = {}
    for split, file in files.items():
        ids, planned = [], []
        for image in _read(file, spoken):
            try:
                ids.append(image_id(image.name))
            except ValueError as error:
                raise SourceError(f"{file}: {error}; download it again") from None
            path = locate(split, image.name)
            path = spelled(path.parent, path.name)
            if not image.annotations:
                notes[NO_ANNOTATION] = notes.get(NO_ANNOTATION, 0) + 1
            elif not path.is_file():
                problems.append(f"{path}: not there; {cure}")
            else:
                planned.append(PlannedImage(image, ids[-1], path, cure))
        splits[split] = tuple(planned)
        if not split.startswith("train"):
            held_out[split] = tuple(ids)
    return Plan(splits, tuple(problems), notes, held_out)


class _Entry(NamedTuple):
    id: int
    category: int
    parent: int
    segmentation: bytes
    box: tuple[float, ...]


def _read(file: Path, spoken: Spoken) -> list[CocoImage]:
    """Reads the images and their annotations, both in the order of the file."""
    images: dict[int, CocoImage] = {}
    incomplete: dict[int, tuple[int, ...]] = {}
    annotations: dict[int, list[_Entry]] = {}
    names: dict[int, tuple[str, str]] = {}
    evidence = Evidence()
    for key, entry in elements(file):
        try:
            if key == "images":
                number = integer(entry["id"])
                images[number] = _image(entry)
                lacking = entry.get("not_exhaustive_category_ids") or ()
                incomplete[number] = tuple(map(integer, lacking))
            elif key == "categories":
                names[integer(entry["id"])] = spoken(words(entry["name"]))
            elif key == "annotations":
                number = integer(entry["image_id"])
                annotations.setdefault(number, []).append(_entry(entry))
                evidence.add(entry["segmentation"], number)
        except (KeyError, TypeError, ValueError) as error:
            reason = " ".join(f"{type(error).__name__}: {error}".split())[:120]
            raise SourceError(
                f"{file}: an entry of {key!r} is not COCO's ({reason}); download it again"
            ) from None
    lost = sorted(annotations.keys() - images.keys())
    lost += sorted({e.category for of in annotations.values() for e in of} - names.keys())
    if lost or not images:
        what = f"image or category {lost[0]} of an annotation" if lost else "images"
        raise SourceError(f"{file}: it does not list {what}; download it again")
    if unit := evidence.find(lambda number: (images[number].height, images[number].width)):
        raise SourceError(f"{file}: {unit}")
    return [
        dataclasses.replace(
            image,
            incomplete=tuple(names[c] for c in incomplete[number] if c in names),
            annotations=tuple(
                Annotation(
                    entry.id, *names[entry.category], entry.parent, entry.segmentation, entry.box
                )
                for entry in annotations.get(number, ())
            ),
        )
        for number, image in images.items()
    ]


def _image(entry: Mapping[str, Any]) -> CocoImage:
    name = PurePosixPath(words(entry["file_name"]).replace("\\", "/")).name
    if name in ("", "..") or "\0" in name:
        raise ValueError(f"file_name {entry['file_name']!r:.40}")
    return CocoImage(name, integer(entry["height"]), integer(entry["width"]), (), ())


def _entry(entry: Mapping[str, Any]) -> _Entry:
    number = integer(entry["id"])
    whole = integer(entry.get("obj_ann_id", number))
    parent = -1 if whole == number else whole
    region, box = packed(entry["segmentation"]), stated_box(entry.get("bbox"))
    return _Entry(number, integer(entry["category_id"]), parent, region, box)


def convert(item: PlannedImage, source: str) -> Outcome:
    """Makes the record of an image, with its regions and prompts for them.

    Args:
        item: the image to convert.
        source: the record's `source`.

    Raises:
        ItemError: the image is missing, or has another size than its annotations.
        ImageError: the image is damaged.
    """
    image = item.image
    size = (image.height, image.width)
    data = read_image(item.path, size=size, cure=item.cure).data
    problems: list[str] = []
    notes: Counter[str] = Counter()
    regions: list[NamedRegion] = []
    incomplete = set(image.incomplete)
    index: dict[int, int] = {}
    # Objects first, so that their parts can name them.
    for annotation in sorted(image.annotations, key=lambda a: a.parent >= 0):
        try:
            segmentation = json.loads(annotation.segmentation)
            check_form(segmentation)
            counts = counts_of(segmentation, size, notes, empty=EMPTY, box=annotation.box)
        except SegmentationError as error:
            reason = error.with_cure("download its file")
            problems.append(f"{item.path}: annotation {annotation.id}: {reason}")
            incomplete.add((annotation.whole, annotation.part))
            continue
        if counts is not None:
            index[annotation.id] = len(regions)
            parent = index.get(annotation.parent, -1) if annotation.parent >= 0 else -1
            regions.append(NamedRegion(counts, annotation.whole, annotation.part, parent))
    if not regions:
        return Outcome(None, tuple(problems), notes)
    # Where objects of a category are not annotated everywhere, their parts are not either.
    missing = {
        (r.whole, r.part) for r in regions if incomplete & {(r.whole, r.part), (r.whole, "")}
    }
    if missing:
        notes[INCOMPLETE] = len(missing)
    record = Record(
        image=data,
        image_id=item.image_id,
        file_name=image.name,
        height=image.height,
        width=image.width,
        source=source,
        targets=targets_of(regions),
        expressions=expressions_of(regions, Path(image.name).stem, missing),
        metadata=json.dumps({"ann_ids": list(index)}),
    )
    return Outcome(record, tuple(problems), notes)
