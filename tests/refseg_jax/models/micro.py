"""The smallest UniRES with all parts, and a batch for it."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from refseg_jax.batch import Batch
from refseg_jax.models import build_model
from refseg_jax.models.forward import Forward
from refseg_jax.models.unires import UniRES

EOS = 63

FIELDS: dict[str, Any] = {
    "image_size": 32,
    "patch_size": 8,
    "vision_width": 32,
    "vision_layers": 2,
    "vision_heads": 2,
    "embedding_width": 24,
    "text_width": 16,
    "text_layers": 1,
    "text_heads": 2,
    "vocab_size": 64,
    "text_positions": 12,
    "eos_id": EOS,
    "low_tokens": 5,
    "high_tokens": 3,
    "decoder_width": 16,
    "decoder_heads": 2,
    "decoder_hidden": 32,
    "decoder_layers": 2,
    "mask_stride": 2,
}


@functools.cache
def micro(**changes: Any) -> Forward[UniRES]:
    """The model, with some fields changed."""
    config = {"name": "unires", **FIELDS, **changes}
    return Forward(lambda rngs: build_model(config, rngs=rngs))  # pyright: ignore


def micro_params(forward: Forward[UniRES], seed: int = 0) -> dict[str, jax.Array]:
    """Random parameters, about as large as at initialisation, none of them zero or one.

    They are drawn without JAX, because `init` takes longer to compile than the model.
    """
    rng = np.random.default_rng(seed)

    def draw(path: str, shape: tuple[int, ...]) -> np.ndarray:
        scale = 0.5 * np.prod(shape[:-1]) ** -0.5 if path.endswith("kernel") else 0.05
        return path.endswith("scale") + np.float32(scale) * rng.standard_normal(shape, np.float32)

    return jax.device_put({path: draw(path, leaf.shape) for path, leaf in forward.shapes.items()})


def micro_batch(rows: int = 2, images: int = 1, expressions: int = 3, length: int = 7) -> Batch:
    """Random images and texts of different lengths."""
    rng = np.random.default_rng(1)
    ends = rng.integers(2, length, (rows, expressions, 1))
    place = np.arange(length)
    text = rng.integers(1, EOS, (rows, expressions, length))
    text = np.where(place < ends, text, np.where(place == ends, EOS, 0)).astype(np.int32)
    pairs = (rows, images, expressions)
    batch = Batch(
        image=rng.integers(0, 256, (rows, images, 32, 32, 3), dtype=np.uint8),
        text=text,
        text_valid=place <= ends,
        mask=rng.integers(0, 256, (*pairs, 16, 16), dtype=np.uint8),
        present=np.ones(pairs, bool),
        valid=np.ones(pairs, bool),
        size=np.full((rows, images, 2), 32, np.int32),
        affine=np.zeros((rows, images, 2, 3), np.float32),
    )
    return jax.tree.map(jnp.asarray, batch)
