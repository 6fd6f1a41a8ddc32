"""Salient objects: ECSSD, DUTS, SOD and PASCAL-S.

An image (JPEG) and how salient its pixels are (a grey PNG of the same name, 0..255). What is 128 or
more is salient, and asked for by "the most salient object" (UniLSeg, Table 1).

- PASCAL-S's maps are soft: the share of persons who chose an object. 128 cuts them at a half. Maps of
  other sets may have grey borders. The report counts maps of other values than 0 and 255; a scorer
  that wants the soft ones must read the files, since a record holds masks.
- Where nothing reaches 128 the expression has no target and is of granularity `none`.
- SOD is published as boundaries that seven persons chose (`.mat`, not read); the maps that papers
  evaluate on are made from them by others.
- The images are of other sets: DUTS-TR of ImageNet's detection train and val, DUTS-TE of its test and
  of SUN, PASCAL-S of VOC2010's val (under new names), SOD of BSD. Their names do not tell the original
  in general, so leakage to those pools is not found.
"""

import functools
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from input_pipeline import prompts
from input_pipeline.building.conversion import Conversion, ItemError, Outcome, Plan, read_image
from input_pipeline.facts.published import facts_of
from input_pipeline.formats.label_maps import MapItem, plan_pairs, read_levels
from input_pipeline.schema import Expression, Target, encode_mask

#: From here on a pixel is salient.
THRESHOLD = 128

#: Notes of a build.
SOFT = "maps with other values than 0 and 255, cut at 128"
NONE = "maps of which nothing reaches 128, kept without a target"

#: Folders of images and of maps in copies that many codes use.
_COPIES = (
    ("images", "masks"),
    ("Image", "Mask"),
    ("Imgs", "GT"),
    ("image", "mask"),
    ("Imgs", "Imgs"),
)


def convert(item: MapItem, source: str) -> Outcome:
    """An image and what is salient in it.

    Raises:
        ItemError: a file is missing, they differ in size, or the map is not of 0..255.
        ImageError: the image is damaged.
    """
    cure = "copy it from the release again"
    mask, notes = read_mask(item.labels, cure=cure)
    image = read_image(item.image, size=mask.shape, cure=cure)
    there = bool(mask.any())
    record = image.record(
        item.image_id,
        source,
        targets=(Target(encode_mask(mask), "salient object"),) if there else (),
        expressions=(
            Expression(
                item.key, prompts.SALIENT, (0,) if there else (), "salient" if there else "none"
            ),
        ),
    )
    return Outcome(record, notes=notes)


def read_mask(path: Path, *, cure: str) -> tuple[np.ndarray, dict[str, int]]:
    """bool `[H, W]`, where a map reaches the threshold, and notes.

    Raises:
        ItemError: the map cannot be read, or holds only 0 and 1, which other codes draw.
    """
    levels = read_levels(path, cure=cure)
    if levels.max() == 1:
        raise ItemError(f"{path}: holds 0 and 1 instead of 0..255; {cure}")
    mask = levels >= THRESHOLD
    soft = bool(((levels > 0) & (levels < 255)).any())
    notes = {SOFT: 1} if soft else {}
    return mask, notes if mask.any() else notes | {NONE: 1}


#: Dataset -> split -> folders of images and of maps; the first are the release's.
_FOLDERS: Mapping[str, Mapping[str, Sequence[tuple[str, str]]]] = {
    "ecssd": {"test": (("images", "ground_truth_mask"), *_COPIES)},
    "duts": {
        split: (
            (f"{part}/{part}-Image", f"{part}/{part}-Mask"),
            (f"{part}-Image", f"{part}-Mask"),
            *((f"{part}/{images}", f"{part}/{maps}") for images, maps in _COPIES),
        )
        for split, part in (("train", "DUTS-TR"), ("test", "DUTS-TE"))
    },
    "sod": {"test": _COPIES},
    "pascal_s": {"test": (("datasets/imgs/pascal", "datasets/masks/pascal"), *_COPIES)},
}


def _read_plan(source: Path, *, name: str) -> Plan:
    facts = facts_of(name)
    return plan_pairs(
        source,
        _FOLDERS[name],
        image_id=f"{name}/{{}}".format,
        layout=facts.layout,
        cure=f"copy it from the release of {facts.title} again",
    )


CONVERSIONS = tuple(
    Conversion(name, functools.partial(_read_plan, name=name), convert) for name in _FOLDERS
)
