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
from pathlib import Path

from input_pipeline.building.conversion import Conversion, Plan, SourceError
from input_pipeline.facts.published import facts_of
from input_pipeline.formats.cris import convert, plan_of, read_segments

#: Dataset -> CRIS's name of the set.
_SETS = {
    "refcoco/unc_cris": "refcoco",
    "refcoco_plus/unc_cris": "refcoco+",
    "refcocog/umd_cris": "refcocog_u",
    "refcocog/google_cris": "refcocog_g",
}


def _read_plan(source: Path, *, dataset: str) -> Plan:
    name, splits = _SETS[dataset], facts_of(dataset).splits
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


CONVERSIONS = tuple(
    Conversion(dataset, functools.partial(_read_plan, dataset=dataset), convert)
    for dataset in _SETS
)
