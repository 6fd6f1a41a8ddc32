"""CLIP's ViT-B/16 as our tower without group tokens, and the operations of its forward pass."""

import functools
from typing import Any

import jax
import numpy as np

from refseg_jax.layers.target import PORTABLE, compiling_for
from refseg_jax.models import build_model
from refseg_jax.models.forward import Forward

PATCH = 16


@functools.cache
def tower(size: int, dtype: str) -> Forward[Any]:
    """The vision tower at an image size."""
    fields = {"name": "unires", "image_size": size, "low_tokens": 0, "high_tokens": 0}
    return Forward(lambda rngs: build_model({**fields, "dtype": dtype}, rngs=rngs).vision)  # pyright: ignore


def random_parameters(forward: Forward[Any]) -> dict[str, np.ndarray]:
    """Small random parameters, so that nothing overflows; scales are near one."""
    rng = np.random.default_rng(0)
    return {
        path: np.float32(0.02) * rng.standard_normal(leaf.shape, np.float32)
        + np.float32(path.endswith("scale"))
        for path, leaf in forward.shapes.items()
    }


def random_images(size: int, count: int) -> np.ndarray:
    """u8 `[count, size, size, 3]`."""
    return np.random.default_rng(1).integers(0, 256, (count, size, size, 3), np.uint8)


def see(forward: Forward[Any], params: Any, images: Any) -> jax.Array:
    """The projected patches."""
    return forward.bind(params)(images).patches


def count_flops(forward: Forward[Any], images: np.ndarray) -> float:
    """Operations of the forward pass as XLA counts them, with attention written out."""
    with compiling_for(PORTABLE):
        lowered = jax.jit(functools.partial(see, forward)).lower(dict(forward.shapes), images)
    cost: Any = lowered.cost_analysis()
    return float(cost["flops"])
