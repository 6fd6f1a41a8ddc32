"""Dropout as a function of an explicit key."""

import jax
import jax.numpy as jnp


def dropout(x: jax.Array, rate: float, key: jax.Array | None) -> jax.Array:
    """Zeroes a share `rate` of the elements and scales the rest by `1 / (1 - rate)`.

    Without a key (inference) or with rate 0 it returns `x`.
    """
    if key is None or rate == 0.0:
        return x
    keep = jax.random.bernoulli(key, 1.0 - rate, x.shape)
    return jnp.where(keep, x / (1.0 - rate), 0.0).astype(x.dtype)


def split_key(key: jax.Array | None, count: int) -> list[jax.Array | None]:
    """`count` independent keys, or `None`s where there is no key."""
    return [None] * count if key is None else list(jax.random.split(key, count))
