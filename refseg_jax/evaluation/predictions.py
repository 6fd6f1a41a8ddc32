"""Predictions and references as lines of JSON, for `tools.score` and other scorers."""

import base64
import contextlib
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
from PIL import Image
from pycocotools import mask as coco_mask

from refseg_jax.evaluation.protocols.base import Pair
from refseg_jax.evaluation.thresholds import Thresholds


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
    presence: float | None = None,
    thresholds: Thresholds,
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
        presence: the presence head's probability, in [0, 1]; `None` (in the file `null`) for a model
            without one.
        thresholds: those that decided.
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
        "presence": presence,
        "thresholds": thresholds.as_json(),
    }
    return line if soft_map is None else {**line, "map": encode_map(soft_map)}


def reference_line(pair: Pair) -> dict[str, Any]:
    """The line of `references.jsonl` of a pair."""
    known = {name: getattr(pair, name) for name in ("granularity", "group", "category", "form")}
    return {
        "id": pair.id,
        "segmentation": encode(pair.regions.target()),
        "empty": pair.empty,
        **{name: value for name, value in known.items() if value},
    }


@contextlib.contextmanager
def dump_writers(folder: Path) -> Iterator[tuple[Any, Any]]:
    """Writers as `jsonl_writer`'s of this process's `predictions.jsonl` and `references.jsonl`.

    With several processes, the files are `predictions-<process>.jsonl`, likewise references.
    """
    suffix = "" if jax.process_count() == 1 else f"-{jax.process_index()}"
    with (
        jsonl_writer(folder / f"predictions{suffix}.jsonl") as predicted,
        jsonl_writer(folder / f"references{suffix}.jsonl") as references,
    ):
        yield predicted, references


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
