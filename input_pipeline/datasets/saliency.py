"""Salient objects: ECSSD, DUTS, SOD and PASCAL-S.

An item is an image (JPEG) and a map of saliency (a grey PNG of the same name, 0..255). Pixels with 128
or more are salient. The expression is "the most salient object" (UniLSeg, Table 1).

- What a map shows counts: its palette is applied. Of a cut-out, whose brightness says nothing, alpha
  counts.
- The maps of PASCAL-S are soft: a value is the share of people who chose the object, and 128 cuts at a
  half. Maps of other sets may have grey borders. The build report counts maps with values other than 0
  and 255. A record holds only the mask, so a scorer of soft maps must read the files.
- If no pixel reaches 128, the expression has no target and the granularity `none`.
- SOD is published as boundaries that seven people chose (`.mat`, not read); others made the maps that
  papers evaluate on from them.
- The images come from other sets: DUTS-TR from ImageNet's detection train and val, DUTS-TE from its test
  and from SUN, PASCAL-S from VOC2010's val (renamed), SOD from BSD. In general their names do not tell
  the original image, so leakage between these sets and the originals is not found.
"""

import functools
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from input_pipeline import prompts
from input_pipeline.building.conversion import Conversion, ItemError, Outcome, Plan, read_image
from input_pipeline.facts.published import facts_of
from input_pipeline.formats import mask_files
from input_pipeline.formats.label_maps import MapItem, plan_pairs
from input_pipeline.schema import Expression, Target, encode_mask
from refseg_jax.images.files import read_file

#: Least value of a salient pixel.
THRESHOLD = 128

#: Notes of a build.
SOFT = "maps with other values than 0 and 255, cut at 128"
NONE = "maps of which nothing reaches 128, kept without a target"

#: Folders of images and of maps in widespread copies of the sets.
_COPIES = (
    ("images", "masks"),
    ("Image", "Mask"),
    ("Imgs", "GT"),
    ("image", "mask"),
    ("Imgs", "Imgs"),
)


def convert(item: MapItem, source: str) -> Outcome:
    """Makes the record of an image with its salient region.

    Raises:
        ItemError: a file is missing, or the sizes differ.
        ImageError: the image or the map is damaged, or the levels of the map are not 0..255.
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
    """Reads a map of saliency and cuts it at `THRESHOLD`.

    Args:
        path: the map.
        cure: what to do about a wrong map, for messages.

    Returns:
        The mask, bool `[H, W]`, and the notes of the build.

    Raises:
        ItemError: the file cannot be read.
        ImageError: the map is damaged or in colour, or holds only 0 and 1 instead of 0..255.
    """
    try:
        data = read_file(path)
    except OSError as error:
        raise ItemError(f"{path}: {error.strerror}; {cure}") from None
    mask = mask_files.read_mask(
        data, name=str(path), threshold=THRESHOLD, brightness=True, cure=cure
    )
    notes = dict.fromkeys(mask.notes, 1)
    if not {0, 255}.issuperset(mask.levels):
        notes[SOFT] = 1
    return mask.region, notes if mask.region.any() else notes | {NONE: 1}


#: Dataset -> split -> folders of images and of maps; the first pair is that of the release.
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
