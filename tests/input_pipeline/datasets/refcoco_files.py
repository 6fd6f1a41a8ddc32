"""A small folder in the `refer` layout, for tests."""

import io
import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image

from input_pipeline.building.published import builder_of
from input_pipeline.datasets.registry import CONVERSIONS
from input_pipeline.schema import Record, from_features

HEIGHT, WIDTH = 48, 64

#: Masks of every kind; the annotation id of each is 10 + its index.
SEGMENTATIONS: list[Any] = [
    [[4, 4, 24, 4, 24, 24, 4, 24], [14, 14, 34, 14, 34, 34, 14, 34]],  # overlapping
    [[40, 10, 50, 10, 50, 20, 40, 20], [1, 1, 2, 2], [5, 5]],  # tiny ones beside it
    {"size": [HEIGHT, WIDTH], "counts": [HEIGHT * 10, HEIGHT * 4, HEIGHT * 50]},  # crowd
]
AREAS = [400 + 400 - 100, 100, HEIGHT * 4]


def jpeg(height: int = HEIGHT, width: int = WIDTH, seed: int = 0) -> bytes:
    """An image of noise, as the bytes of a JPEG."""
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG")
    return buffer.getvalue()


def sentence(sent_id: int, sent: Any, raw: Any = None) -> dict[str, Any]:
    """A sentence of a ref."""
    return {"sent_id": sent_id, "sent": sent, "raw": sent if raw is None else raw, "tokens": []}


def ref(
    ref_id: int, image_id: int, ann_id: int, split: str, *sentences: dict[str, Any]
) -> dict[str, Any]:
    """An entry of the refs file. As in real ones, its file name is not that of a file."""
    return {
        "ref_id": ref_id,
        "ann_id": ann_id,
        "image_id": image_id,
        "category_id": 3,
        "split": split,
        "file_name": f"COCO_train2014_{image_id:012d}_0.jpg",
        "sent_ids": [s["sent_id"] for s in sentences],
        "sentences": list(sentences),
    }


def default_refs() -> list[dict[str, Any]]:
    """Refs of two images: three of image 1 in train, one of image 2 in val."""
    return [
        ref(100, 1, 10, "train", sentence(1, "both squares", "BOTH squares!"), sentence(2, "it")),
        ref(101, 1, 11, "train", sentence(3, "the small one")),
        ref(102, 1, 12, "train", sentence(4, "the stripe"), sentence(5, "  ")),
        ref(103, 2, 20, "val", sentence(6, "café ☂")),
    ]


def annotation(ann_id: int, image_id: int, segmentation: Any) -> dict[str, Any]:
    """An annotation of `instances.json`."""
    return {
        "id": ann_id,
        "image_id": image_id,
        "category_id": 3,
        "segmentation": segmentation,
        "iscrowd": int(isinstance(segmentation, dict)),
    }


def write_source(folder: Path, refs: list[dict[str, Any]] | None = None, by: str = "unc") -> Path:
    """Writes `refcoco/refs(unc).p`, `refcoco/instances.json` and two images; returns the folder."""
    (folder / "refcoco").mkdir(parents=True)
    images = folder / "images" / "train2014"
    images.mkdir(parents=True)
    refs_file = folder / "refcoco" / f"refs({by}).p"
    refs_file.write_bytes(pickle.dumps(default_refs() if refs is None else refs, 2))
    names = {i: f"COCO_train2014_{i:012d}.jpg" for i in (1, 2)}
    annotations = [annotation(10 + k, 1, s) for k, s in enumerate(SEGMENTATIONS)]
    stored = {
        "images": [
            {"id": i, "file_name": name, "height": HEIGHT, "width": WIDTH}
            for i, name in names.items()
        ],
        "annotations": [*annotations, annotation(20, 2, SEGMENTATIONS[1])],
        "categories": [{"id": 3, "name": "square"}],
    }
    write_instances(folder, stored)
    for i, name in names.items():
        (images / name).write_bytes(jpeg(seed=i))
    return folder


def write_instances(folder: Path, stored: dict[str, Any]) -> None:
    """Replaces `instances.json`."""
    (folder / "refcoco" / "instances.json").write_text(json.dumps(stored))


def read_instances(folder: Path) -> dict[str, Any]:
    """Content of `instances.json`."""
    return json.loads((folder / "refcoco" / "instances.json").read_text())


def image_path(folder: Path, image_id: int) -> Path:
    """Path of an image."""
    return folder / "images" / "train2014" / f"COCO_train2014_{image_id:012d}.jpg"


def build(name: str, source: Path, data_dir: Path, **options: Any) -> Path:
    """Builds a published dataset by its name; returns its folder."""
    return builder_of(CONVERSIONS[name], source_dir=source, data_dir=data_dir, **options).build()


def read_records(folder: Path, split: str) -> list[Record]:
    """Reads the records of a built split as the pipeline does, without the builder's code."""
    data = tfds.builder_from_directory(str(folder)).as_data_source(split=split)
    return [from_features(data[i]) for i in range(len(data))]
