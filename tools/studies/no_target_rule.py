"""Applies the pixel rule for "nothing matches" to the predictions that a run has dumped.

ReLA's paper (section 5.3) clears masks with fewer than 50 pixels. The rule needs no training, so it can
be applied to the masks of a finished run and compared with the run's presence head.
"""

import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from refseg_jax.cli.score_lines import ReadPair, read_pairs
from refseg_jax.evaluation.protocols import State
from refseg_jax.evaluation.protocols.gres import SQUARE, Gres


def scores_by_min_pixels(dump: Path, min_pixels: int) -> dict[str, float]:
    """Scores of the protocol `gres` if masks with fewer than `min_pixels` pixels are cleared.

    Args:
        dump: folder of `predictions.jsonl` and `references.jsonl`.
        min_pixels: number of pixels at 480 x 480, at least 1.
    """
    state = State(Gres(min_pixels=min_pixels))
    for pair, _ in _pairs(dump):
        state.add(pair)
    return state.compute()


def matched_min_pixels(dump: Path, t_acc: float) -> int:
    """Finds the strictest pixel rule whose T_acc is at least `t_acc`.

    Args:
        dump: as for `scores_by_min_pixels`.
        t_acc: share of the expressions with a target that must keep their mask, in [0, 1].

    Returns:
        The number of pixels at 480 x 480; 1, the mildest rule, if even that has a lower T_acc.
    """
    areas = []
    for pair, _ in _pairs(dump):
        counts, (height, width) = pair.regions.counts(), pair.regions.size
        if counts.target:
            areas.append(counts.prediction * SQUARE // (height * width))
    # The largest ceil(t_acc * n) of n masks have to stay, and the smallest of these sets the bound. If
    # t_acc is a rounded k / n, its product with n may exceed k a little: hence the tolerance.
    descending = np.sort(areas)[::-1]
    kept = math.ceil(t_acc * len(descending) - 1e-9)
    return max(int(descending[kept - 1]), 1) if kept else SQUARE + 1


def _pairs(dump: Path) -> Iterator[ReadPair]:
    return read_pairs(dump / "predictions.jsonl", dump / "references.jsonl")
