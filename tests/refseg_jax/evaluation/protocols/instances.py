"""Matching of instances as SAM 3's paper and PBench's evaluator have it, by trying every way."""

import itertools
from collections.abc import Sequence

import numpy as np

from tests.refseg_jax.evaluation.protocols.cases import Case


def iou(one: np.ndarray, other: np.ndarray) -> float:
    """Of two masks, bool `[H, W]`; 0 where both are empty, as pycocotools has it."""
    either = (one | other).sum()
    return float((one & other).sum() / either) if either else 0.0


def matched(predicted: Sequence[np.ndarray], true: Sequence[np.ndarray]) -> list[float]:
    """IoUs of the pairs of the one-to-one matching with the largest sum of IoUs."""
    few, many = sorted((predicted, true), key=len)
    ways = (
        [iou(one, many[k]) for one, k in zip(few, chosen, strict=True)]
        for chosen in itertools.permutations(range(len(many)), len(few))
    )
    return max(ways, key=sum)


def counts(
    predicted: Sequence[np.ndarray], true: Sequence[np.ndarray], threshold: float
) -> tuple[int, int, int]:
    """(TP, FP, FN) of an image and a phrase."""
    right = sum(value >= threshold for value in matched(predicted, true))
    return right, len(predicted) - right, len(true) - right


def of_unions(case: Case) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Predicted and true instances of a pair whose masks are unions: at most one each."""
    return [case.prediction] * case.present, [case.target] * case.targeted


def runs(*lengths: int) -> list[np.ndarray]:
    """Instances in a row of pixels that share none, bool `[1, W]` each."""
    edges = np.cumsum([0, *lengths])
    pixels = np.arange(edges[-1])[None]
    return [(start <= pixels) & (pixels < end) for start, end in itertools.pairwise(edges)]
