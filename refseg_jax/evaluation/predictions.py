"""Predictions and references as lines of JSON, for `tools.score` and other scorers."""

import base64
import contextlib
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from pycocotools import mask as coco_mask


def encode(mask: np.ndarray) -> dict[str, Any]:
    """A mask `[H, W]` of bool or 0/1 as compressed COCO RLE, `{"size": [h, w], "counts": str}`."""
    rle: Any = coco_mask.encode(np.asfortranarray(mask, np.uint8))
    return {"size": [int(n) for n in mask.shape], "counts": rle["counts"].decode()}


def encode_map(soft_map: np.ndarray) -> str:
    """A soft map u8 `[H, W]` as the base64 text of a PNG."""
    file = io.BytesIO()
    Image.fromarray(soft_map).save(file, "PNG")
    return base64.b64encode(file.getvalue()).decode()


def prediction_line(
    pair_id: str,
    image: str,
    expression: str,
    mask: np.ndarray,
    score: float,
    *,
    present: bool | None = None,
    soft_map: np.ndarray | None = None,
) -> dict[str, Any]:
    """One line of `predictions.jsonl`.

    Args:
        pair_id: unique in the file.
        image: file name or image id.
        expression: the words.
        mask: bool `[H, W]`, not cleared by the presence head. The protocols decide by `present`: of
            an absent pair, `gres` counts these pixels and `gres_paper` does not.
        score: mean probability inside the mask, in [0, 1].
        present: the presence head's answer; `None`: whether the mask has any pixels.
        soft_map: u8 `[H, W]`, the probability as 0..255, for protocols that score maps; `None` leaves
            it out.
    """
    line = {
        "id": pair_id,
        "image": image,
        "expression": expression,
        "segmentation": encode(mask),
        "score": float(score),
        "present": bool(mask.any()) if present is None else present,
    }
    return line if soft_map is None else {**line, "map": encode_map(soft_map)}


@contextlib.contextmanager
def jsonl_writer(path: Path) -> Iterator[Any]:
    """Writes a file of JSON lines, complete or not at all: `with jsonl_writer(p) as write: write({})`.

    Raises:
        OSError: the file cannot be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    try:
        with partial.open("w") as file:
            yield lambda line: file.write(json.dumps(line) + "\n")
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
