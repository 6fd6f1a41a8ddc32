"""Repeats rows to form pairs of images and expressions."""

import jax
import jax.numpy as jnp


def repeat_rows(x: jax.Array, count: int) -> jax.Array:
    """Repeats each row `count` times in succession: `[G, ...]` to `[G * count, ...]`."""
    if count == 1:
        return x
    return jnp.broadcast_to(x[:, None], (x.shape[0], count, *x.shape[1:])).reshape(-1, *x.shape[1:])


def over_images(x: jax.Array, images: int) -> jax.Array:
    """Repeats the K expressions of a row for each of its images: `[B, K, ...]` to `[B * N * K, ...]`.

    N is `images`; all K expressions of an image come before those of the next.
    """
    shape = (x.shape[0], images, *x.shape[1:])
    return jnp.broadcast_to(x[:, None], shape).reshape(-1, *x.shape[2:])
