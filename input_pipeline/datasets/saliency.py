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

The numbers of images are the papers'.
"""

import functools
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from input_pipeline import prompts
from input_pipeline.building.conversion import Conversion, ItemError, Outcome, read_image
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


def _conversion(
    name: str,
    title: str,
    homepage: str,
    licence: str,
    folders: Mapping[str, Sequence[tuple[str, str]]],
    sizes: Mapping[str, int],
) -> Conversion:
    """One of the sets; the first of a split's `folders` are the release's."""
    first = [(images, maps) for (images, maps), *_ in folders.values()]
    layout = " and ".join(f"{images}/*.jpg with {maps}/*.png" for images, maps in first)
    return Conversion(
        name=name,
        description=f"{title}: images and their most salient objects.",
        homepage=homepage,
        licence=licence,
        layout=layout,
        read_plan=functools.partial(
            plan_pairs,
            choices=folders,
            image_id=functools.partial("{}/{}".format, name),
            layout=layout,
            cure=f"copy it from the release of {title} again",
        ),
        convert=convert,
        published={split: {"images": size, "expressions": size} for split, size in sizes.items()},
    )


def _conversions() -> Iterator[Conversion]:
    yield _conversion(
        "ecssd",
        "ECSSD",
        "https://www.cse.cuhk.edu.hk/leojia/projects/hsaliency/dataset.html",
        "images: from the internet, of unknown licences; annotations: no licence stated",
        {"test": (("images", "ground_truth_mask"), *_COPIES)},
        {"test": 1_000},
    )
    duts = {
        split: (
            (f"{part}/{part}-Image", f"{part}/{part}-Mask"),
            (f"{part}-Image", f"{part}-Mask"),
            *((f"{part}/{images}", f"{part}/{maps}") for images, maps in _COPIES),
        )
        for split, part in (("train", "DUTS-TR"), ("test", "DUTS-TE"))
    }
    yield _conversion(
        "duts",
        "DUTS",
        "http://saliencydetection.net/duts/",
        "images: ImageNet's and SUN's terms, non-commercial research; annotations: no licence stated",
        duts,
        {"train": 10_553, "test": 5_019},
    )
    yield _conversion(
        "sod",
        "SOD",
        "https://www.elderlab.yorku.ca/resources/salient-objects-dataset-sod/",
        "images: Berkeley's BSD, non-commercial research and education; annotations: no licence stated",
        {"test": _COPIES},
        {"test": 300},
    )
    yield _conversion(
        "pascal_s",
        "PASCAL-S",
        "https://cbs.ic.gatech.edu/salobj/",
        "images: VOC2010's (Flickr's terms); annotations: no licence stated",
        {"test": (("datasets/imgs/pascal", "datasets/masks/pascal"), *_COPIES)},
        {"test": 850},
    )


CONVERSIONS = tuple(_conversions())
