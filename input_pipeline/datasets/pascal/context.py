"""PASCAL-Context: every pixel of VOC2010's train and val as one of the 59 frequent classes.

    SOURCE/JPEGImages/<2008_000002>.jpg
    SOURCE/SegmentationClassContext/<2008_000002>.png
    SOURCE/ImageSets/SegmentationContext/{train,val}.txt      else ImageSets/Main/{train,val}.txt

This is VOCdevkit/VOC2010 with the maps that mmsegmentation's converter draws. Their values 1..59 are the
classes in alphabetical order; 0 is everything else. Maps of code that follows `59_labels.txt` of the
PASCAL-Context site have another order of the classes (VOC's 20 first). They must not be used, and cannot
be recognised by their content.

The names are those of mmsegmentation's `PascalContextDataset59`, which agree with those of two other
code bases, with `potted plant` and `tv monitor` in two words. The dataset does not say which classes are
stuff, so all targets are `object`.
"""

import functools
from pathlib import Path

from input_pipeline.building.conversion import Conversion, Plan, SourceError
from input_pipeline.facts.published import facts_of
from input_pipeline.formats.label_maps import (
    Classes,
    MapItem,
    asked_classes,
    convert_categories,
    first_folders,
    list_files,
)
from refseg_jax.text.encoding import EncodingError, decoded

_NAMES = (
    "aeroplane, bag, bed, bedclothes, bench, bicycle, bird, boat, book, bottle, building, bus, "
    "cabinet, car, cat, ceiling, chair, cloth, computer, cow, cup, curtain, dog, door, fence, floor, "
    "flower, food, grass, ground, horse, keyboard, light, motorbike, mountain, mouse, person, plate, "
    "platform, potted plant, road, rock, sheep, shelves, sidewalk, sign, sky, snow, sofa, table, "
    "track, train, tree, truck, tv monitor, wall, water, window, wood"
)

CLASSES = Classes(tuple(_NAMES.split(", ")), void=0)

_CURE = "use VOC2010's images and the maps that mmsegmentation's pascal_context.py draws"
_ROOTS = ("", "VOC2010/", "VOCdevkit/VOC2010/")
_LISTS = ("ImageSets/SegmentationContext", "ImageSets/Main")


def read_plan(source: Path) -> Plan:
    """Reads the lists of both splits and finds their images and maps.

    Raises:
        SourceError: a folder or both lists are missing, or a list holds something else than names.
    """
    layout = facts_of("pascal_context_59").layout
    choices = [(f"{up}JPEGImages", f"{up}SegmentationClassContext") for up in _ROOTS]
    images, maps = first_folders(source, choices, layout=layout)
    problems: list[str] = []
    of_image = list_files(images, (".jpg",), problems, cure=_CURE)
    of_map = list_files(maps, (".png",), problems, cure=_CURE)
    listed = {split: _read_list(images.parent, split) for split in ("train", "val")}
    if not any(listed.values()):
        raise SourceError(f"{source}: no list of images; --source_dir must hold {layout}")
    for name in dict.fromkeys(listed["train"] + listed["val"]):
        for there, path in ((of_image, images / f"{name}.jpg"), (of_map, maps / f"{name}.png")):
            if name not in there:
                problems.append(f"{path}: not there; {_CURE}")
    splits = {
        split: tuple(
            MapItem(of_image[name], of_map[name], f"voc/{name}", name)
            for name in names
            if name in of_image and name in of_map
        )
        for split, names in listed.items()
    }
    held_out = {"val": tuple(f"voc/{name}" for name in listed["val"])} if listed["val"] else {}
    asked = asked_classes(CLASSES.names)
    return Plan(splits, tuple(problems), held_out=held_out, classes=asked)


def _read_list(folder: Path, split: str) -> list[str]:
    """Names of the images of a split, each once, from the first list that exists."""
    for lists in _LISTS:
        path = folder / lists / f"{split}.txt"
        if not path.is_file():
            continue
        try:
            names = dict.fromkeys(decoded(path.read_bytes()).split())
        except EncodingError as error:
            raise SourceError(f"{path}: is no list of images: it {error}") from None
        hostile = [name for name in names if Path(name).name != name or not name.isascii()]
        if hostile:
            raise SourceError(f"{path}: {hostile[0]!r:.60} is no name of an image; use VOC2010's")
        return list(names)
    return []


_convert = functools.partial(convert_categories, classes=CLASSES, cure=_CURE)

CONVERSIONS = (Conversion("pascal_context_59", read_plan, _convert),)
