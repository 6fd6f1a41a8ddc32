"""GRSer's Triphasic Query Module (Wu et al. 2023, section 3.2): words and images ask where a target is.

Shapes have P for the cells `h * w` of a feature map, and I for the images of a row in their role as
experts (as many as N). All cosines are f32 in [-1, 1]; a zero vector has a cosine of 0 with everything.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from refseg_jax.layers.linear import Linear

#: Added to squared norms before the root, so that zero vectors have a gradient.
_TINY = 1e-12


class Queried(NamedTuple):
    """What the words find in each image.

    Attributes:
        heatmap: f32 `[B, N, K, P]`, the language heatmap M^l of equation 1.
        prototypes: f32 `[B, N, K, C]`, the prototypes p of equation 2.
    """

    heatmap: jax.Array
    prototypes: jax.Array


def unit(x: jax.Array) -> jax.Array:
    """Vectors `[..., C]` at length 1, f32; zero vectors stay zero."""
    wide = x.astype(jnp.float32)
    return wide * jax.lax.rsqrt(jnp.sum(jnp.square(wide), -1, keepdims=True) + _TINY)


def distance(a: jax.Array, b: jax.Array) -> jax.Array:
    """Euclidean distances of vectors `[..., C]`, f32 `[...]`, at least 1e-6."""
    gap = a.astype(jnp.float32) - b.astype(jnp.float32)
    return jnp.sqrt(jnp.sum(jnp.square(gap), -1) + _TINY)


def language_heatmaps(visual: jax.Array, language: jax.Array) -> jax.Array:
    """Equation 1: the cosine of each cell and the expression.

    Args:
        visual: V, `[B, N, K, P, C]` of any float type.
        language: L', `[B, K, C]`.

    Returns:
        M^l, f32 `[B, N, K, P]`.
    """
    return _cosines("bnkpc,bkc->bnkp", visual, language)


def pool_prototypes(visual: jax.Array, heatmap: jax.Array) -> jax.Array:
    """Equation 2: the average over all cells of the features times the heatmap.

    The paper calls it masked average pooling, but its formula does not divide by the sum of the mask,
    which may be zero or negative here. Cosines do not depend on the factor.

    Args:
        visual: V, `[B, N, K, P, C]` of any float type.
        heatmap: M^l, f32 `[B, N, K, P]`.

    Returns:
        p, f32 `[B, N, K, C]`.
    """
    summed = jnp.einsum(
        "bnkp,bnkpc->bnkc",
        heatmap.astype(visual.dtype),
        visual,
        preferred_element_type=jnp.float32,
    )
    return summed / visual.shape[-2]


def vision_heatmaps(visual: jax.Array, prototypes: jax.Array) -> jax.Array:
    """Equation 3: the cosine of each cell of each image and the prototypes of all images of its row.

    Rearranging the prototypes rearranges the heatmaps, see `heatmap_hierarchy`.

    Args:
        visual: V, `[B, N, K, P, C]` of any float type.
        prototypes: p, f32 `[B, I, K, C]`.

    Returns:
        M^v, f32 `[B, N, K, P, I]`.
    """
    return _cosines("bnkpc,bikc->bnkpi", visual, prototypes)


def _cosines(formula: str, visual: jax.Array, queries: jax.Array) -> jax.Array:
    """Products of cells and queries of length 1; only the queries and the products are rescaled."""
    asked = unit(queries).astype(visual.dtype)
    products = jnp.einsum(formula, visual, asked, preferred_element_type=jnp.float32)
    squares = jnp.einsum("...c,...c->...", visual, visual, preferred_element_type=jnp.float32)
    rates = jax.lax.rsqrt(squares + _TINY)
    return products * rates.reshape(*rates.shape, *(1,) * (products.ndim - rates.ndim))


class TriphasicQuery(nnx.Module):
    """The map w_l from the space of the words to that of the features, and equations 1 and 2."""

    def __init__(self, text_width: int, width: int, *, dtype: Any, rngs: nnx.Rngs):
        self.language = Linear(text_width, width, dtype=dtype, rngs=rngs)

    def embed(self, language: jax.Array) -> jax.Array:
        """L' = w_l(L): `[..., text_width]` to f32 `[..., width]`."""
        return self.language(language).astype(jnp.float32)

    def __call__(self, visual: jax.Array, language: jax.Array) -> Queried:
        """Asks each image for an expression.

        Args:
            visual: V, `[B, N, K, P, width]`.
            language: L', f32 `[B, K, width]`, from `embed`.
        """
        heatmap = language_heatmaps(visual, language)
        return Queried(heatmap, pool_prototypes(visual, heatmap))
