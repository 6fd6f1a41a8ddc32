"""The paper's relationship block against its equations, written out in numpy."""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from refseg_jax.decoders.pixel_decoder import PixelFeatures
from refseg_jax.decoders.relationship import (
    Regions,
    Relationship,
    RelationshipConfig,
    difference,
)

CONFIG = RelationshipConfig(width=16, side=3, heads=2)
PAIRS, HEIGHT, WIDTH, LENGTH, TEXT_WIDTH, MASK_WIDTH = 2, 6, 5, 7, 10, 12

#: Of the levels that are not looked at.
SIZES = ((2, 2), (9, 9))


def block(config: RelationshipConfig = CONFIG) -> Relationship:
    module = Relationship(
        config,
        text_width=TEXT_WIDTH,
        mask_width=MASK_WIDTH,
        dtype=jnp.float32,
        rngs=nnx.Rngs(0),
    )
    # Fresh biases are zeros, which would hide a wrong place.
    state = nnx.state(module)
    rng = np.random.default_rng(0)
    nnx.update(module, jax.tree.map(lambda x: x + 0.1 * rng.normal(size=x.shape), state))
    return module


def inputs(seed: int = 1) -> tuple[PixelFeatures, jax.Array, jax.Array]:
    rng = np.random.default_rng(seed)
    image = rng.normal(size=(PAIRS, HEIGHT, WIDTH, CONFIG.width)).astype(np.float32)
    words = rng.normal(size=(PAIRS, LENGTH, TEXT_WIDTH)).astype(np.float32)
    valid = np.arange(LENGTH) < np.array([[LENGTH], [3]])
    coarse, fine = (jnp.asarray(rng.normal(size=(PAIRS, *s, CONFIG.width))) for s in SIZES)
    pixels = PixelFeatures(jnp.zeros(()), (coarse, jnp.asarray(image), fine))
    return pixels, jnp.asarray(words), jnp.asarray(valid)


def linear(layer: Any, x: np.ndarray) -> np.ndarray:
    return x @ np.asarray(layer.kernel[...], np.float64) + np.asarray(layer.bias[...], np.float64)


def gelu(x: np.ndarray) -> np.ndarray:
    return x * 0.5 * (1 + np.vectorize(math.erf)(x / math.sqrt(2)))


def softmax(x: np.ndarray) -> np.ndarray:
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def mlp(module: Any, x: np.ndarray) -> np.ndarray:
    first, second = module.layers
    return linear(second, np.maximum(linear(first, x), 0))


def sines(height: int, width: int, channels: int) -> np.ndarray:
    half = channels // 2
    out = np.zeros((height, width, channels))
    for row in range(height):
        for column in range(width):
            for place, size, offset in ((row, height, 0), (column, width, half)):
                for i in range(half):
                    angle = 2 * math.pi * (place + 1) / (size + 1e-6)
                    angle /= 10000 ** (2 * (i // 2) / half)
                    value = math.cos(angle) if i % 2 else math.sin(angle)
                    out[row, column, offset + i] = value
    return out.reshape(-1, channels)


def self_attention(module: Any, x: np.ndarray, heads: int) -> np.ndarray:
    parts = []
    size = x.shape[-1] // heads
    q, k, v = (linear(layer, x) for layer in (module.query, module.key, module.value))
    for head in range(heads):
        s = slice(head * size, (head + 1) * size)
        parts.append(softmax(q[:, s] @ k[:, s].T / math.sqrt(size)) @ v[:, s])
    return linear(module.out, np.concatenate(parts, -1))


def written_out(module: Any, pixels: PixelFeatures, words: Any, valid: Any) -> list[Regions]:
    results = []
    image = pixels.levels[1]
    for picture, text, real in zip(*(np.asarray(x) for x in (image, words, valid)), strict=True):
        flat = picture.reshape(-1, CONFIG.width).astype(np.float64)
        text = linear(module.words, text[real].astype(np.float64))
        queries = np.asarray(module.queries[...], np.float64)
        keys = gelu(linear(module.image_key, flat + sines(HEIGHT, WIDTH, CONFIG.width)))
        regions = softmax(queries @ keys.T) @ gelu(linear(module.image_value, flat))
        related = regions + self_attention(module.region_attention, regions, CONFIG.heads)
        scores = (
            gelu(linear(module.language_query, regions)) @ gelu(linear(module.language_key, text)).T
        )
        features = mlp(module.fusion, related + softmax(scores) @ text)
        minimap = linear(module.minimap, features)
        absent = mlp(module.presence, features.mean(0))
        logits = minimap[:, 1] - minimap[:, 0]
        weights = 1 / (1 + np.exp(-logits))
        results.append(
            Regions(mlp(module.filter, regions), weights, logits, absent[0] - absent[1])  # pyright: ignore
        )
    return results


def test_it_is_equations_1_to_3():
    module, given = block(), inputs()
    found = module(*given)
    assert found.filters.shape == (PAIRS, 9, MASK_WIDTH)
    for pair, expected in enumerate(written_out(module, *given)):
        for name, value in expected._asdict().items():
            np.testing.assert_allclose(getattr(found, name)[pair], value, rtol=2e-4, atol=2e-5)
        total = sum(w * f for w, f in zip(expected.weights, expected.filters, strict=True))
        np.testing.assert_allclose(found.target_filter()[pair], total, rtol=2e-4, atol=2e-5)


def test_padding_changes_nothing():
    module, (pixels, words, valid) = block(), inputs()
    other = jnp.where(valid[..., None], words, 9.0)
    for a, b in zip(module(pixels, words, valid), module(pixels, other, valid), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize(
    ("fields", "gone"),
    [
        ({"regions": "pool"}, "image_key"),
        ({"region_attention": False}, "region_attention"),
        ({"language_attention": False}, "language_key"),
    ],
)
def test_the_papers_ablations(fields: dict[str, Any], gone: str):
    config = dataclasses.replace(CONFIG, **fields)
    module, given = block(config), inputs()
    assert getattr(module, gone) is None
    found = module(*given)
    assert found.filters.shape == (PAIRS, 9, MASK_WIDTH)
    gradient = nnx.grad(lambda m: _total(m(*given)))(module)
    unused = [
        ".".join(map(str, path))
        for path, leaf in nnx.to_flat_state(gradient)
        if not np.abs(leaf[...]).max() > 0
    ]
    assert unused == []


def _total(regions: Regions) -> jax.Array:
    filters = (regions.target_filter() * jnp.arange(MASK_WIDTH)).sum()
    return filters + regions.minimap_logits.sum() + regions.present_logits.sum()


def test_pooled_regions_are_means_of_cells():
    module = block(dataclasses.replace(CONFIG, regions="pool"))
    image = np.zeros((1, HEIGHT, 6, CONFIG.width), np.float32)
    image[0, 2:4, 4:6] = 1.0
    found = module._collect(jnp.asarray(image))
    changed = np.abs(np.asarray(found) - np.asarray(found)[:, :1]).max((0, 2)) > 0
    assert changed.tolist() == [False] * 5 + [True] + [False] * 3


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"regions": "poll"}, "unknown source of regions 'poll'"),
        ({"heads": 3}, "heads=3 does not divide width=256"),
        ({"side": 0}, "side=0"),
    ],
)
def test_sizes_that_do_not_fit(fields: dict[str, Any], message: str):
    with pytest.raises(ValueError, match=message):
        RelationshipConfig(**fields)


def test_zero_filters_start_with_undecided_masks_and_change_no_other_parameter():
    def fresh(config: RelationshipConfig) -> dict[Any, Any]:
        widths = {"text_width": TEXT_WIDTH, "mask_width": MASK_WIDTH}
        module = Relationship(config, **widths, dtype=jnp.float32, rngs=nnx.Rngs(0))
        return dict(nnx.to_flat_state(nnx.state(module)))

    plain, zero = fresh(CONFIG), fresh(dataclasses.replace(CONFIG, zero_filters=True))
    last = ("filter", "layers", 1, "kernel")
    assert {path for path in plain if (plain[path][...] != zero[path][...]).any()} == {last}
    assert not zero[last][...].any()


def _there(scores: np.ndarray) -> np.ndarray:
    """The class that the public code takes: argmax of the two sigmoids in f32, first if equal."""
    return np.argmax(np.float32(1) / (np.float32(1) + np.exp(-scores)), -1)


def test_the_difference_decides_as_the_argmax_of_the_sigmoids_where_these_differ():
    rng = np.random.default_rng(0)
    scores = rng.uniform(-60, 9, (1000, 2)).astype(np.float32)
    ours = np.asarray(difference(jnp.asarray(scores))) > 0
    np.testing.assert_array_equal(ours, _there(scores) == 1)
    assert 0.4 < ours.mean() < 0.6


@pytest.mark.parametrize(
    ("scores", "there"), [((16.6, 30.0), 1), ((16.7, 30.0), 0), ((10.0, 10.0005), 0)]
)
def test_the_difference_decides_where_the_sigmoids_of_the_public_code_are_equal(
    scores: tuple[float, float], there: int
):
    pair = np.array(scores, np.float32)
    assert _there(pair) == there
    assert float(difference(jnp.asarray(pair))) > 0
