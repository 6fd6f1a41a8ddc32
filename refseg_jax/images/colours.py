"""Normalisation of colours for the published towers; needs only JAX, as models do."""

import jax
import jax.numpy as jnp
import numpy as np

#: Mean and standard deviation of RGB (in 0..1) with which CLIP and ImageNet models are trained.
CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


def normalise(
    image: jax.Array, mean: tuple[float, float, float], std: tuple[float, float, float]
) -> jax.Array:
    """`(image / 255 - mean) / std` on the device: u8 `[..., 3]` to f32 `[..., 3]`."""
    scale = 1.0 / (255.0 * np.asarray(std, np.float32))
    shift = np.asarray(mean, np.float32) / np.asarray(std, np.float32)
    return jnp.asarray(image).astype(jnp.float32) * scale - shift
