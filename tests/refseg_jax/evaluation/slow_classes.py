"""A plain evaluation over every class, pixel by pixel and class by class, in numpy."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from input_pipeline.schema import Record
from refseg_jax.images import preprocess
from refseg_jax.images.decoding import decode_image

#: Logits nearer than this could change places by the rounding of another order of sums.
_NEAR = 1e-6


def warped(cells: np.ndarray, affine: np.ndarray, stride: int, size: tuple[int, int]) -> np.ndarray:
    """Logits f64 `[height, width]` at native pixels: bilinear between the cells, edges clamped."""
    positions = []
    for axis, (pixels, count) in enumerate(zip(size, cells.shape, strict=True)):
        row = 1 - axis
        scale, offset = float(affine[row, row]), float(affine[row, 2])
        network = scale * np.arange(pixels) + offset
        positions.append(np.clip((network + 0.5) / stride - 0.5, 0, count - 1))
    y, x = positions[0][:, None], positions[1][None]
    top, left = np.floor(y).astype(int), np.floor(x).astype(int)
    bottom = np.minimum(top + 1, cells.shape[0] - 1)
    right = np.minimum(left + 1, cells.shape[1] - 1)
    down, along = y - top, x - left
    grid = cells.astype(np.float64)
    upper = (1 - along) * grid[top, left] + along * grid[top, right]
    lower = (1 - along) * grid[bottom, left] + along * grid[bottom, right]
    return (1 - down) * upper + down * lower


def predicted_classes(logits: Sequence[np.ndarray], threshold: float | None) -> np.ndarray:
    """The class of the largest logit of each pixel; with a threshold, `C` where none is above it."""
    best = np.full(logits[0].shape, -np.inf)
    found = np.zeros(logits[0].shape, int)
    second = best.copy()
    for number, values in enumerate(logits):
        second = np.where(values < best, np.maximum(second, values), second)
        second = np.where(values > best, best, second)
        found = np.where(values > best, number, found)
        best = np.maximum(best, values)
    margin = best - second
    if threshold is not None:
        cut = math.log(threshold / (1 - threshold))
        margin = np.minimum(margin, np.abs(best - cut))
        found = np.where(best > cut, found, len(logits))
    assert margin.min() > _NEAR, "two classes are too near to compare: take other random parameters"
    return found


def counts_of_record(
    record: Record, logits: Sequence[np.ndarray], labels: np.ndarray, threshold: float | None
) -> np.ndarray:
    """Pixels of intersection, prediction and target of each class, i64 `[C, 3]`."""
    assert labels.shape == (record.height, record.width)
    predicted = predicted_classes(logits, threshold)
    classes = len(logits) + (threshold is not None)
    if threshold is not None:
        labels = np.where(labels < 0, len(logits), labels)
    counts = np.zeros((classes, 3), int)
    for y in range(record.height):
        for found, wanted in zip(predicted[y].tolist(), labels[y].tolist(), strict=True):
            if wanted < 0:
                continue
            counts[found, 1] += 1
            counts[wanted, 2] += 1
            if found == wanted:
                counts[found, 0] += 1
    return counts


def scores_of_counts(counts: np.ndarray, names: Sequence[str]) -> dict[str, Any]:
    """Scores by their definitions; `background` may be the last name."""
    union = counts[:, 1] + counts[:, 2] - counts[:, 0]
    ious = {name: counts[c, 0] / union[c] for c, name in enumerate(names) if union[c]}
    shown = counts[:, 2] > 0
    found = {f"IoU/{name}": iou for name, iou in ious.items()}
    found["mIoU"] = float(np.mean(list(ious.values())))
    found["mAcc"] = float(np.mean(counts[shown, 0] / counts[shown, 2]))
    found["aAcc"] = counts[:, 0].sum() / counts[:, 2].sum()
    if names[-1] == "background":
        rest = [iou for name, iou in ious.items() if name != "background"]
        found["fg_mIoU"] = float(np.mean(rest))
    return found


def network_input(record: Record, side: int) -> tuple[np.ndarray, np.ndarray]:
    """The letterboxed image u8 `[side, side, 3]`, and the affine of native to network pixels."""
    image = decode_image(record.image, name="image")
    return preprocess.prepare_image(image, side, "letterbox")
