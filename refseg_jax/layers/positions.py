"""Fixed sine positions as in CRIS: raw integer positions, base 10000, sine and cosine interleaved."""

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
