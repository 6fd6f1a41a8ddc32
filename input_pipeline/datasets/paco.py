"""PACO-LVIS: 75 kinds of objects of LVIS with their parts.

    SOURCE/annotations/paco_lvis_v1_{train,val,test}.json    (or SOURCE/paco_lvis_v1_*.json)
    SOURCE/train2017/*.jpg, SOURCE/val2017/*.jpg             COCO 2017; all three splits need both

What is asked of an image: each kind of object that it shows ("all mug"), which means all its objects
of that kind, and each part of a kind ("handle of mug"), which means this part of all of them. Nothing
is asked where LVIS says that a kind was not annotated everywhere in the image
(`not_exhaustive_category_ids`), neither of it nor of its parts. What a name has in brackets
(`glass_(drink_container)`) tells annotators which sense is meant, and is not spoken.

Images are COCO's, so that their ids are RefCOCO's, whose test images are among the training images.
Source: docs/PACO_DATASET.md of github.com/facebookresearch/paco.
"""

import functools
import re
from pathlib import Path

from input_pipeline.building.conversion import Conversion, Plan, SourceError
from input_pipeline.formats import coco_json

SPLITS = ("train", "val", "test")
#: Where COCO's images may lie in the source folder.
IMAGE_FOLDERS = ("train2017", "val2017", "images/train2017", "images/val2017", "images")

#: Misspelt parts.
_CORRECTED = {"colied tube": "coiled tube"}


def spoken(category: str) -> tuple[str, str]:
    """`"glass_(drink_container):inner_body"` -> `("glass", "inner body")`."""
    plain = re.sub(r"\([^)]*\)", "", category).replace("_", " ")
    whole, _, part = (" ".join(text.split()) for text in plain.partition(":"))
    return whole, _CORRECTED.get(part, part)


def read_plan(source: Path) -> Plan:
    """Reads the annotations of every split that is there.

    Raises:
        SourceError: a file is missing, damaged or of another form.
    """
    folders = [source / name for name in IMAGE_FOLDERS if (source / name).is_dir()]
    if not folders:
        raise SourceError(
            f"{source}: no folder of images; put (or link) COCO's train2017 and val2017 there"
        )
    return coco_json.read_plan(
        _annotation_files(source),
        spoken,
        locate=functools.partial(_locate, folders),
        image_id=_coco_id,
        cure="copy it from COCO train2017 or val2017",
    )


def _annotation_files(source: Path) -> dict[str, Path]:
    names = {split: f"paco_lvis_v1_{split}.json" for split in SPLITS}
    for folder in (source / "annotations", source):
        there = {s: folder / name for s, name in names.items() if (folder / name).is_file()}
        if there:
            return there
    raise SourceError(
        f"{source}: no annotations/{names['train']} (nor of another split); unpack PACO's "
        "paco_lvis_v1.zip there"
    )


def _locate(folders: list[Path], split: str, name: str) -> Path:
    del split  # Those of LVIS, which PACO keeps, are not COCO's.
    return next(
        (folder / name for folder in folders if (folder / name).is_file()), folders[0] / name
    )


def _coco_id(name: str) -> str:
    if not re.fullmatch(r"\d{12}\.jpg", name, re.ASCII):
        raise ValueError(f"image {name!r:.40} is none of COCO 2017")
    return str(int(Path(name).stem))


CONVERSIONS = (Conversion("paco_lvis", read_plan, coco_json.convert),)
