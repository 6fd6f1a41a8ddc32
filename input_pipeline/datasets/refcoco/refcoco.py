"""RefCOCO, RefCOCO+ and RefCOCOg as conversions, with what the complete datasets hold.

A record is an image of one split, with all its referred regions and their expressions. Configs are
named after who made the splits; those with `_raw` keep each sentence as it was typed (`raw`, which
LAVT and ReLA read), the others have refer's cleaned text (`sent`, which CRIS reads).

Counts are those of the released files: val and test were counted in complete files; train is as the
CRIS and TFDS converters report it. The RefCOCO paper prints 142,209 expressions, one less than the
file; the 104,560 of RefCOCOg include Google's unreleased test split.
"""

import functools
from collections.abc import Iterator, Mapping

from input_pipeline.building.conversion import Conversion
from input_pipeline.formats.refer.convert import convert
from input_pipeline.formats.refer.layout import Layout, read_plan

#: (dataset, by) -> split -> counts.
PUBLISHED: Mapping[tuple[str, str], Mapping[str, Mapping[str, int]]] = {
    ("refcoco", "unc"): {
        "train": {"images": 16_994, "refs": 42_404, "expressions": 120_624},
        "val": {"images": 1_500, "refs": 3_811, "expressions": 10_834},
        "testA": {"images": 750, "refs": 1_975, "expressions": 5_657},
        "testB": {"images": 750, "refs": 1_810, "expressions": 5_095},
    },
    ("refcoco", "google"): {
        "train": {"images": 19_213, "refs": 40_000},
        "val": {"images": 4_559, "refs": 5_000},
        "test": {"images": 4_527, "refs": 5_000},
    },
    ("refcoco_plus", "unc"): {
        "train": {"images": 16_992, "refs": 42_278, "expressions": 120_191},
        "val": {"images": 1_500, "refs": 3_805, "expressions": 10_758},
        "testA": {"images": 750, "refs": 1_975, "expressions": 5_726},
        "testB": {"images": 750, "refs": 1_798, "expressions": 4_889},
    },
    ("refcocog", "umd"): {
        "train": {"images": 21_899, "refs": 42_226, "expressions": 80_512},
        "val": {"images": 1_300, "refs": 2_573, "expressions": 4_896},
        "test": {"images": 2_600, "refs": 5_023, "expressions": 9_602},
    },
    ("refcocog", "google"): {
        "train": {"images": 24_698, "refs": 44_822, "expressions": 85_474},
        "val": {"images": 4_650, "refs": 5_000, "expressions": 9_536},
    },
}

#: Folders of the source; ours has no `+`, which not every file system and shell likes.
_SOURCES = {"refcoco": "refcoco", "refcoco_plus": "refcoco+", "refcocog": "refcocog"}


def _conversions() -> Iterator[Conversion]:
    for (name, by), published in PUBLISHED.items():
        folder = _SOURCES[name]
        for text, suffix in (("sent", ""), ("raw", "_raw")):
            layout = Layout(folder, by, text)
            yield Conversion(
                name=name,
                config=f"{by}{suffix}",
                description=f"{folder}: expressions that refer to objects in COCO images.",
                homepage="https://github.com/lichengunc/refer",
                licence="images: Flickr licences, per image; COCO annotations: CC BY 4.0",
                layout=layout.files,
                read_plan=functools.partial(read_plan, layout=layout),
                convert=convert,
                published=published,
            )


CONVERSIONS = tuple(_conversions())
