"""RefCOCO, RefCOCO+ and RefCOCOg as prepared by CRIS and ETRIS: a list of regions, and masks as PNG.

    SOURCE/anns/<set>/<split>.json         [{"img_name", "segment_id", "sentences": [...], ...}]
    SOURCE/masks/<set>/<segment_id>.png    pixels that are not zero belong to the region
    SOURCE/images/train2014/*.jpg          COCO train2014

The sets are `refcoco`, `refcoco+`, `refcocog_u` and `refcocog_g`. `segment_id` is refer's ref_id, and
`sent_id` is that of refer: predictions by expression id can be compared with those on refer's files.
Where polygons overlap, these masks have the value 254, which counts as the region. RefCOCOm has the same
format. The LMDB files that CRIS makes from these files are not read.

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
