"""PACO-LVIS: objects of 75 LVIS categories with their parts.

    SOURCE/annotations/paco_lvis_v1_{train,val,test}.json    (or SOURCE/paco_lvis_v1_*.json)
    SOURCE/train2017/*.jpg, SOURCE/val2017/*.jpg             COCO 2017; all three splits need both

There is one prompt for each object category in the image ("all mug"), which means all its objects, and
one for each part of a category ("handle of mug"), which means this part of all its objects. A category
that LVIS did not annotate everywhere in the image (`not_exhaustive_category_ids`) gets no prompt, and
neither do its parts. Prompts leave out the words in brackets of a name (`glass_(drink_container)`),
which told annotators the sense.

The images are those of COCO, and their ids the same as RefCOCO's: RefCOCO's test images are among the
training images. Source: docs/PACO_DATASET.md of github.com/facebookresearch/paco.
"""

import re
from pathlib import Path

from input_pipeline.building.conversion import Conversion, Plan, SourceError
from input_pipeline.formats import coco_json
from input_pipeline.formats.image_files import ImageFiles

SPLITS = ("train", "val", "test")
#: Folders of the source folder that may hold COCO's images.
IMAGE_FOLDERS = (
    *("train2017", "val2017", "images/train2017", "images/val2017", "images"),
    # COCO 2014 holds the same images under other names.
    *("train2014", "val2014", "images/train2014", "images/val2014"),
)

#: Misspelt name of a part -> its correction.
_CORRECTED = {"colied tube": "coiled tube"}


def spoken(category: str) -> tuple[str, str]:
    """Words for object and part: `"glass_(drink_container):inner_body"` -> `("glass", "inner body")`.

    The part of an object's own category is `""`.
    """
    plain = re.sub(r"\([^)]*\)", "", category).replace("_", " ")
    whole, _, part = (" ".join(text.split()) for text in plain.partition(":"))
    return whole, _CORRECTED.get(part, part)


def read_plan(source: Path) -> Plan:
    """Reads the annotations of all splits that the source folder has.

    Raises:
        SourceError: there is no split or no folder of images, or a file is damaged or of another format.
    """
    images = ImageFiles(source, IMAGE_FOLDERS, "COCO's train2017 and val2017")
    return coco_json.read_plan(
        _annotation_files(source),
        spoken,
        # PACO has the splits of LVIS, whose images lie in either folder of COCO.
        locate=lambda _, name: images.find(name) or images.expected(name),
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


def _coco_id(name: str) -> str:
    if not re.fullmatch(r"\d{12}\.jpg", name, re.ASCII):
        raise ValueError(f"image {name!r:.40} is none of COCO 2017")
    return str(int(Path(name).stem))


CONVERSIONS = (Conversion("paco_lvis", read_plan, coco_json.convert),)
