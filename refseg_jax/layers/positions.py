"""Fixed sine positions: CRIS's of raw integer places, and DETR's of places relative to the map."""

import math

import numpy as np


def sine_positions_1d(length: int, width: int) -> np.ndarray:
    """f32 `[length, width]`; channels 2i and 2i+1 are sin and cos of `p / 10000^(2i/width)`.

    Raises:
        ValueError: an odd width.
    """
    if width % 2:
        raise ValueError(f"1-D sine positions need an even width, not {width}")
    frequencies = np.exp(np.arange(0, width, 2) * (-math.log(10000.0) / width))
    angles = np.arange(length)[:, None] * frequencies
    return np.stack([np.sin(angles), np.cos(angles)], -1).reshape(length, width).astype(np.float32)


def sine_positions_2d(height: int, width: int, channels: int) -> np.ndarray:
    """f32 `[height * width, channels]`; the first half encodes x, the second half y.

    Raises:
        ValueError: channels not divisible by 4.
    """
    if channels % 4:
        raise ValueError(f"2-D sine positions need channels divisible by 4, not {channels}")
    half = channels // 2
    along_x = np.broadcast_to(sine_positions_1d(width, half)[None], (height, width, half))
    along_y = np.broadcast_to(sine_positions_1d(height, half)[:, None], (height, width, half))
    return np.concatenate([along_x, along_y], -1).reshape(height * width, channels)


def sine_positions_relative(height: int, width: int, channels: int) -> np.ndarray:
    """DETR's and Mask2Former's: f32 `[height * width, channels]`, places relative to the map's size.

    Row r has the angle `2 pi (r + 1) / height`, column c `2 pi (c + 1) / width`, base 10000; the
    first half encodes y, the second half x, sine and cosine interleaved.

    Raises:
        ValueError: channels not divisible by 4.
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
