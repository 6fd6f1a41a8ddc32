"""LAVT's square of 480 x 480 pixels: how often it takes each native pixel.

LAVT resizes the reference with Pillow's nearest neighbour. Such a resize copies some native rows and
columns and leaves out others, so that a number of pixels on the square is a weighted number of native
pixels: the sum of `rows[y] * columns[x]` over the mask. Nothing has to be resized.
"""

import functools

import numpy as np
from PIL import Image

#: Side of the square in pixels.
SIDE = 480


@functools.lru_cache(maxsize=4096)
def weights(length: int) -> np.ndarray:
    """How often a side of `length` native pixels gives each of them to the square: i32 `[length]`.

    Pillow itself is asked, since it adds up its steps in floating point.
    """
    positions = Image.fromarray(np.arange(length, dtype=np.int32)[None])
    taken = np.asarray(positions.resize((SIDE, 1), Image.Resampling.NEAREST))[0]
    found = np.bincount(taken, minlength=length).astype(np.int32)
    found.flags.writeable = False
    return found


def pixels(mask: np.ndarray) -> int:
    """Pixels that a mask `[H, W]` of bool or 0/1 has on the square."""
    rows, columns = (weights(length).astype(np.float32) for length in mask.shape)
    # Exact: all partial sums are integers below 2^24.
    return int(rows @ (mask.astype(np.float32) @ columns))
