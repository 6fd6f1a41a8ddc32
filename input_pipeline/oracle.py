"""Scores an oracle that knows the targets' category but not the words, to compare models with."""

from collections import defaultdict

import numpy as np
from pycocotools import mask as coco_mask

from input_pipeline.schema import Expression, Record
from input_pipeline.sources import DatasetError, RecordSource
from refseg_jax.batch import GRANULARITIES


def oracle_kind(record: Record, expression: Expression) -> float:
    """Expected IoU of an oracle that knows all masks and the targets' categories, but not the words.

    The category of a part includes that of its object. The oracle takes the better of two answers: one
    instance of the categories by chance (the mean of their IoUs), or all instances at once.

    Args:
        record: the image.
        expression: an expression with at least one target; the union of its targets is the truth.

    Returns:
        IoU in [0, 1].
    """
    kinds = {_kind(record, target) for target in expression.targets}
    same = [i for i in range(len(record.targets)) if _kind(record, i) in kinds]
    masks = {i: record.rle(i) for i in same}
    truth = coco_mask.merge([masks[i] for i in expression.targets])
    together = coco_mask.merge(list(masks.values()))
    ious = np.asarray(coco_mask.iou([*masks.values(), together], [truth], [0]))[:, 0]
    return float(max(ious[:-1].mean(), ious[-1]))


def oracle_scores(source: RecordSource, granularities: tuple[str, ...]) -> dict[str, float]:
    """Mean of `oracle_kind` over a split, as `<granularity>/mIoU`, in the order of `GRANULARITIES`.

    No-target expressions and damaged records are left out.
    """
    scores: dict[str, list[float]] = defaultdict(list)
    for index in range(len(source)):
        try:
            record = source[index]
        except DatasetError:
            continue  # The evaluation of the same split has told it.
        for expression in record.expressions:
            if expression.granularity in granularities and expression.targets:
                scores[expression.granularity].append(oracle_kind(record, expression))
    return {
        f"{name}/mIoU": sum(scores[name]) / len(scores[name])
        for name in GRANULARITIES
        if name in scores
    }


def _kind(record: Record, target: int) -> tuple[str, str]:
    found = record.targets[target]
    parent = record.targets[found.parent].category if found.parent >= 0 else ""
    return found.category, parent
