"""Dropout of elements and of residual branches, as functions of an explicit key."""

import jax
import jax.numpy as jnp


def dropout(x: jax.Array, rate: float, key: jax.Array | None) -> jax.Array:
    """Zeroes each element with probability `rate` and scales the rest by `1 / (1 - rate)`.

    Without a key (inference), or if the rate is 0, it returns `x`.
    """
    if key is None or rate == 0.0:
        return x
    keep = jax.random.bernoulli(key, 1.0 - rate, x.shape)
    return jnp.where(keep, x / (1.0 - rate), 0.0).astype(x.dtype)


def drop_path(x: jax.Array, rate: float, key: jax.Array | None) -> jax.Array:
    """Zeroes whole rows of axis 0 with probability `rate`, and scales the rest by `1 / (1 - rate)`.

    This is stochastic depth (Huang et al. 2016) of a residual branch. Without a key (inference), or if
    the rate is 0, it returns `x`.
    """
    if key is None or rate == 0.0:
        return x
    keep = jax.random.bernoulli(key, 1.0 - rate, (x.shape[0], *(1,) * (x.ndim - 1)))
    return jnp.where(keep, x / (1.0 - rate), 0.0).astype(x.dtype)


def split_key(key: jax.Array | None, count: int) -> list[jax.Array | None]:
    """Splits a key into `count` independent ones; without a key, a list of `None`."""
    return [None] * count if key is None else list(jax.random.split(key, count))
