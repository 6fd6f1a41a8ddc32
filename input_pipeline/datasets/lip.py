"""LIP (Look into Person): crops of single people from COCO, with their clothes and body parts.

    SOURCE/TrainVal_images/{train,val}_images/<77_471474>.jpg
    SOURCE/TrainVal_parsing_annotations/{train,val}_segmentations/<77_471474>.png

A map has the values 1..19, and 0 for the background. The prompts are "{part} of person", also for
clothes ("hat of person"). They are not "all hat", because a crop may show other people, whose hats are
background. UniLSeg's Table 1 says "all {}" nevertheless; `data.part_prompt` asks so. The labels belong
to one person, who is their union. That person is a target and the parent of the others, but no
expression means it, because "all person" would have to include the other people. Left and right are
those of the person. Names are those of mmsegmentation's `LIPDataset` in plain words (`UpperClothes` is
`upper clothes`); SSSegmentation has the same names in the same order.

LIP's site says that the images are crops of COCO's. Their names have the form
`<COCO's image id>_<annotation id>`; no document states this, and it was not checked against COCO's
images. The `image_id` of `77_471474` is therefore `77`, so that leakage between LIP and sets of COCO
images is found. Crops of one image share the id, also between LIP's own train and val. Other names give
`lip/<name>`.
"""

import dataclasses
import re
from pathlib import Path

import numpy as np

from input_pipeline import prompts
from input_pipeline.building.conversion import Conversion, ItemError, Outcome, Plan, read_image
from input_pipeline.facts.published import facts_of
from input_pipeline.formats.label_maps import (
    NOTHING,
    MapItem,
    encode_labels,
    plan_pairs,
    read_labels,
)
from input_pipeline.schema import AskedClass, Expression, Target

#: Names of the values 1..19.
_PARTS = (
    "hat, hair, glove, sunglasses, upper clothes, dress, coat, socks, pants, jumpsuits, scarf, skirt, "
    "face, left arm, right arm, left leg, right leg, left shoe, right shoe"
)
PARTS = tuple(_PARTS.split(", "))

WHOLE = "person"

_CURE = "unpack TrainVal_images.zip and TrainVal_parsing_annotations.zip again"

#: Beginnings of the folders of images and of maps; an archive may hold a folder of its own name.
_FOLDERS = (
    ("TrainVal_images/", "TrainVal_parsing_annotations/"),
    ("TrainVal_images/TrainVal_images/", "TrainVal_parsing_annotations/" * 2),
    ("", "TrainVal_parsing_annotations/"),
    ("", ""),
)


def read_plan(source: Path) -> Plan:
    """Pairs crops and maps.

    Raises:
        SourceError: neither split is there.
    """
    choices = {
        split: [(f"{a}{split}_images", f"{b}{split}_segmentations") for a, b in _FOLDERS]
        for split in ("train", "val")
    }
    layout = facts_of("lip").layout
    plan = plan_pairs(source, choices, image_id=_image_id, layout=layout, cure=_CURE)
    asked = tuple(AskedClass(prompts.part(part, WHOLE)) for part in PARTS)
    return dataclasses.replace(plan, classes={"part": asked})


def convert(item: MapItem, source: str) -> Outcome:
    """Makes the record of a crop, with a target for the person and one for each part.

    Raises:
        ItemError: a file is missing, the sizes differ, or a value of the map is no part.
        ImageError: the image is damaged.
    """
    labels = read_labels(item.labels, cure=_CURE)
    if labels.max() > len(PARTS):
        raise ItemError(f"{item.labels}: {labels.max()} is no part; {_CURE}")
    image = read_image(item.image, size=labels.shape, cure=_CURE)
    regions = encode_labels(labels, without=(0,))
    if not regions:
        return Outcome(None, notes={NOTHING: 1})
    (person,) = encode_labels((labels > 0).astype(np.uint8), without=(0,)).values()
    parts = [Target(c, PARTS[value - 1], 0, "part") for value, c in regions.items()]
    record = image.record(
        item.image_id,
        source,
        targets=(Target(person, WHOLE), *parts),
        expressions=tuple(
            Expression(
                f"{item.key}-{value}", prompts.part(PARTS[value - 1], WHOLE), (k + 1,), "part", k
            )
            for k, value in enumerate(regions)
        ),
    )
    return Outcome(record)


def _image_id(stem: str) -> str:
    of_coco = re.fullmatch(r"(\d+)_\d+", stem, re.ASCII)
    return str(int(of_coco[1])) if of_coco else f"lip/{stem}"


CONVERSIONS = (Conversion("lip", read_plan, convert),)
