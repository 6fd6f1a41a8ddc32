"""Fixed sine position encodings: CRIS's of integer places, and DETR's relative to the map's size."""

import math

import numpy as np


def sine_positions_1d(length: int, width: int) -> np.ndarray:
    """CRIS's encoding of the places 0..length-1, f32 `[length, width]`.

    Channels 2i and 2i+1 of place p are sine and cosine of `p / 10000^(2i/width)`.

    Raises:
        ValueError: the width is odd.
    """
    if width % 2:
        raise ValueError(f"1-D sine positions need an even width, not {width}")
    frequencies = np.exp(np.arange(0, width, 2) * (-math.log(10000.0) / width))
    angles = np.arange(length)[:, None] * frequencies
    return np.stack([np.sin(angles), np.cos(angles)], -1).reshape(length, width).astype(np.float32)


def sine_positions_2d(height: int, width: int, channels: int) -> np.ndarray:
    """CRIS's encoding of the cells of a map, row by row, f32 `[height * width, channels]`.

    The first half of the channels is `sine_positions_1d` of the column, the second half of the row.

    Raises:
        ValueError: the number of channels is not divisible by 4.
    """
    if channels % 4:
        raise ValueError(f"2-D sine positions need channels divisible by 4, not {channels}")
    half = channels // 2
    along_x = np.broadcast_to(sine_positions_1d(width, half)[None], (height, width, half))
    along_y = np.broadcast_to(sine_positions_1d(height, half)[:, None], (height, width, half))
    return np.concatenate([along_x, along_y], -1).reshape(height * width, channels)


def sine_positions_relative(height: int, width: int, channels: int) -> np.ndarray:
    """DETR's and Mask2Former's encoding, relative to the map's size, f32 `[height * width, channels]`.

    Row r has the angle `2 pi (r + 1) / height`, and column c `2 pi (c + 1) / width`. The first half of
    the channels encodes the row, the second half the column. Channels 2i and 2i+1 of a half are sine
    and cosine of the angle divided by `10000^(2i/half)`.

    Raises:
        ValueError: the number of channels is not divisible by 4.
    """
    if channels % 4:
        raise ValueError(f"2-D sine positions need channels divisible by 4, not {channels}")
    half = channels // 2
    frequencies = 10000.0 ** (-np.arange(0, half, 2) / half)

    def along(length: int) -> np.ndarray:
        # The epsilon is part of the published formula.
        places = np.arange(1, length + 1) / (length + 1e-6) * (2 * math.pi)
        angles = places[:, None] * frequencies
        return np.stack([np.sin(angles), np.cos(angles)], -1).reshape(length, half)

    along_y = np.broadcast_to(along(height)[:, None], (height, width, half))
    along_x = np.broadcast_to(along(width)[None], (height, width, half))
    joined = np.concatenate([along_y, along_x], -1).reshape(height * width, channels)
    return joined.astype(np.float32)
