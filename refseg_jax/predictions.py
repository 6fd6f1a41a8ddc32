"""Predictions and references as lines of JSON, which any scorer can read."""

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from pycocotools import mask as coco_mask


def encode(mask: np.ndarray) -> dict[str, Any]:
    """A mask `[H, W]` of bool or 0/1 as compressed COCO RLE, `{"size": [h, w], "counts": str}`."""
    rle: Any = coco_mask.encode(np.asfortranarray(mask, np.uint8))
    return {"size": [int(n) for n in mask.shape], "counts": rle["counts"].decode()}


def prediction_line(
    pair_id: str, image: str, expression: str, mask: np.ndarray, score: float
) -> dict[str, Any]:
    """One line of `predictions.jsonl`.

    Args:
        pair_id: unique in the file.
        image: file name or image id.
        expression: the words.
        mask: bool `[H, W]`.
        score: mean probability inside the mask.
    """
    return {
        "id": pair_id,
        "image": image,
        "expression": expression,
        "segmentation": encode(mask),
        "score": float(score),
        "present": bool(mask.any()),
    }


@contextlib.contextmanager
def jsonl_writer(path: Path) -> Iterator[Any]:
    """A file of JSON lines that is whole or not there: `with jsonl_writer(p) as write: write({})`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    try:
        with partial.open("w") as file:
            yield lambda line: file.write(json.dumps(line) + "\n")
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
