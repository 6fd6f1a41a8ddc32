"""A user's folder of images with JSON lines, for tests."""

import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from input_pipeline.datasets import jsonl
from input_pipeline.schema import Record
from input_pipeline.sources import RecordSource

SIZE = (12, 20)


def square(top: int, left: int, side: int = 4) -> np.ndarray:
    mask = np.zeros(SIZE, bool)
    mask[top : top + side, left : left + side] = True
    return mask


LEFT, RIGHT = square(2, 3), square(5, 12)


def write_pictures(source: Path) -> Path:
    """Writes an image and two masks, one with a palette in which 1 is black; returns the folder."""
    source.mkdir()
    pixels = np.random.default_rng(0).integers(0, 256, (*SIZE, 3), np.uint8)
    Image.fromarray(pixels).save(source / "a.png")
    Image.fromarray(np.uint8(255 * LEFT)).save(source / "left.png")
    indexed = Image.fromarray(np.uint8(RIGHT), "P")
    indexed.putpalette([0] * 768)
    indexed.save(source / "right.png")
    return source


def write(folder: Path, *lines: Any, split: str = "train") -> None:
    texts = [line if isinstance(line, str) else json.dumps(line) for line in lines]
    (folder / f"{split}.jsonl").write_text("\n".join(texts) + "\n", encoding="utf-8")


def line(**fields: Any) -> dict[str, Any]:
    return {"image": "a.png", "expression": "the thing", "mask": "left.png", **fields}


def record_of(folder: Path, tmp_path: Path, split: str = "train", index: int = 0) -> Record:
    """Builds the dataset of a folder, and reads one of its records."""
    jsonl.build("mine", folder, data_dir=tmp_path / "data")
    return RecordSource(str(tmp_path / "data"), "mine", split)[index]
