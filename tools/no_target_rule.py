"""The pixel rule for "nothing matches" over the predictions that a run has dumped.

ReLA's paper (section 5.3) takes a mask of fewer than 50 pixels for none. The rule needs no training, so
that it is tried after it, on the same masks as the head that decides by itself.
"""

import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from refseg_jax.cli.score_lines import ReadPair, read_pairs
from refseg_jax.evaluation.protocols import State
from refseg_jax.evaluation.protocols.gres import SQUARE, Gres


def scores_by_min_pixels(dump: Path, min_pixels: int) -> dict[str, float]:
    """The scores of `gres` where a mask of fewer pixels (of 480 x 480) says that nothing is there.

    Args:
        dump: folder of `predictions.jsonl` and `references.jsonl`.
        min_pixels: at least 1.
    """
    state = State(Gres(min_pixels=min_pixels))
    for pair, _ in _pairs(dump):
        state.add(pair)
    return state.compute()


def matched_min_pixels(dump: Path, t_acc: float) -> int:
    """The strictest rule that finds as many of the targets as somebody else: its T_acc >= `t_acc`.

    Args:
        dump: as of `scores_by_min_pixels`.
        t_acc: share in [0, 1].

    Returns:
        A number of pixels of 480 x 480; 1, the mildest rule, where even that has a lower T_acc.
    """
    areas = []
    for pair, _ in _pairs(dump):
        counts, (height, width) = pair.regions.counts(), pair.regions.size
        if counts.target:
            areas.append(counts.prediction * SQUARE // (height * width))
    # Of n masks ceil(t_acc * n) have to stay: the smallest of them sets the bound. A share k / n is
    # rounded, and its product with n may be a little more than k.
    descending = np.sort(areas)[::-1]
    kept = math.ceil(t_acc * len(descending) - 1e-9)
    return max(int(descending[kept - 1]), 1) if kept else SQUARE + 1


def _pairs(dump: Path) -> Iterator[ReadPair]:
    return read_pairs(dump / "predictions.jsonl", dump / "references.jsonl")
