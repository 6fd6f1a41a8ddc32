"""gRefCOCO: expressions with any number of targets, also none.

    SOURCE/grefcoco/grefs(unc).json    like refer's refs, but `ann_id` is a list; `[-1]`: no target
    SOURCE/grefcoco/instances.json     COCO annotations
    SOURCE/images/train2014/*.jpg      COCO train2014

Every sentence of a ref is an expression, as in the reader of github.com/henghuiding/ReLA. Its mask is
the union of its annotations, without crowd annotations. Image 320432 is in val and in testA, which makes
1,501 images in val. No expression of val has exactly one target.
"""

import functools

from input_pipeline.building.conversion import Conversion
from input_pipeline.formats.refer.convert import convert
from input_pipeline.formats.refer.layout import Layout, read_plan


def _conversion(name: str, text: str) -> Conversion:
    layout = Layout("grefcoco", "unc", text, refs="grefs({by}).json", skip_crowds=True)
    return Conversion(name, functools.partial(read_plan, layout=layout), convert)


CONVERSIONS = (_conversion("grefcoco/unc", "sent"), _conversion("grefcoco/unc_raw", "raw"))
