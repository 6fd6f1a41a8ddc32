"""LIP (Look into Person): single persons cut out of COCO, their clothes and parts of their bodies.

    SOURCE/TrainVal_images/{train,val}_images/<77_471474>.jpg
    SOURCE/TrainVal_parsing_annotations/{train,val}_segmentations/<77_471474>.png

A map's values are 1..19, 0 is the background. They ask "{part} of person", clothes too ("hat of
person"), and not "all {}", as UniLSeg's Table 1 has it for parts: a cut-out may show other people,
whose hats and arms are background, so that "all hat" would be wrong. What is labelled belongs to one
person, who is the union of all labels. That person is a target, the parent of all others, which no
expression means: of "all person" the others would be missing. Left and right are the person's own.
Names are those of mmsegmentation's `LIPDataset`, in plain words (`UpperClothes` is `upper clothes`);
SSSegmentation has the same in the same order.

LIP's site says that its images are cut out of COCO's, and their names are of the form
`<COCO's image id>_<annotation id>` (which is not written down anywhere, and was not compared with
COCO's pictures). `image_id` of `77_471474` is therefore `77`: what leaks between LIP and sets of COCO
images is found by it, and cut-outs of one image share it, in LIP's own train and val too. Other names
become `lip/<name>`.
"""

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
from input_pipeline.schema import Expression, Target

#: Of the values 1..19.
_PARTS = (
    "hat, hair, glove, sunglasses, upper clothes, dress, coat, socks, pants, jumpsuits, scarf, skirt, "
    "face, left arm, right arm, left leg, right leg, left shoe, right shoe"
)
PARTS = tuple(_PARTS.split(", "))

WHOLE = "person"

_CURE = "unpack TrainVal_images.zip and TrainVal_parsing_annotations.zip again"

#: Folders of images and of maps; the archives hold a folder of their own name.
_FOLDERS = (
    ("TrainVal_images/", "TrainVal_parsing_annotations/"),
    ("TrainVal_images/TrainVal_images/", "TrainVal_parsing_annotations/" * 2),
    ("", "TrainVal_parsing_annotations/"),
    ("", ""),
)


def read_plan(source: Path) -> Plan:
    """Pairs cut-outs and maps.

    Raises:
        SourceError: neither split is there.
    """
    choices = {
        split: [(f"{a}{split}_images", f"{b}{split}_segmentations") for a, b in _FOLDERS]
        for split in ("train", "val")
    }
    layout = facts_of("lip").layout
    return plan_pairs(source, choices, image_id=_image_id, layout=layout, cure=_CURE)


def convert(item: MapItem, source: str) -> Outcome:
    """A cut-out with the person and a target for each of its parts.

    Raises:
        ItemError: a file is missing, they differ in size, or a value is no part.
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
