"""RefCOCO, RefCOCO+ and RefCOCOg as CRIS and ETRIS prepare them: a list of regions, masks as PNG.

    SOURCE/anns/<set>/<split>.json         [{"img_name", "segment_id", "sentences": [...], ...}]
    SOURCE/masks/<set>/<segment_id>.png    what is not zero belongs to the region
    SOURCE/images/train2014/*.jpg          COCO train2014

with the sets `refcoco`, `refcoco+`, `refcocog_u` and `refcocog_g`. `segment_id` is refer's ref_id and
`sent_id` refer's, so that a score by expression ids is one of the same expressions. Where polygons
overlap, these masks hold 254, which here is a part of the region. Other systems (RefCOCOm) took over
the form. The LMDB files that are made of them are not read.

Source: tools/ and utils/dataset.py of github.com/DerrickWang005/CRIS.pytorch.
"""

import functools
from collections.abc import Iterator
from pathlib import Path

from input_pipeline.building.conversion import (
    Conversion,
    Plan,
    SourceError,
)
from input_pipeline.datasets.refcoco.refcoco import PUBLISHED
from input_pipeline.formats.cris import convert, plan_of, read_segments
from input_pipeline.formats.refer.layout import IMAGE_FOLDERS

#: CRIS's name of a set -> (dataset, by) as refer's.
_SETS = {
    "refcoco": ("refcoco", "unc"),
    "refcoco+": ("refcoco_plus", "unc"),
    "refcocog_u": ("refcocog", "umd"),
    "refcocog_g": ("refcocog", "google"),
}


def _read_plan(source: Path, *, name: str, splits: tuple[str, ...]) -> Plan:
    files = {split: source / "anns" / name / f"{split}.json" for split in splits}
    there = {split: file for split, file in files.items() if file.is_file()}
    if not there:
        raise SourceError(
            f"{source / 'anns' / name}: no {' or '.join(f'{s}.json' for s in splits)} there; "
            f"--source_dir must be the folder that holds anns/{name}, masks/{name} and the images"
        )
    read = {split: read_segments(file) for split, file in there.items()}
    segments = {split: found for split, (found, _) in read.items()}
    empty = sum(number for _, number in read.values())
    return plan_of(source, segments, source / "masks" / name, empty)


def _conversions() -> Iterator[Conversion]:
    for name, (dataset, by) in _SETS.items():
        published = PUBLISHED[dataset, by]
        yield Conversion(
            name=dataset,
            config=f"{by}_cris",
            description=f"{name}, from the annotations and masks that CRIS and ETRIS prepare.",
            homepage="https://github.com/DerrickWang005/CRIS.pytorch",
            licence="images: Flickr licences, per image; COCO annotations: CC BY 4.0",
            layout=f"anns/{name}/*.json, masks/{name}/*.png and {IMAGE_FOLDERS[1]}/*.jpg",
            read_plan=functools.partial(_read_plan, name=name, splits=tuple(published)),
            convert=convert,
            published=published,
        )


CONVERSIONS = tuple(_conversions())
