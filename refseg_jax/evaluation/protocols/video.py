"""Region similarity J and contour accuracy F of referring video segmentation, as DAVIS defines them.

Sources: Perazzi et al., CVPR 2016 (J and F); `davis2017-evaluation`, `metrics.py` (their bound and
empty cases); `Refer-YouTube-VOS`, `Baseline/trainer.py`, `evaluate` (which frames count, and the
averages).

An object is an expression of a video. J and F are averaged over the frames of each object, then over
the objects; J&F is the mean of both. Every frame that the dataset lists for the video counts. DAVIS
leaves out the first and the last frame only in its semi-supervised task (`evaluation.py`), which
gives the first mask. Refer-YouTube-VOS gives none, so its evaluation runs over all frames, as do
those of Ref-DAVIS (DAVIS' unsupervised task) and MeViS (`tools/eval_mevis.py`).

The evaluation server of Refer-YouTube-VOS is not public. Its authors' baseline gives J = 0 to a frame
where both masks are empty; DAVIS and MeViS give 1, as this module does.
"""

import functools
import math
from collections.abc import Mapping

import cv2
import numpy as np

from refseg_jax.evaluation.protocols.base import exact, mean

#: Contours match within this share of the image's diagonal, rounded up to pixels.
BOUND = 0.008


def region_similarity(prediction: np.ndarray, target: np.ndarray) -> float:
    """J, intersection over union; 1 where both masks are empty.

    Args:
        prediction, target: bool `[h, w]`.

    Raises:
        ValueError: a type is wrong, the shapes differ, or there are no pixels.
    """
    _check(prediction, target)
    union = np.count_nonzero(prediction | target)
    return np.count_nonzero(prediction & target) / union if union else 1.0


def contour_accuracy(prediction: np.ndarray, target: np.ndarray) -> float:
    """F, `2 P R / (P + R)` of the contours' pixels.

    P is the share of the prediction's contour within `ceil(0.008 * diagonal)` pixels of the target's
    contour; R is the share of the target's contour within that distance of the prediction's. F is 0
    where one contour is empty, and 1 where both are. A mask that fills the image has no contour, so
    it counts like an empty one.

    Args:
        prediction, target: bool `[h, w]`.

    Raises:
        ValueError: a type is wrong, the shapes differ, or there are no pixels.
    """
    _check(prediction, target)
    contours = [contour(mask) for mask in (prediction, target)]
    found, wanted = (np.count_nonzero(pixels) for pixels in contours)
    if not found or not wanted:
        return float(found == wanted)
    disk = _disk(math.ceil(BOUND * math.hypot(*target.shape)))
    near_found, near_wanted = (cv2.dilate(c.astype(np.uint8), disk) > 0 for c in contours)
    precision = np.count_nonzero(contours[0] & near_wanted) / found
    recall = np.count_nonzero(contours[1] & near_found) / wanted
    if precision + recall == 0:
        return 0.0
    return 2 * precision * recall / (precision + recall)


def contour(mask: np.ndarray) -> np.ndarray:
    """The pixels that differ from the one to the right, below, or right below: bool `[h, w]`.

    The rule of Berkeley's `seg2bmap`, which DAVIS uses. The contour lies outside the mask along its
    upper and left edges, inside along the others; there is none along the image's border.
    """
    # Repeating the last row and column keeps pixels on the border from differing from the outside.
    right_below = np.pad(mask, ((0, 1), (0, 1)), mode="edge")
    return (
        (mask != right_below[:-1, 1:])
        | (mask != right_below[1:, :-1])
        | (mask != right_below[1:, 1:])
    )


def video_sums(prediction: np.ndarray, target: np.ndarray) -> dict[str, int]:
    """J and F of a frame as integers to be summed by name (`exact`); arguments as above."""
    return {
        "J": exact(region_similarity(prediction, target)),
        "F": exact(contour_accuracy(prediction, target)),
    }


def video_scores(objects: Mapping[str, Mapping[str, int]]) -> dict[str, float]:
    """`J`, `F` and `JF` of a dataset, in [0, 1], unrounded.

    Args:
        objects: for each expression of a video the sum of `video_sums` over its frames, and their
            number as `count`.

    Returns:
        Means over the objects, each with the same weight. Empty if there is no object.
    """
    if not objects:
        return {}
    j, f = (
        math.fsum(mean(sums[name], sums["count"]) for sums in objects.values()) / len(objects)
        for name in ("J", "F")
    )
    return {"J": j, "F": f, "JF": (j + f) / 2}


def _check(prediction: np.ndarray, target: np.ndarray) -> None:
    if prediction.dtype != np.dtype(bool) or target.dtype != np.dtype(bool):
        raise ValueError(f"expected two bool masks, not {prediction.dtype} and {target.dtype}")
    if prediction.shape != target.shape or target.ndim != 2 or target.size == 0:
        found = f"{prediction.shape} and {target.shape}"
        raise ValueError(f"expected two masks [h, w] of one size, not {found}")


@functools.lru_cache(maxsize=64)
def _disk(radius: int) -> np.ndarray:
    """U8 `[2 r + 1, 2 r + 1]`, the pixels within `radius` of the middle one."""
    offsets = np.arange(-radius, radius + 1) ** 2
    return (offsets[:, None] + offsets <= radius**2).astype(np.uint8)
