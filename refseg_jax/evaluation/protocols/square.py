"""Counts the pixels that a mask has on LAVT's square of 480 x 480, without resizing it.

LAVT resizes the reference with Pillow's nearest neighbour. Such a resize copies each native row and
column a whole number of times, or not at all. So the pixels of a mask on the square are a weighted
count of its native pixels: the sum of `rows[y] * columns[x]` over the mask.
"""

import functools

import numpy as np
from PIL import Image

#: Side of the square in pixels.
SIDE = 480


@functools.lru_cache(maxsize=4096)
def weights(length: int) -> np.ndarray:
    """How often the resize copies each of `length` native rows or columns, i32 `[length]`.

    Pillow itself resizes the indices, because its positions depend on how it rounds its sums.
    """
    positions = Image.fromarray(np.arange(length, dtype=np.int32)[None])
    taken = np.asarray(positions.resize((SIDE, 1), Image.Resampling.NEAREST))[0]
    found = np.bincount(taken, minlength=length).astype(np.int32)
    found.flags.writeable = False
    return found


def pixels(mask: np.ndarray) -> int:
    """Number of pixels that a mask `[H, W]` of bool or 0/1 has on the square."""
    rows, columns = (weights(length).astype(np.float32) for length in mask.shape)
    # Exact: all partial sums are integers below 2^24.
    return int(rows @ (mask.astype(np.float32) @ columns))
