"""Equations 1 to 3 of GRSer against loops in numpy, written from the paper."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from refseg_jax.decoders.triphasic_query import (
    distance,
    language_heatmaps,
    pool_prototypes,
    unit,
    vision_heatmaps,
)

ROWS, IMAGES, EXPRESSIONS, CELLS, WIDTH = 2, 3, 2, 5, 4


def cosine(a: np.ndarray, b: np.ndarray) -> float:
    return float(a @ b / (np.linalg.norm(a) * np.linalg.norm(b)))


def case(images: int = IMAGES) -> tuple[np.ndarray, np.ndarray]:
    """V and L', f64."""
    rng = np.random.default_rng(images)
    visual = rng.normal(0, 3, (ROWS, images, EXPRESSIONS, CELLS, WIDTH))
    return visual, rng.normal(0, 2, (ROWS, EXPRESSIONS, WIDTH))


def slow_language(visual: np.ndarray, language: np.ndarray) -> np.ndarray:
    found = np.zeros(visual.shape[:-1])
    for b, n, k, p in np.ndindex(found.shape):
        found[b, n, k, p] = cosine(visual[b, n, k, p], language[b, k])
    return found


def slow_prototypes(visual: np.ndarray, heatmap: np.ndarray) -> np.ndarray:
    found = np.zeros((*visual.shape[:3], WIDTH))
    for b, n, k, p in np.ndindex(heatmap.shape):
        found[b, n, k] += heatmap[b, n, k, p] * visual[b, n, k, p] / CELLS
    return found


def slow_vision(visual: np.ndarray, prototypes: np.ndarray) -> np.ndarray:
    found = np.zeros((*visual.shape[:4], prototypes.shape[1]))
    for b, n, k, p, i in np.ndindex(found.shape):
        found[b, n, k, p, i] = cosine(visual[b, n, k, p], prototypes[b, i, k])
    return found


@pytest.mark.parametrize("images", [1, 3])
def test_the_three_equations(images: int) -> None:
    visual, language = case(images)
    v, asked = jnp.asarray(visual, jnp.float32), jnp.asarray(language, jnp.float32)
    heatmap = slow_language(visual, language)
    np.testing.assert_allclose(language_heatmaps(v, asked), heatmap, atol=1e-6)
    prototypes = slow_prototypes(visual, heatmap)
    pooled = pool_prototypes(v, jnp.asarray(heatmap, jnp.float32))
    np.testing.assert_allclose(pooled, prototypes, atol=1e-6)
    seen = vision_heatmaps(v, jnp.asarray(prototypes, jnp.float32))
    np.testing.assert_allclose(seen, slow_vision(visual, prototypes), atol=1e-6)


def test_experts_may_be_more_or_fewer_than_images() -> None:
    visual, _ = case()
    prototypes = np.random.default_rng(7).normal(size=(ROWS, 8, EXPRESSIONS, WIDTH))
    seen = vision_heatmaps(*(jnp.asarray(x, jnp.float32) for x in (visual, prototypes)))
    np.testing.assert_allclose(seen, slow_vision(visual, prototypes), atol=1e-6)


def test_vectors_of_zeros_have_finite_gradients() -> None:
    """What a blank image or a blank text may give."""

    def total(v: jax.Array, asked: jax.Array) -> jax.Array:
        heatmap = language_heatmaps(v, asked)
        seen = vision_heatmaps(v, pool_prototypes(v, heatmap))
        return heatmap.sum() + seen.sum() + distance(unit(v), unit(asked[:, None, :, None])).sum()

    shapes = (ROWS, IMAGES, EXPRESSIONS, CELLS, WIDTH), (ROWS, EXPRESSIONS, WIDTH)
    value, gradients = jax.value_and_grad(total, (0, 1))(*map(jnp.zeros, shapes))
    assert abs(value) < 1e-3
    assert all(np.isfinite(x).all() for x in gradients)


def test_half_precision_multiplies_in_it_and_returns_f32() -> None:
    visual, language = (jnp.asarray(x, jnp.bfloat16) for x in case())
    heatmap = language_heatmaps(visual, language)
    assert heatmap.dtype == pool_prototypes(visual, heatmap).dtype == jnp.float32
    wide = language_heatmaps(visual.astype(jnp.float32), language.astype(jnp.float32))
    np.testing.assert_allclose(heatmap, wide, atol=0.02)


def test_distances_are_euclidean() -> None:
    a, b = (np.random.default_rng(seed).normal(size=(3, 2, 6)) for seed in (0, 1))
    found = distance(jnp.asarray(a, jnp.float32), jnp.asarray(b, jnp.float32))
    np.testing.assert_allclose(found, np.sqrt(((a - b) ** 2).sum(-1)), rtol=1e-6)
    lengths = np.linalg.norm(unit(jnp.asarray(a, jnp.float32)), axis=-1)
    np.testing.assert_allclose(lengths, 1.0, rtol=1e-6)
