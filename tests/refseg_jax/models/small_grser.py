"""The smallest GRSer with all parts, and batches of groups for it."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from refseg_jax.batch import Batch
from tests.refseg_jax.models.micro import EOS, micro_batch

SMALL: dict[str, Any] = {
    "name": "grser",
    "preset": "tiny",
    "image_size": 32,
    "swin_width": 16,
    "swin_depths": (1, 1),
    "swin_heads": (1, 2),
    "window": 4,
    "vocab_size": EOS + 2,
    "eos_id": EOS,
    "text_layers": 1,
    "text_width": 24,
    "text_hidden": 32,
    "width": 16,
    "group_size": 5,
    "predictor_width": 16,
    "predictor_layers": 1,
}


def group_batch(rows: int = 2, images: int = 4, expressions: int = 2, length: int = 7) -> Batch:
    """`micro_batch` with anti-expressions, absent targets and padding: the last image of row 0."""
    batch = micro_batch(rows, images, expressions, length)
    rng = np.random.default_rng(2)
    text, count = np.asarray(batch.text), np.asarray(batch.text_valid).sum(-1, keepdims=True)
    place = np.arange(length)
    shifted = np.concatenate(
        [text[..., :1], np.full_like(text[..., :1], EOS + 1), text[..., 1:-1]], -1
    )
    last = np.minimum(count, length - 1)
    anti = np.where(place == last, EOS, np.where(place < last, shifted, 0))
    present = rng.random((rows, images, expressions)) < 0.5
    valid = np.ones((rows, images, expressions), bool)
    valid[0, -1:] = images == 1
    masks = np.asarray(batch.mask) * present[..., None, None]
    changed = dataclasses.replace(
        batch,
        anti_text=anti.astype(np.int32),
        present=present,
        valid=valid,
        mask=masks.astype(np.uint8),
    )
    return jax.tree.map(jnp.asarray, changed)
