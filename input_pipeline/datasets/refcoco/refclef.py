"""RefClef (ReferIt's game on SAIAPR TC-12) in the layout of the `refer` repository.

    SOURCE/refclef/refs(unc).p, refs(berkeley).p
    SOURCE/refclef/instances.json       masks are lists of COCO RLE
    SOURCE/images/saiapr_tc-12/*.jpg    refer's 19,997 images

The splits `unc` are train, val, testA, testB and testC (a ref of `testAB` is in both, its expressions
named `<split>-<sent_id>` there), those of `berkeley` train, val and test. Images 19579, 17975 and
19575 are not in the archive of the images: refs of them are counted, not complained of. Counts of the
refs files are not known here; those of ReferIt's queries (`referit.py`) are.
"""

import functools
from collections.abc import Iterator

from input_pipeline.building.conversion import Conversion
from input_pipeline.formats.refer.convert import convert
from input_pipeline.formats.refer.layout import Layout, read_plan

#: ids of images that the archive lacks, as CRIS's preparation of the dataset lists them.
LACKED = (19579, 17975, 19575)


def _conversions() -> Iterator[Conversion]:
    for by in ("unc", "berkeley"):
        for text, suffix in (("sent", ""), ("raw", "_raw")):
            layout = Layout(
                "refclef",
                by,
                text,
                image_folders=("images/saiapr_tc-12",),
                images="refer's saiapr_tc-12.zip",
                pool="saiapr",
                lacked=LACKED,
            )
            read = functools.partial(read_plan, layout=layout)
            yield Conversion(f"refclef/{by}{suffix}", read, convert)


CONVERSIONS = tuple(_conversions())
