"""gRefCOCO: expressions of several regions, of one, and of none.

    SOURCE/grefcoco/grefs(unc).json    as refer's refs, but `ann_id` is a list, `[-1]` for no target
    SOURCE/grefcoco/instances.json     COCO annotations
    SOURCE/images/train2014/*.jpg      COCO train2014

Every sentence of a ref is an expression, as in the reader of github.com/henghuiding/ReLA; what it
means is the union of its annotations without crowds. Counts are those of the released file, which
differ from the paper's (278,232 expressions). Image 320432 is in val and in testA, so that val has
1,501 images; val has no expression of one target.
"""

import functools
from collections.abc import Mapping

from input_pipeline.building.conversion import Conversion
from input_pipeline.formats.refer.convert import convert
from input_pipeline.formats.refer.layout import Layout, read_plan

_NAMES = ("images", "refs", "expressions", "no target", "one target", "several targets")

#: split -> counts of the released file.
PUBLISHED: Mapping[str, Mapping[str, int]] = {
    split: dict(zip(_NAMES, counts, strict=True))
    for split, counts in {
        "train": (16_994, 78_930, 209_344, 19_140, 120_624, 69_580),
        "val": (1_501, 4_237, 14_229, 8_905, 0, 5_324),
        "testA": (750, 6_265, 19_200, 4_448, 5_917, 8_835),
        "testB": (750, 4_618, 16_063, 4_673, 5_646, 5_744),
    }.items()
}


def _conversion(text: str, config: str) -> Conversion:
    layout = Layout("grefcoco", "unc", text, refs="grefs({by}).json", skip_crowds=True)
    return Conversion(
        name="grefcoco",
        config=config,
        description="gRefCOCO: expressions of any number of objects in COCO images.",
        homepage="https://github.com/henghuiding/gRefCOCO",
        licence=(
            "images: Flickr licences, per image; COCO annotations: CC BY 4.0; gRefCOCO: none found"
        ),
        layout=layout.files,
        read_plan=functools.partial(read_plan, layout=layout),
        convert=convert,
        published=PUBLISHED,
    )


CONVERSIONS = (_conversion("sent", "unc"), _conversion("raw", "unc_raw"))
