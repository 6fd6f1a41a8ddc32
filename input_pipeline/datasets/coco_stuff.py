"""COCO-Stuff 164k: every pixel of COCO train2017 and val2017 as one of 171 classes, things and stuff.

    SOURCE/images/{train2017,val2017}/<12 digits>.jpg
    SOURCE/annotations/{train2017,val2017}/<12 digits>.png    of stuffthingmaps_trainval2017.zip

The value of a map is COCO's category id minus 1; 255 is void. Ids 1..91 are things, 11 of which (`street
sign`, `hat` ...) have a name but no pixel in any map; ids 92..182 are stuff. Names are those of
`labels.txt` of github.com/nightrome/cocostuff. Without the 11, they are the 171 of mmsegmentation's
`COCOStuffDataset`, in the same order. Names with a hyphen (`wall-brick`, `sky-other`) are not shortened,
because "all wall" would mean walls of brick as well.

The images are those of COCO: train2017 holds RefCOCO's val and test images. Maps of another numbering,
which training code writes beside these (`*_labelTrainIds.png`), are not read.
"""

import functools
import re
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

_THINGS = (
    "person, bicycle, car, motorcycle, airplane, bus, train, truck, boat, traffic light, fire hydrant, "
    "street sign, stop sign, parking meter, bench, bird, cat, dog, horse, sheep, cow, elephant, bear, "
    "zebra, giraffe, hat, backpack, umbrella, shoe, eye glasses, handbag, tie, suitcase, frisbee, skis, "
    "snowboard, sports ball, kite, baseball bat, baseball glove, skateboard, surfboard, tennis racket, "
    "bottle, plate, wine glass, cup, fork, knife, spoon, bowl, banana, apple, sandwich, orange, "
    "broccoli, carrot, hot dog, pizza, donut, cake, chair, couch, potted plant, bed, mirror, "
    "dining table, window, desk, toilet, door, tv, laptop, mouse, remote, keyboard, cell phone, "
    "microwave, oven, toaster, sink, refrigerator, blender, book, clock, vase, scissors, teddy bear, "
    "hair drier, toothbrush, hair brush"
)

_STUFF = (
    "banner, blanket, branch, bridge, building-other, bush, cabinet, cage, cardboard, carpet, "
    "ceiling-other, ceiling-tile, cloth, clothes, clouds, counter, cupboard, curtain, desk-stuff, "
    "dirt, door-stuff, fence, floor-marble, floor-other, floor-stone, floor-tile, floor-wood, "
    "flower, fog, food-other, fruit, furniture-other, grass, gravel, ground-other, hill, house, "
    "leaves, light, mat, metal, mirror-stuff, moss, mountain, mud, napkin, net, paper, pavement, "
    "pillow, plant-other, plastic, platform, playingfield, railing, railroad, river, road, rock, "
    "roof, rug, salad, sand, sea, shelf, sky-other, skyscraper, snow, solid-other, stairs, stone, "
    "straw, structural-other, table, tent, textile-other, towel, tree, vegetable, wall-brick, "
    "wall-concrete, wall-other, wall-panel, wall-stone, wall-tile, wall-wood, water-other, "
    "waterdrops, window-blind, window-other, wood"
)

#: Names of the category ids 1..91 (things) and 92..182 (stuff).
THINGS, STUFF = tuple(_THINGS.split(", ")), tuple(_STUFF.split(", "))

#: Ids of the things that have a name but are in no map.
NEVER_DRAWN = (12, 26, 29, 30, 45, 66, 68, 69, 71, 83, 91)

CLASSES = Classes(
    names=(*THINGS, *STUFF), void=255, first=0, stuff=frozenset(range(len(THINGS), 182))
)

_CURE = "use COCO's 2017 images and stuffthingmaps_trainval2017.zip"

#: Folders of images and of maps: first those of the README, then those that the archives suggest.
_FOLDERS = (
    ("images", "annotations"),
    ("images", "stuffthingmaps"),
    (".", "stuffthingmaps"),
    (".", "stuffthingmaps_trainval2017"),
    (".", "annotations"),
)


def read_plan(source: Path) -> Plan:
    """Lists the maps of both splits and finds their images.

    Raises:
        SourceError: neither split is there, or a split has maps but no folder of images.
    """
    layout = facts_of("coco_stuff").layout
    splits: dict[str, tuple[MapItem, ...]] = {}
    held_out: dict[str, tuple[str, ...]] = {}
    problems: list[str] = []
    for split in ("train", "val"):
        year = f"{split}2017"
        choices = [(f"{images}/{year}", f"{maps}/{year}") for images, maps in _FOLDERS]
        if not any((source / maps).is_dir() for _, maps in choices):
            continue
        images, maps = first_folders(source, choices, layout=layout)
        of_map = list_files(maps, (".png",), problems, cure=_CURE)
        drawn = {s: path for s, path in of_map.items() if re.fullmatch(r"\d{12}", s, re.ASCII)}
        splits[split] = _items(images, drawn, problems)
        if split == "val":
            held_out[split] = tuple(str(int(stem)) for stem in drawn)
    if not splits:
        raise SourceError(f"{source}: --source_dir must hold {layout}")
    asked = asked_classes(n for k, n in enumerate(CLASSES.names, 1) if k not in NEVER_DRAWN)
    return Plan(splits, tuple(problems), held_out=held_out, classes=asked)


def _items(images: Path, maps: dict[str, Path], problems: list[str]) -> tuple[MapItem, ...]:
    of_image = list_files(images, (".jpg",), problems, cure=_CURE)
    items = []
    for stem, path in maps.items():
        if stem in of_image:
            items.append(MapItem(of_image[stem], path, str(int(stem)), str(int(stem))))
        else:
            problems.append(f"{images / stem}.jpg: not there; {_CURE}")
    return tuple(items)


_convert = functools.partial(convert_categories, classes=CLASSES, cure=_CURE)

CONVERSIONS = (Conversion("coco_stuff", read_plan, _convert),)
