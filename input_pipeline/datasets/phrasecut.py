"""PhraseCut: phrases made from Visual Genome's annotations, with regions drawn by people.

    SOURCE/image_data_split3000.json               images: ids, sizes, splits
    SOURCE/refer_{train,val,miniv,test}.json       phrases and polygons
    SOURCE/images/<image_id>.jpg                   (or Visual Genome's VG_100K and VG_100K_2)

A phrase means all instances that were drawn for it: each is a target, and the mask is their union. The
file of `val` does not have the 100 images of `miniv`, which has its own file. `skip.json`, which lists
phrases that the annotators refused and that have no region, is not read. Images that COCO also has get
their COCO id (`coco_id` in the image list), because some of them are RefCOCO's test images.

Source: README.md of github.com/ChenyunWu/PhraseCutDataset.
"""

import dataclasses
import itertools
import json
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from input_pipeline.building.conversion import Conversion, Outcome, Plan, SourceError, read_image
from input_pipeline.formats.image_files import ImageFiles
from input_pipeline.formats.json_stream import elements, integer, packed, words
from input_pipeline.formats.regions import counts_of
from input_pipeline.schema import Expression, Target
from refseg_jax.images.segmentation import SegmentationError
from refseg_jax.images.units import Evidence
from refseg_jax.text.cleaning import has_word

SPLITS = ("train", "val", "miniv", "test")
IMAGE_FOLDERS = ("images", "VG_100K", "VG_100K_2")
#: File names under which the list of images was published.
IMAGE_LISTS = ("image_data_split3000.json", "image_data_split.json")

#: Notes in the build report.
NO_REGION = "phrases without a region, left out"
NO_WORD = "phrases without a word, left out"
NO_INSTANCE = "instances without a region, left out of masks"


@dataclasses.dataclass(frozen=True)
class Phrase:
    """A phrase.

    Attributes:
        id: id of the expression.
        text: the phrase.
        name: the noun of the phrase, which becomes the category of its targets.
        type: PhraseCut's type of the phrase, e.g. `attribute` or `relation`.
        polygons: JSON text: a list of polygons for each instance, each a list of points `[x, y]`.
    """

    id: str
    text: str
    name: str
    type: str
    polygons: bytes


@dataclasses.dataclass(frozen=True)
class PhraseImage:
    """An image to convert.

    Attributes:
        vg_id: Visual Genome's id.
        image_id: as in `Record`.
        path: path of the image file.
        height, width: size in pixels, as the image list states it.
        phrases: the phrases about the image.
    """

    vg_id: int
    image_id: str
    path: Path
    height: int
    width: int
    phrases: tuple[Phrase, ...]


@dataclasses.dataclass(frozen=True)
class _Listed:
    image_id: str
    split: str
    height: int
    width: int


def read_plan(source: Path) -> Plan:
    """Reads the list of images, and the phrases of all splits that the source folder has.

    Raises:
        SourceError: a file is missing, damaged or of another format.
    """
    images = _listed(source)
    there = ImageFiles(source, IMAGE_FOLDERS, "PhraseCut's images, or Visual Genome's VG_100K,")
    problems: dict[str, None] = {}
    notes: dict[str, int] = {}
    splits: dict[str, tuple[PhraseImage, ...]] = {}
    for split in SPLITS:
        file = source / f"refer_{split}.json"
        if file.is_file():
            planned = _split(file, images, there, problems, notes)
            splits[split] = tuple(planned)
    if not splits:
        raise SourceError(
            f"{source}: no refer_train.json (nor of another split); --source_dir must be the folder "
            "VGPhraseCut_v0 of PhraseCut's download"
        )
    held_out = {
        split: tuple(listed.image_id for listed in images.values() if listed.split == split)
        for split in SPLITS[1:]
    }
    return Plan(splits, tuple(problems), notes, held_out)


def convert(item: PhraseImage, source: str) -> Outcome:
    """Makes the record of an image and its phrases.

    Raises:
        ItemError: the image is missing, or has another size than listed.
        ImageError: the image is damaged.
    """
    cure = "copy it from Visual Genome 1.2"
    image = read_image(item.path, size=(item.height, item.width), cure=cure)
    targets: dict[bytes, Target] = {}
    expressions: list[Expression] = []
    kept: list[Phrase] = []
    problems: list[str] = []
    notes: Counter[str] = Counter()
    for phrase in item.phrases:
        try:
            found = _instances(phrase, item, notes)
        except SegmentationError as error:
            reason = error.with_cure("use PhraseCut's own file")
            problems.append(f"{item.path}: phrase {phrase.id}: {reason}")
            continue
        if not found:
            notes[NO_REGION] += 1
            continue
        for counts in found:
            targets.setdefault(counts, Target(counts, phrase.name))
        order = list(targets)
        means = tuple(sorted({order.index(counts) for counts in found}))
        granularity = "object" if len(means) == 1 else "multi"
        expressions.append(Expression(phrase.id, phrase.text, means, granularity, len(kept)))
        kept.append(phrase)
    if not expressions:
        return Outcome(None, tuple(problems), notes)
    record = image.record(
        item.image_id,
        source,
        targets=tuple(targets.values()),
        expressions=tuple(expressions),
        metadata=json.dumps({"vg_id": item.vg_id, "types": [phrase.type for phrase in kept]}),
    )
    return Outcome(record, tuple(problems), notes)


def _instances(phrase: Phrase, item: PhraseImage, notes: Counter[str]) -> list[bytes]:
    """RLE counts of the instances that have a region; adds the others to `notes`."""
    size = (item.height, item.width)
    regions = ([_flat(polygon) for polygon in instance] for instance in json.loads(phrase.polygons))
    counts = [counts_of(region, size, notes, empty=NO_INSTANCE) for region in regions]
    return [found for found in counts if found is not None]


def _flat(polygon: Any) -> list[Any]:
    points = isinstance(polygon, list) and all(isinstance(point, list) for point in polygon)
    if not points or not all(len(point) == 2 for point in polygon):
        raise SegmentationError("a polygon is no list of points [x, y]")
    return list(itertools.chain.from_iterable(polygon))


def _listed(source: Path) -> dict[int, _Listed]:
    file = next(
        (source / n for n in IMAGE_LISTS if (source / n).is_file()), source / IMAGE_LISTS[0]
    )
    images = {}
    for _, entry in elements(file):
        try:
            coco_id, vg_id = entry["coco_id"], integer(entry["image_id"])
            name = f"vg/{vg_id}" if coco_id is None else str(integer(coco_id))
            size = (integer(entry["height"]), integer(entry["width"]))
            images[vg_id] = _Listed(name, words(entry["split"]), *size)
        except (KeyError, TypeError, ValueError) as error:
            raise _other_layout(file, len(images), error) from None
    return images


def _split(
    file: Path,
    images: Mapping[int, _Listed],
    there: ImageFiles,
    problems: dict[str, None],
    notes: dict[str, int],
) -> Iterator[PhraseImage]:
    of_image: dict[int, list[Phrase]] = {}
    evidence = Evidence()
    for number, (_, task) in enumerate(elements(file)):
        try:
            phrase = _phrase(task)
            vg_id = integer(task["image_id"])
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise _other_layout(file, number, error) from None
        size = (images[vg_id].height, images[vg_id].width) if vg_id in images else None
        for instance in task["Polygons"]:
            evidence.add(instance, vg_id, size)
        if has_word(phrase.text):
            of_image.setdefault(vg_id, []).append(phrase)
        else:
            notes[NO_WORD] = notes.get(NO_WORD, 0) + 1
    if unit := evidence.find():
        raise SourceError(f"{file}: {unit}")
    for vg_id, phrases in of_image.items():
        name = f"{vg_id}.jpg"
        if vg_id not in images:
            problems[f"{file}: image {vg_id} is not in {IMAGE_LISTS[0]}; download both again"] = (
                None
            )
            continue
        path, listed = there.find(name), images[vg_id]
        if path is None:
            missing = there.expected(name)
            problems[f"{missing}: not there; copy it from Visual Genome 1.2"] = None
            continue
        yield PhraseImage(vg_id, listed.image_id, path, listed.height, listed.width, tuple(phrases))


def _phrase(task: Any) -> Phrase:
    structure = task["phrase_structure"] or {}
    if not all(isinstance(instance, list) for instance in task["Polygons"]):
        raise TypeError("Polygons is no list of lists")
    return Phrase(
        id=words(task["task_id"]),
        text=words(task["phrase"]),
        name=words(structure.get("name") or ""),
        type=words(structure.get("type") or ""),
        polygons=packed(task["Polygons"]),
    )


def _other_layout(file: Path, number: int, error: Exception) -> SourceError:
    reason = " ".join(f"{type(error).__name__}: {error}".split())[:120]
    return SourceError(f"{file}: entry {number} is not PhraseCut's ({reason}); download it again")


CONVERSIONS = (Conversion("phrasecut", read_plan, convert),)
