"""Fixed sine position encodings: CRIS's of integer places, and DETR's relative to the map's size."""

import math
from typing import Any

import jax
import jax.numpy as jnp
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
    along_y, along_x = _axes(height, width, channels, 0.0)
    along_y = np.broadcast_to(along_y[:, None], (height, width, channels // 2))
    along_x = np.broadcast_to(along_x[None], (height, width, channels // 2))
    return np.concatenate([along_y, along_x], -1).reshape(height * width, channels)


def sine_positions_centred(height: int, width: int, channels: int, *, dtype: Any) -> jax.Array:
    """UniLSeg's encoding of the cells of a map, relative to its size, `[height * width, channels]`.

    `sine_positions_relative` at the centres of the cells: row r has the angle `2 pi (r + 1/2) / height`,
    and columns likewise. The table is put together on the device. As a constant of the compiled program
    it would take 29 MB for a map of 120 x 120 cells and 512 channels.

    Raises:
        ValueError: the number of channels is not divisible by 4.
    """
    along_y, along_x = (
        jnp.asarray(axis, dtype) for axis in _axes(height, width, channels, offset=-0.5)
    )
    along_y = jnp.broadcast_to(along_y[:, None], (height, width, channels // 2))
    along_x = jnp.broadcast_to(along_x[None], (height, width, channels // 2))
    return jnp.concatenate([along_y, along_x], -1).reshape(height * width, channels)


def sine_positions_words(length: int, width: int) -> np.ndarray:
    """UniLSeg's encoding of the places of a text, relative to its length, f32 `[length, width]`.

    Place p has the angle `2 pi (p + 1) / length`; channels are as in one half of
    `sine_positions_relative`. The length is that of the padded text.

    Raises:
        ValueError: the width is odd.
    """
    if width % 2:
        raise ValueError(f"1-D sine positions need an even width, not {width}")
    return _along(length, width, 0.0)


def _axes(height: int, width: int, channels: int, offset: float) -> tuple[np.ndarray, np.ndarray]:
    """The encodings of rows and columns, f32 `[height or width, channels / 2]`."""
    if channels % 4:
        raise ValueError(f"2-D sine positions need channels divisible by 4, not {channels}")
    return _along(height, channels // 2, offset), _along(width, channels // 2, offset)


def _along(length: int, channels: int, offset: float) -> np.ndarray:
    """The encoding of the places of one axis relative to its length, f32 `[length, channels]`."""
    frequencies = 10000.0 ** (-np.arange(0, channels, 2) / channels)
    # The epsilon is part of the published formula.
    places = (np.arange(1, length + 1) + offset) / (length + 1e-6) * (2 * math.pi)
    angles = places[:, None] * frequencies
    table = np.stack([np.sin(angles), np.cos(angles)], -1).reshape(length, channels)
    return table.astype(np.float32)
