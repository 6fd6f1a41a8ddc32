"""PartImageNet: parts of animals, vehicles and bottles in ImageNet images.

    SOURCE/{train,val,test}.json                  (or annotations/<split>.json, or
                                                  annotations/<split>/<split>.json)
    SOURCE/<split>/<synset>/<synset>_*.JPEG       (or images/<split>/<synset>/...)

There is one prompt for each part of an object category in the image ("head of quadruped"). Objects have
no mask of their own, so parts have no parent. Two defects of the files are repaired: polygons of fewer
than three points, which pycocotools refuses, are left out and counted; and "tier", the dataset's
spelling of "tire", is corrected.

The splits of the config `ood` have different classes (109 / 19 / 30 of 158), those of `seg` the same
ones. Source: README.md of github.com/TACJu/PartImageNet, and for the folders of the images
datasets/README.md of github.com/facebookresearch/VLPart.
"""

import dataclasses
import functools
import re
from collections.abc import Mapping
from pathlib import Path

from input_pipeline import prompts
from input_pipeline.building.conversion import Conversion, Plan, SourceError
from input_pipeline.formats import coco_json
from input_pipeline.schema import AskedClass

SPLITS = ("train", "val", "test")
ANNOTATIONS = ("{0}.json", "annotations/{0}.json", "annotations/{0}/{0}.json")

_CORRECTED = {"tier": "tire"}

#: The parts of each kind of object, 40 classes in the order of the README's table.
PARTS: Mapping[str, tuple[str, ...]] = {
    kind: tuple(parts.split(", "))
    for kind, parts in {
        "quadruped": "head, body, foot, tail",
        "biped": "head, body, hand, foot, tail",
        "fish": "head, body, fin, tail",
        "bird": "head, body, wing, foot, tail",
        "snake": "head, body",
        "reptile": "head, body, foot, tail",
        "car": "body, tire, side mirror",
        "bicycle": "head, body, seat, tire",
        "boat": "body, sail",
        "aeroplane": "head, body, wing, engine, tail",
        "bottle": "body, mouth",
    }.items()
}


def spoken(category: str) -> tuple[str, str]:
    """Category of object and part: `"Car Side Mirror"` -> `("car", "side mirror")`.

    Raises:
        ValueError: the category has only one word.
    """
    whole, _, part = category.lower().partition(" ")
    if not part:
        raise ValueError(f"category {category!r:.40} is not a kind and its part")
    return whole, _CORRECTED.get(part, part)


def read_plan(source: Path) -> Plan:
    """Reads the annotations of all splits that the source folder has.

    Raises:
        SourceError: there is no split, or a file is damaged or of another format.
    """
    files = {
        split: source / name.format(split)
        for split in SPLITS
        for name in reversed(ANNOTATIONS)
        if (source / name.format(split)).is_file()
    }
    if not files:
        raise SourceError(
            f"{source}: no train.json (nor of another split); --source_dir must be the folder that "
            "holds train.json and train/<synset>/*.JPEG"
        )
    plan = coco_json.read_plan(
        files,
        spoken,
        locate=functools.partial(_locate, source),
        image_id=_imagenet_id,
        cure="copy it from ImageNet's training images",
    )
    asked = [
        AskedClass(prompts.part(part, kind)) for kind, parts in PARTS.items() for part in parts
    ]
    return dataclasses.replace(plan, classes={"part": asked})


def _locate(source: Path, split: str, name: str) -> Path:
    # The annotations name files without their folder, which is the synset.
    within = Path(split, _synset(name), name)
    below = source / "images" / within
    return below if below.is_file() else source / within


def _imagenet_id(name: str) -> str:
    _synset(name)  # Raises for a name that is not of ImageNet.
    return f"imagenet/{Path(name).stem}"


def _synset(name: str) -> str:
    if not re.fullmatch(r"n\d{8}_\w{1,64}\.JPEG", name, re.ASCII):
        raise ValueError(f"image {name!r:.40} is none of ImageNet")
    return name[:9]


CONVERSIONS = tuple(
    Conversion(f"partimagenet/{config}", read_plan, coco_json.convert) for config in ("ood", "seg")
)
