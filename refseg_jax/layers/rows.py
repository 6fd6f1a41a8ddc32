"""Rows of pairs: several expressions of one image, several images of one expression."""

import jax
import jax.numpy as jnp


def repeat_rows(x: jax.Array, count: int) -> jax.Array:
    """`[G, ...]` to `[G * count, ...]`, each row `count` times in a row."""
    if count == 1:
        return x
    return jnp.broadcast_to(x[:, None], (x.shape[0], count, *x.shape[1:])).reshape(-1, *x.shape[1:])


def over_images(x: jax.Array, images: int) -> jax.Array:
    """`[B, K, ...]` to `[B * images * K, ...]`: the expressions of an image one after the other."""
    shape = (x.shape[0], images, *x.shape[1:])
    return jnp.broadcast_to(x[:, None], shape).reshape(-1, *x.shape[2:])
