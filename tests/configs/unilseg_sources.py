"""Small copies of the datasets of UniLSeg's configs, built by the builders of the real ones."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

from input_pipeline.datasets.registry import CONVERSIONS, DATASETS, Request
from tests.input_pipeline.datasets import (
    ade20k_test,
    coco_stuff_test,
    grefcoco_test,
    lip_test,
    part_sets_test,
    pascal_context_test,
    ref_youtube_vos_test,
    refcoco_files,
    saliency_datasets_test,
)
from tests.input_pipeline.formats import map_files

#: Name of the pseudo-labelled dataset.
PSEUDO = "sa1b_pseudo"


def build_datasets(folder: Path, names: tuple[str, ...]) -> Path:
    """Writes and builds datasets, out of `SOURCES` and `PSEUDO`; returns their data folder."""
    data_dir = folder / "data"
    for name in names:
        source = folder / name
        if name == PSEUDO:
            _write_lines(source)
            DATASETS["jsonl"].build(Request(data_dir, source, name=PSEUDO))
        else:
            SOURCES[name](source)
            map_files.build(CONVERSIONS[name], source, data_dir)
    return data_dir


def _grefcoco(folder: Path) -> None:
    refs = [
        grefcoco_test.ref(1, 320432, [10, 11], "train", (1, "both squares")),
        grefcoco_test.ref(2, 320432, [-1], "train", (2, "the circle")),
    ]
    grefcoco_test.write_source(folder, refs)


def _refcoco(folder: Path) -> None:
    refs = refcoco_files.default_refs()
    refs += [
        refcoco_files.ref(200 + k, 2, 20, split, refcoco_files.sentence(50 + k, "the square"))
        for k, split in enumerate(("testA", "testB"))
    ]
    refcoco_files.write_source(folder, refs)


def _saliency(name: str) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        for (of, split), folders in saliency_datasets_test.FOLDERS.items():
            if of == name:
                saliency_datasets_test.write_pair(folder, folders, f"{split}1", [0, 255])

    return write


#: Name -> function that writes the dataset's files into a folder.
SOURCES: dict[str, Callable[[Path], object]] = {
    "refcoco/unc": _refcoco,
    "grefcoco/unc": _grefcoco,
    "coco_stuff": coco_stuff_test.write_source,
    "ref_youtube_vos": ref_youtube_vos_test.write_source,
    "partimagenet/ood": part_sets_test.write_partimagenet,
    "lip": lip_test.write_source,
    "ecssd": _saliency("ecssd"),
    "duts": _saliency("duts"),
    "sod": _saliency("sod"),
    "pascal_s": _saliency("pascal_s"),
    "ade20k/150": ade20k_test.write_scenes,
    "pascal_context_59": pascal_context_test.write_source,
}


def _write_lines(folder: Path) -> None:
    """What an annotation engine writes: a caption of an object, and a tag of all of its kind."""
    folder.mkdir(parents=True)
    lines = []
    for number in range(3):
        map_files.write_image(folder / f"sa_{number}.jpg", 24, 32, number)
        for k, (text, kind) in enumerate([("a dog on grass", "object"), ("all dog", "category")]):
            mask = np.zeros((24, 32), np.uint8)
            mask[4 + k : 12, 6:20] = 255
            Image.fromarray(mask).save(folder / f"sa_{number}-{k}.png")
            line = {
                "image": f"sa_{number}.jpg",
                "image_id": f"sa1b/{number}",
                "expression": text,
                "mask": f"sa_{number}-{k}.png",
                "granularity": kind,
            }
            lines.append(json.dumps(line))
    (folder / "train.jsonl").write_text("\n".join(lines) + "\n")
