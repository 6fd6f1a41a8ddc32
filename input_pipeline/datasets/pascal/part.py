"""PASCAL-Part: parts of the objects of PASCAL VOC 2010.

    SOURCE/Annotations_Part/<id>.mat              anno.objects[].{class, mask, parts[].{part_name, mask}}
    SOURCE/VOCdevkit/VOC2010/JPEGImages/<id>.jpg  (or VOC2010/... or JPEGImages/...)
    SOURCE/VOCdevkit/VOC2010/ImageSets/Main/{train,val}.txt

The parts of the files are finer than those of common language ("lfuleg": left front upper leg). As in
VLPart, they are renamed to 93 common parts of 14 categories of objects: a part gets the first name in
the list of its category (`PARTS`) that occurs in its own name ("leg" in "lfuleg"; "ear" in "rear"; "pa",
a paw, in "lfpa"). A part without such a name (an eyebrow, a roof) is left out and counted. Parts of one
name stay separate regions with the object as their parent, and "leg of dog" means all of them. All 20
categories of objects have prompts.

Source: tools/pascal_part_mat2json.py and datasets/README.md of github.com/facebookresearch/VLPart.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from input_pipeline.building.conversion import (
    Conversion,
    ItemError,
    Outcome,
    Plan,
    SourceError,
    read_image,
)
from input_pipeline.formats.matfile import MatError, load_mat
from input_pipeline.formats.parts import NamedRegion, expressions_of, targets_of
from input_pipeline.schema import encode_mask
from refseg_jax.text.encoding import EncodingError, decoded

SPLITS = ("train", "val")
#: Folders of the source folder that may hold VOC 2010.
DEVKITS = ("VOCdevkit/VOC2010", "VOC2010", ".")

#: Notes in the build report.
NO_NAME = "parts that have no common name, left out"
EMPTY = "objects and parts without a pixel, left out"

_ANIMAL = "head leg ear eye"
#: Category of an object -> common names of its parts; the first that occurs in a part's name counts.
PARTS: Mapping[str, tuple[str, ...]] = {
    kind: tuple(names.split())
    for kind, names in {
        "aeroplane": "body wing tail wheel",
        "bicycle": "wheel handlebar saddle",
        "bird": "beak head eye leg foot wing neck tail torso",
        "bottle": "body cap",
        "bus": "liplate headlight door mirror window wheel",
        "car": "liplate headlight door mirror window wheel",
        "cat": f"{_ANIMAL} pa neck nose tail torso",
        "cow": f"{_ANIMAL} neck horn muzzle tail torso",
        "dog": f"{_ANIMAL} pa neck nose muzzle tail torso",
        "horse": f"{_ANIMAL} neck muzzle tail torso",
        "motorbike": "wheel handlebar headlight saddle",
        "person": "hair head ear eye nose neck mouth arm hand leg foot torso",
        "pottedplant": "plant pot",
        "sheep": f"{_ANIMAL} neck horn muzzle tail torso",
    }.items()
}
#: Name in the files -> words for it in prompts, where they differ.
SPOKEN = {
    "pa": "paw",
    "liplate": "license plate",
    "pottedplant": "potted plant",
    "diningtable": "dining table",
    "table": "dining table",
    "tvmonitor": "tv monitor",
}


@dataclasses.dataclass(frozen=True)
class PartsImage:
    """An image to convert.

    Attributes:
        name: name in VOC, e.g. `2008_000002`.
        image: path of the image file.
        annotation: path of its `.mat` file.
    """

    name: str
    image: Path
    annotation: Path


def read_plan(source: Path) -> Plan:
    """Reads the lists of images of both splits.

    Raises:
        SourceError: a folder or a list is missing, or a list holds other names than VOC's.
    """
    annotations = source / "Annotations_Part"
    if not annotations.is_dir():
        raise SourceError(f"{annotations}: not there; unpack PASCAL-Part's trainval.tar.gz there")
    devkit = next((source / d for d in DEVKITS if (source / d / "JPEGImages").is_dir()), None)
    if devkit is None:
        raise SourceError(
            f"{source / DEVKITS[0]}: no JPEGImages there; unpack VOCtrainval_03-May-2010.tar there"
        )
    problems: list[str] = []
    splits: dict[str, tuple[PartsImage, ...]] = {}
    names = {split: _names(devkit / "ImageSets" / "Main" / f"{split}.txt") for split in SPLITS}
    for split, of_split in names.items():
        items = [
            PartsImage(name, devkit / "JPEGImages" / f"{name}.jpg", annotations / f"{name}.mat")
            for name in of_split
        ]
        missing = [p for item in items for p in (item.annotation, item.image) if not p.is_file()]
        problems += [f"{path}: not there; unpack the dataset again" for path in missing]
        lost = set(missing)
        splits[split] = tuple(i for i in items if not {i.annotation, i.image} & lost)
    held_out = {"val": tuple(f"voc/{name}" for name in names["val"])}
    return Plan(splits, tuple(problems), held_out=held_out)


def _names(file: Path) -> list[str]:
    try:
        lines = decoded(file.read_bytes()).splitlines()
    except EncodingError as error:
        raise SourceError(f"{file}: is no list of images: it {error}") from None
    except OSError:
        raise SourceError(f"{file}: not there; unpack VOCtrainval_03-May-2010.tar") from None
    names = [line.split()[0] for line in lines if line.strip()]
    for name in names:
        if not name.replace("_", "").isalnum():
            raise SourceError(f"{file}: {name!r:.40} is no image of VOC; unpack VOC 2010 again")
    return names


def convert(item: PartsImage, source: str) -> Outcome:
    """Makes the record of an image, with its objects and their parts.

    Raises:
        ItemError: a file is missing or damaged, or a mask has another size than the image.
        ImageError: the image is damaged.
    """
    image = read_image(item.image, cure="unpack VOCtrainval_03-May-2010.tar again")
    notes: dict[str, int] = {}
    try:
        regions = _regions(load_mat(item.annotation), (image.height, image.width), notes)
    except MatError as error:
        raise ItemError(str(error)) from None
    except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:120]
        raise ItemError(
            f"{item.annotation}: not PASCAL-Part's ({reason}); download it again"
        ) from None
    if not regions:
        return Outcome(None, notes=notes)
    record = image.record(
        f"voc/{item.name}",
        source,
        targets=targets_of(regions),
        expressions=expressions_of(regions, item.name),
    )
    return Outcome(record, notes=notes)


def _regions(
    variables: Mapping[str, Any], size: tuple[int, int], notes: dict[str, int]
) -> list[NamedRegion]:
    (annotation,) = variables["anno"]
    regions: list[NamedRegion] = []
    for thing in _rows(annotation["objects"]):
        kind = str(thing["class"])
        whole = SPOKEN.get(kind, kind)
        counts = _counts(thing["mask"], size, notes)
        parent = -1
        if counts is not None:
            parent = len(regions)
            regions.append(NamedRegion(counts, whole))
        for part in _rows(thing["parts"]):
            name = merged(kind, str(part["part_name"]))
            counts = _counts(part["mask"], size, notes) if name else None
            if counts is not None:
                regions.append(NamedRegion(counts, whole, name, parent))
            elif not name:
                notes[NO_NAME] = notes.get(NO_NAME, 0) + 1
    return regions


def merged(kind: str, part: str) -> str:
    """Common name of a part (`"dog", "lfuleg"` -> `"leg"`), or `""` if it has none.

    Args:
        kind: category of the object, as in the files.
        part: name of the part, as in the files.
    """
    name = next((name for name in PARTS.get(kind, ()) if name in part), "")
    return SPOKEN.get(name, name)


def _rows(value: Any) -> Sequence[Mapping[str, Any]]:
    """The elements of an array of structs; MATLAB writes an empty one as an array of numbers."""
    return value if isinstance(value, list) else np.reshape(value, -1)[:0].tolist()


def _counts(mask: Any, size: tuple[int, int], notes: dict[str, int]) -> bytes | None:
    pixels = np.asarray(mask)
    if pixels.shape != size:
        raise ValueError(f"a mask of {pixels.shape} for an image of {size}")
    if not pixels.any():
        notes[EMPTY] = notes.get(EMPTY, 0) + 1
        return None
    return encode_mask(pixels != 0)


CONVERSIONS = (Conversion("pascal_part", read_plan, convert),)
