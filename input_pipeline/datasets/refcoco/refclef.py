"""RefClef (ReferIt's game on SAIAPR TC-12) in the layout of the `refer` repository.

    SOURCE/refclef/refs(unc).p, refs(berkeley).p
    SOURCE/refclef/instances.json       masks are lists of COCO RLE
    SOURCE/images/saiapr_tc-12/*.jpg    refer's 19,997 images

The splits of `unc` are train, val, testA, testB and testC; a ref of `testAB` is in testA and in testB,
where the ids of its expressions are `<split>-<sent_id>`. The splits of `berkeley` are train, val and
test. The archive of the images lacks 19579, 17975 and 19575; refs of these images are noted and are no
problem of a build. No published counts of the refs files are known, other than for ReferIt's queries
(`referit.py`).
"""

import functools
from collections.abc import Iterator

from input_pipeline.building.conversion import Conversion
from input_pipeline.formats.refer.convert import convert
from input_pipeline.formats.refer.layout import Layout, read_plan

#: Ids of images that the archive lacks, from CRIS's preparation of the dataset.
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
