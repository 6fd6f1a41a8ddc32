"""RefCOCO, RefCOCO+ and RefCOCOg in the layout of the `refer` repository.

A record is an image of one split with all its referred regions and their expressions. The name of a
config says who made the splits. Configs with `_raw` keep the sentences as typed (`raw`, which LAVT and
ReLA read); the others have refer's cleaned text (`sent`, which CRIS reads).
"""

import functools
from collections.abc import Iterator

from input_pipeline.building.conversion import Conversion
from input_pipeline.formats.refer.convert import convert
from input_pipeline.formats.refer.layout import Layout, read_plan

#: (our name, refer's name of the dataset, who made the splits). Our names avoid `+`, which some file
#: systems and shells do not like.
_SETS = (
    ("refcoco/unc", "refcoco", "unc"),
    ("refcoco/google", "refcoco", "google"),
    ("refcoco_plus/unc", "refcoco+", "unc"),
    ("refcocog/umd", "refcocog", "umd"),
    ("refcocog/google", "refcocog", "google"),
)


def _conversions() -> Iterator[Conversion]:
    for name, folder, by in _SETS:
        for text, suffix in (("sent", ""), ("raw", "_raw")):
            read = functools.partial(read_plan, layout=Layout(folder, by, text))
            yield Conversion(f"{name}{suffix}", read, convert)


CONVERSIONS = tuple(_conversions())
