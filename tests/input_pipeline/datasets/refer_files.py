"""Small folders in the layouts that derive from `refer`'s, for tests."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from input_pipeline.building.conversion import Conversion
from input_pipeline.building.published import builder_of
from tests.input_pipeline.datasets.refcoco_files import jpeg

#: Size of every image.
HEIGHT, WIDTH = 48, 64

#: Folder of COCO's images in the source folder.
TRAIN2014 = "images/train2014"


def square(x: int, y: int, side: int = 10) -> list[list[float]]:
    """A polygon that covers the `side` x `side` pixels whose upper left one is (x, y)."""
    return [[x, y, x + side, y, x + side, y + side, x, y + side]]


def square_mask(*corners: tuple[int, int], side: int = 10) -> np.ndarray:
    """u8 `[HEIGHT, WIDTH]`: the union of such squares."""
    mask = np.zeros((HEIGHT, WIDTH), np.uint8)
    for x, y in corners:
        mask[y : y + side, x : x + side] = 1
    return mask


def write_jpegs(folder: Path, names: Sequence[str]) -> None:
    """Writes images of noise."""
    for seed, name in enumerate(names):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(jpeg(HEIGHT, WIDTH, seed=seed))


def coco_name(image_id: int) -> str:
    """Name of an image of COCO train2014."""
    return f"COCO_train2014_{image_id:012d}.jpg"


def write_instances(
    file: Path, image_names: dict[int, str], annotations: list[dict[str, Any]]
) -> None:
    """Writes an `instances.json` with the category 3, "square"."""
    size = {"height": HEIGHT, "width": WIDTH}
    stored = {
        "info": {},
        "images": [{"id": i, "file_name": name, **size} for i, name in image_names.items()],
        "annotations": [{"category_id": 3, "iscrowd": 0, **a} for a in annotations],
        "categories": [{"id": 3, "name": "square"}],
    }
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(stored))


def config_of(conversions: Sequence[Conversion], name: str) -> Conversion:
    """The conversion of a dataset, e.g. `"refcoco/unc"`."""
    return next(c for c in conversions if c.name == name)


def build(conversion: Conversion, source: Path, data_dir: Path, **options: Any) -> Path:
    """Builds a dataset; returns its folder."""
    return builder_of(conversion, source_dir=source, data_dir=data_dir, **options).build()
