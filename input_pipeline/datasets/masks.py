"""Masks that other tools and models have made, as a dataset of your own.

    --dataset=masks/coco            COCO's JSON: CVAT, FiftyOne, SA-Co, results of SAM 3
    --dataset=masks/fiftyone        FiftyOne's own format, Detections with masks
    --dataset=masks/label_studio    Label Studio's JSON: brushes and polygons

An export becomes lines as `input_pipeline.datasets.jsonl` has them, with regions as RLE, and is built
from these. The lines stay in `lines/SPLIT.jsonl` of the built dataset. They can be corrected, and built
by `--dataset=jsonl` with `--image_dir` of the export.

A picture gets a line for

- each text of its regions (`input_pipeline.formats.exchange.lines.TEXT_FIELDS`); regions with the same
  text are one answer;
- each phrase that it was asked for (`text_input` of SA-Co), with `null` where nothing matches;
- each category of its regions, of granularity `category`: all its regions together. Entries with a
  phrase have none.

A category that no region of a picture has is not asked for there, because an export does not tell
whether somebody looked for it. A prediction whose score is below 0.5 does not count. Regions that are no
masks, and texts without a word, are left out. The build report counts all these.
"""

import functools
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from input_pipeline.building.beam import Runner
from input_pipeline.building.conversion import BuildError
from input_pipeline.building.own import build_records
from input_pipeline.formats.exchange import coco, fiftyone, label_studio
from input_pipeline.formats.exchange.lines import Collected
from input_pipeline.formats.jsonl_records import make_record
from input_pipeline.formats.places import Places
from refseg_jax.naming import unknown

#: Format -> reader of the splits of an export.
FORMATS: Mapping[str, Callable[[Places], dict[str, Collected]]] = {
    "coco": coco.read,
    "fiftyone": fiftyone.read,
    "label_studio": label_studio.read,
}


def build(
    form: str,
    name: str,
    source_dir: Path,
    *,
    data_dir: Path,
    image_dir: Sequence[Path] = (),
    splits: Sequence[str] = (),
    num_workers: int = 0,
    runner: Runner | None = None,
) -> Path:
    """Builds a dataset from an export.

    Args:
        form: key of `FORMATS`.
        name: name of the dataset, the value of `config.data.dataset`.
        source_dir: folder of the export.
        data_dir: folder of all datasets.
        image_dir: other folders that may hold the pictures.
        splits: splits to build; empty builds all.
        num_workers: number of processes that make records.
        runner: Beam runner that writes the shards; `None` writes them on this machine.

    Returns:
        The folder of the dataset.

    Raises:
        SourceError: the folder has no such export, or it is damaged.
        BuildError: a region does not fit its picture, a picture is missing, or the name is invalid or
            taken; the message has file, place, reason and cure.
        ImageError: a picture is damaged.
    """
    places = Places(source_dir, tuple(image_dir))
    found = FORMATS[form](places)
    for split in splits:
        if split not in found:
            raise BuildError(f"{source_dir}: {unknown('split', split, found)}")
    chosen = {split: found[split] for split in found if split in (splits or found)}
    plan = {split: collected.images(split) for split, collected in chosen.items()}
    for split, images in plan.items():
        if not images:
            raise BuildError(
                f"{source_dir}: no picture of {split!r} has a mask and a text or category; export masks "
                "(not boxes) with labels"
            )
    return build_records(
        name,
        plan,
        functools.partial(make_record, places=places, source=name),
        data_dir=data_dir,
        num_workers=num_workers,
        runner=runner,
        notes=sum((collected.notes for collected in chosen.values()), Counter()),
        lines={
            split: [line for image in images for _, line in image.stored]
            for split, images in plan.items()
        },
    )
