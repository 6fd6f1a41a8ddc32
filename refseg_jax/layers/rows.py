"""Rows that several expressions of one image share."""

import jax
import jax.numpy as jnp


def repeat_rows(x: jax.Array, count: int) -> jax.Array:
    """`[G, ...]` to `[G * count, ...]`, each row `count` times in a row."""
    if count == 1:
        return x
    return jnp.broadcast_to(x[:, None], (x.shape[0], count, *x.shape[1:])).reshape(-1, *x.shape[1:])
