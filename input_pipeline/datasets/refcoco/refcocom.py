"""RefCOCOm: expressions of parts, and of objects and parts, of RefCOCO's val and test images.

    SOURCE/annotations/<split>_part_only.json      in the form that `cris.py` describes
    SOURCE/annotations/<split>_object_part.json
    SOURCE/masks/<segment_id>.png                  0 or 255, three channels
    SOURCE/images/*.jpg                            COCO train2014 (or at images/train2014)

The splits are val, testA and testB; there is no training split. The archive is on Google Drive
(1Qzt4cxyexe0xspsH_2oexylOKBI4Jim_, Refcocom_Benchmark.zip).

This reader was written without the archive. Two independent public readers agree on `img_name`,
`segment_id`, `sentences[].sent` and the masks. Public code names the files `val_part_only.json`,
`val_object_part.json` and `testA_part_only.json`. Not verified are:

- the names of the other files, which are assumed to follow the same pattern;
- `sent_id`, `cat` and `bbox`. They are not used: ids of expressions are `<split>-<segment_id>-<k>`, and
  regions have no category;
- which regions of `object_part` are parts. Those whose (image, segment_id) is also in `part_only` count
  as parts; a file without any of them is refused.

The paper has 26k masks of parts and 70k references to them, and does not say how many are in each split.
"""

import dataclasses
import functools
from pathlib import Path

from input_pipeline.building.conversion import Conversion, Plan, SourceError
from input_pipeline.formats.cris import Segment, convert, plan_of, read_segments

SPLITS = ("val", "testA", "testB")

#: Names of the figures in the build report.
REFERENCES = "expressions of parts in all splits (the paper has 70k)"
MASKS = "masks of parts in all splits (the paper has 26k)"


def _read_plan(source: Path, *, files: str) -> Plan:
    folder = source / "annotations"
    there = [split for split in SPLITS if (folder / f"{split}_{files}.json").is_file()]
    if not there:
        raise SourceError(
            f"{folder}: no {SPLITS[0]}_{files}.json there; --source_dir must be the folder of "
            "Refcocom_Benchmark.zip, which holds annotations, masks and images"
        )
    splits: dict[str, list[Segment]] = {}
    empty = 0
    for split in there:
        found, without = read_segments(folder / f"{split}_{files}.json", prefix=split)
        splits[split] = _with_granularity(found, folder, split, files)
        empty += without
    plan = plan_of(source, splits, source / "masks", empty)
    parts = [s for found in splits.values() for s in found if s.granularity == "part"]
    facts = {
        REFERENCES: sum(len(s.sentences) for s in parts),
        MASKS: len({s.segment_id for s in parts}),
    }
    return dataclasses.replace(plan, facts=facts)


def _with_granularity(
    segments: list[Segment], folder: Path, split: str, files: str
) -> list[Segment]:
    if files == "part_only":
        return [dataclasses.replace(segment, granularity="part") for segment in segments]
    file = folder / f"{split}_part_only.json"
    if not file.is_file():
        raise SourceError(f"{file}: not there; it says which regions of {split} are parts")
    parts = {(s.img_name, s.segment_id) for s in read_segments(file, prefix=split)[0]}
    if not any((s.img_name, s.segment_id) in parts for s in segments):
        raise SourceError(
            f"{folder / f'{split}_{files}.json'}: has no region of {file.name}, so that parts "
            "cannot be told from objects; use both files of one release"
        )
    return [
        dataclasses.replace(segment, granularity="part")
        if (segment.img_name, segment.segment_id) in parts
        else segment
        for segment in segments
    ]


CONVERSIONS = (
    Conversion("refcocom/part", functools.partial(_read_plan, files="part_only"), convert),
    Conversion("refcocom/object_part", functools.partial(_read_plan, files="object_part"), convert),
)
