"""PartImageNet: parts of animals, vehicles and bottles in ImageNet images.

    SOURCE/{train,val,test}.json                  (or annotations/<split>.json, or
                                                  annotations/<split>/<split>.json)
    SOURCE/<split>/<synset>/<synset>_*.JPEG       (or images/<split>/<synset>/...)

What is asked of an image: each part of the kind of object that it shows ("head of quadruped"). The
objects themselves have no mask, so that a part has no parent. Two things of the files are mended:
polygons of fewer than three points are left out and counted (readers that pad them draw nothing by
them; pycocotools refuses them), and the word "tier", the dataset's spelling of "tire".

`ood` has other classes in each split (109 / 19 / 30 of 158), `seg` the same in all. Source: README.md
of github.com/TACJu/PartImageNet; where images lie: datasets/README.md of
github.com/facebookresearch/VLPart.
"""

import functools
import re
from collections.abc import Iterator, Mapping
from pathlib import Path

from input_pipeline.building.conversion import Conversion, Plan, SourceError
from input_pipeline.formats import coco_json

SPLITS = ("train", "val", "test")
ANNOTATIONS = ("{0}.json", "annotations/{0}.json", "annotations/{0}/{0}.json")

_CORRECTED = {"tier": "tire"}


def spoken(category: str) -> tuple[str, str]:
    """`"Car Side Mirror"` -> `("car", "side mirror")`."""
    whole, _, part = category.lower().partition(" ")
    if not part:
        raise ValueError(f"category {category!r:.40} is not a kind and its part")
    return whole, _CORRECTED.get(part, part)


def read_plan(source: Path) -> Plan:
    """Reads the annotations of every split that is there.

    Raises:
        SourceError: a file is missing, damaged or of another form.
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
    return coco_json.read_plan(
        files,
        spoken,
        locate=functools.partial(_locate, source),
        image_id=_imagenet_id,
        cure="copy it from ImageNet's training images",
    )


def _locate(source: Path, split: str, name: str) -> Path:
    # File names are flat in the annotations, in folders on disk.
    within = Path(split, _synset(name), name)
    below = source / "images" / within
    return below if below.is_file() else source / within


def _imagenet_id(name: str) -> str:
    _synset(name)  # Or it is none of ImageNet.
    return f"imagenet/{Path(name).stem}"


def _synset(name: str) -> str:
    if not re.fullmatch(r"n\d{8}_\w{1,64}\.JPEG", name, re.ASCII):
        raise ValueError(f"image {name!r:.40} is none of ImageNet")
    return name[:9]


def _conversions() -> Iterator[Conversion]:
    # The images of the three splits of `ood`; nothing is published of those of `seg`.
    images = {"train": 16_540, "val": 2_957, "test": 4_598}
    published: Mapping[str, Mapping[str, Mapping[str, int]]] = {
        "ood": {split: {"images": number} for split, number in images.items()},
        "seg": {},
    }
    for config, counts in published.items():
        yield Conversion(
            name="partimagenet",
            config=config,
            description="PartImageNet: 40 parts of 11 kinds of objects in ImageNet images.",
            homepage="https://github.com/TACJu/PartImageNet",
            licence="images: ImageNet's terms, for research and education, not commercial",
            layout="train.json, val.json, test.json and <split>/<synset>/*.JPEG",
            read_plan=read_plan,
            convert=coco_json.convert,
            published=counts,
        )


CONVERSIONS = tuple(_conversions())
