"""Pre-Fusion and both paths of UniLSeg's public form, written out in numpy one pair at a time."""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from refseg_jax.decoders.post_norm import PostNormLayer
from refseg_jax.decoders.pre_fusion import PreFusion
from refseg_jax.decoders.query_decoder import QueryDecoder, QueryDecoderConfig
from refseg_jax.decoders.shrunk_pyramid import PyramidConfig, ShrunkLayer, ShrunkPyramid

HEADS, WIDTH, MASK_WIDTH, WORD_WIDTH, SENTENCE_WIDTH, LENGTH = 2, 16, 8, 16, 10, 5
#: Height, width and channels of the maps, the finest first.
SHAPES = ((8, 12, 8), (4, 6, 12), (2, 3, 16))
WIDTHS = [channels for *_, channels in SHAPES]
PYRAMID = PyramidConfig(WIDTH, MASK_WIDTH, HEADS, hidden=24, dropout=0.0, norm="group")
QUERIES = QueryDecoderConfig(MASK_WIDTH, 2, HEADS, hidden=24, dropout=0.0, norm="group")
#: Two images, each with two expressions.
IMAGES, PAIRS = 2, 4


def stirred(module: Any) -> Any:
    """The module with random parameters: fresh biases are zeros, which would hide a wrong place."""
    rng = np.random.default_rng(0)
    state = nnx.state(module, nnx.Param)
    nnx.update(module, jax.tree.map(lambda x: x + 0.2 * rng.normal(size=x.shape), state))
    return module


def rngs() -> dict[str, Any]:
    return {"dtype": jnp.float32, "rngs": nnx.Rngs(0)}


def fusion() -> PreFusion:
    return stirred(PreFusion(WIDTHS, WORD_WIDTH, HEADS, remat=False, **rngs()))


def pyramid(**changes: Any) -> ShrunkPyramid:
    return stirred(ShrunkPyramid(dataclasses.replace(PYRAMID, **changes), WIDTHS, **rngs()))


def decoder(**changes: Any) -> QueryDecoder:
    sizes = {"map_width": WIDTHS[-1], "sentence_width": SENTENCE_WIDTH}
    return stirred(QueryDecoder(dataclasses.replace(QUERIES, **changes), **sizes, **rngs()))


def maps(rows: int) -> tuple[jax.Array, ...]:
    rng = np.random.default_rng(1)
    return tuple(jnp.asarray(rng.normal(size=(rows, *s)), jnp.float32) for s in SHAPES)


def words() -> tuple[jax.Array, jax.Array]:
    drawn = np.random.default_rng(2).normal(size=(PAIRS, LENGTH, WORD_WIDTH))
    valid = np.arange(LENGTH) < np.array([[LENGTH], [3], [4], [2]])
    return jnp.asarray(drawn, jnp.float32), jnp.asarray(valid)


def sentences() -> jax.Array:
    drawn = np.random.default_rng(3).normal(size=(PAIRS, SENTENCE_WIDTH))
    return jnp.asarray(drawn, jnp.float32)


# The twin, in f64. Nothing of padding enters it: it is given the valid words alone.


def weights(variable: Any) -> np.ndarray:
    return np.asarray(variable[...], np.float64)


def linear(layer: Any, x: np.ndarray) -> np.ndarray:
    y = x @ weights(layer.kernel)
    return y if layer.bias is None else y + weights(layer.bias)


def layer_norm(norm: Any, x: np.ndarray) -> np.ndarray:
    y = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-5)
    return y * weights(norm.scale) + weights(norm.bias)


def attend(module: Any, query: np.ndarray, key: np.ndarray, value: np.ndarray) -> np.ndarray:
    q, k, v = linear(module.query, query), linear(module.key, key), linear(module.value, value)
    size = q.shape[-1] // HEADS
    mixed = []
    for row in q:
        for s in (slice(h * size, (h + 1) * size) for h in range(HEADS)):
            scores = np.exp(k[:, s] @ row[s] / math.sqrt(size))
            mixed.append(scores / scores.sum() @ v[:, s])
    return linear(module.out, np.reshape(mixed, q.shape))


def mlp(layer: Any, x: np.ndarray) -> np.ndarray:
    y = x + linear(layer.mlp.down, np.maximum(linear(layer.mlp.up, x), 0))
    return layer_norm(layer.mlp_norm, y)


def turn(share: float, channels: int) -> list[float]:
    """The encoding of a share of a full turn."""
    wave = (math.sin, math.cos)
    return [
        wave[i % 2](2 * math.pi * share / 10000 ** ((i - i % 2) / channels))
        for i in range(channels)
    ]


def centres(height: int, width: int, channels: int) -> np.ndarray:
    """Positions at the centres of cells, rows in the first half of the channels."""
    half = channels // 2
    return np.array(
        [
            [turn((y + 0.5) / height, half) + turn((x + 0.5) / width, half) for x in range(width)]
            for y in range(height)
        ]
    )


def resized(x: np.ndarray, height: int, width: int) -> np.ndarray:
    """Bilinear without antialiasing: half-pixel centres, edges clamped."""
    found = np.zeros((height, width, x.shape[-1]))
    for row, column in np.ndindex(height, width):
        for y, share_y in neighbours(row, height, x.shape[0]):
            for c, share_x in neighbours(column, width, x.shape[1]):
                found[row, column] += share_y * share_x * x[y, c]
    return found


def neighbours(pixel: int, pixels: int, cells: int) -> list[tuple[int, float]]:
    place = min(max((pixel + 0.5) * cells / pixels - 0.5, 0.0), cells - 1.0)
    low = min(int(place), cells - 1)
    return [(low, 1.0 - (place - low)), (min(low + 1, cells - 1), place - low)]


def unit(module: Any, x: np.ndarray) -> np.ndarray:
    """Convolution without bias, GroupNorm and ReLU."""
    kernel = weights(module.convolution.kernel)
    if kernel.ndim == 4:
        height, width = x.shape[:2]
        padded = np.pad(x, ((1, 1), (1, 1), (0, 0)))
        taps = [
            padded[dy : dy + height, dx : dx + width] @ kernel[dy, dx]
            for dy, dx in np.ndindex(3, 3)
        ]
        y = np.sum(taps, 0)
    else:
        y = x @ kernel
    groups = y.reshape(-1, module.norm.groups, y.shape[-1] // module.norm.groups)
    mean, variance = groups.mean((0, 2), keepdims=True), groups.var((0, 2), keepdims=True)
    y = ((groups - mean) / np.sqrt(variance + 1e-5)).reshape(y.shape)
    return np.maximum(y * weights(module.norm.scale) + weights(module.norm.bias), 0.0)


def fused(module: PreFusion, level: int, x: np.ndarray, told: np.ndarray) -> np.ndarray:
    memory = linear(module.words[level], told)
    query = (x + centres(*x.shape)).reshape(-1, x.shape[-1])
    return x + attend(module.attentions[level], query, memory, memory).reshape(x.shape)


def shrunk(layer: ShrunkLayer, x: np.ndarray, told: np.ndarray, ratio: int) -> np.ndarray:
    height, width, channels = x.shape
    small = height // ratio, width // ratio
    places = centres(height, width, channels)
    placed = np.concatenate([resized(x + places, *small).reshape(-1, channels), told])
    plain = np.concatenate([resized(x, *small).reshape(-1, channels), told])
    mixed = attend(layer.self_attention, placed, placed, plain)[: small[0] * small[1]]
    mixed = resized(mixed.reshape(*small, channels), height, width)
    x = layer_norm(layer.self_attention_norm, x + mixed)
    # A word's place is relative to the length with its padding.
    lengths = np.array([turn((p + 1) / LENGTH, channels) for p in range(len(told))])
    query = (x + places).reshape(-1, channels)
    mixed = attend(layer.cross_attention, query, told + lengths, told).reshape(x.shape)
    return mlp(layer, layer_norm(layer.cross_attention_norm, x + mixed))


def features(module: ShrunkPyramid, levels: list[np.ndarray], told: np.ndarray) -> np.ndarray:
    y = None
    for level in (2, 1, 0):
        x = unit(module.adapters[level], levels[level])
        if module.layers:
            x = shrunk(module.layers[level], x, told, 2 ** (2 - level))  # pyright: ignore
        x = x if y is None else x + resized(y, *x.shape[:2])
        y = unit(module.convolutions[level], x)
    assert y is not None
    return unit(module.masks, y)


def queries(module: QueryDecoder, seen: np.ndarray, sentence: np.ndarray) -> np.ndarray:
    visual, place = unit(module.visual, seen), unit(module.text, sentence[None])
    memory = visual.reshape(-1, MASK_WIDTH)
    placed = memory + centres(*visual.shape).reshape(-1, MASK_WIDTH)
    x, found = np.zeros((1, MASK_WIDTH)), []
    for layer in module.layers:
        mixed: Any = attend(layer.self_attention, x + place, x + place, x)  # pyright: ignore
        x = layer_norm(layer.self_attention_norm, x + mixed)  # pyright: ignore
        mixed = attend(layer.cross_attention, x + place, placed, memory)  # pyright: ignore
        x = mlp(layer, layer_norm(layer.cross_attention_norm, x + mixed))  # pyright: ignore
        found.append(layer_norm(module.norm, x)[0])
    return np.stack(found)


def close(found: Any, expected: Any) -> None:
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)


# The modules against it.


def test_pre_fusion_adds_what_cells_gather_from_the_words() -> None:
    module, seen, (told, valid) = fusion(), maps(IMAGES), words()
    found = module(seen, told, valid)
    for pair in range(PAIRS):
        own = np.asarray(told[pair], np.float64)[valid[pair]]
        for level, x in enumerate(seen):
            image = np.asarray(x[pair // 2], np.float64)
            close(found[level][pair], fused(module, level, image, own))


@pytest.mark.parametrize("ratio", [1, 2, 4])
def test_shrunk_attention_mixes_cells_and_words_and_keeps_the_cells(ratio: int) -> None:
    sizes = (WIDTH, HEADS, 24)
    layer = stirred(ShrunkLayer(*sizes, dropout=0.0, **rngs()))
    told, valid = words()
    drawn = np.random.default_rng(4).normal(size=(PAIRS, 8, 12, WIDTH))
    found = layer(jnp.asarray(drawn, jnp.float32), told, valid, ratio=ratio)
    for pair in range(PAIRS):
        own = np.asarray(told[pair], np.float64)[valid[pair]]
        close(found[pair], shrunk(layer, drawn[pair], own, ratio))


@pytest.mark.parametrize("attend", [True, False])
def test_the_pyramid_adds_coarse_levels_to_fine_ones(attend: bool) -> None:
    module, seen, (told, valid) = pyramid(attend=attend), maps(PAIRS), words()
    found, read = module(seen, told, valid)
    assert all(a is b for a, b in zip(read, seen, strict=True))
    assert found.shape == (PAIRS, *SHAPES[0][:2], MASK_WIDTH) and float(found.min()) == 0.0
    for pair in (1, 2):
        own = np.asarray(told[pair], np.float64)[valid[pair]]
        image = [np.asarray(x[pair], np.float64) for x in seen]
        close(found[pair], features(module, image, own))


def test_the_query_reads_the_map_at_the_place_of_the_sentence() -> None:
    module, seen = decoder(), maps(PAIRS)[-1]
    found = module(seen, sentences())
    assert found.shape == (2, PAIRS, MASK_WIDTH)
    for pair in range(PAIRS):
        image, sentence = (np.asarray(x[pair], np.float64) for x in (seen, sentences()))
        close(found[:, pair], queries(module, image, sentence))


def test_padding_of_words_changes_nothing() -> None:
    see, fuse, seen, (told, valid) = pyramid(), fusion(), maps(PAIRS), words()
    other = jnp.where(valid[..., None], told, 9.0)
    np.testing.assert_array_equal(see(seen, told, valid).masks, see(seen, other, valid).masks)
    for a, b in zip(fuse(seen, told, valid), fuse(seen, other, valid), strict=True):
        np.testing.assert_array_equal(a, b)


def test_pairs_that_do_not_count_leave_the_others_and_the_statistics_alone() -> None:
    (told, valid), counted = words(), jnp.asarray([True, True, False, True])
    found: list[list[Any]] = [[], []]
    for number, value in enumerate((0.0, 50.0)):
        see, speak = pyramid(norm="batch"), decoder(norm="batch")
        given = tuple(jnp.where(counted[:, None, None, None], x, value) for x in maps(PAIRS))
        features = see(given, told, valid, counted, training=True).masks
        queries = speak(given[-1], sentences(), counted, training=True)
        means = [see.masks.norm.mean, speak.visual.norm.mean, speak.text.norm.mean]  # pyright: ignore
        found[number] = [features[counted], queries[:, counted], *(m[...] for m in means)]
        assert all(np.abs(m[...]).max() > 0 for m in means)
    for a, b in zip(*found, strict=True):
        np.testing.assert_array_equal(a, b)


def test_dropout_needs_a_key() -> None:
    seen, (told, valid), key = maps(PAIRS), words(), jax.random.key(0)
    see, speak = pyramid(dropout=0.5), decoder(dropout=0.5)
    plain = see(seen, told, valid).masks
    np.testing.assert_array_equal(plain, pyramid()(seen, told, valid).masks)
    assert not np.allclose(see(seen, told, valid, key=key).masks, plain)
    plain = speak(seen[-1], sentences())
    np.testing.assert_array_equal(plain, decoder()(seen[-1], sentences()))
    assert not np.allclose(speak(seen[-1], sentences(), key=key), plain)


def test_remat_changes_no_number() -> None:
    seen, (told, valid) = maps(PAIRS), words()

    def loss(module: ShrunkPyramid) -> jax.Array:
        return jnp.sum(jnp.square(module(seen, told, valid).masks))

    plain, again = (nnx.jit(nnx.grad(loss))(pyramid(remat=remat)) for remat in (False, True))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4), plain, again)


def test_a_layer_leaves_the_padding_of_its_memory_alone() -> None:
    layer = stirred(PostNormLayer(WIDTH, HEADS, 24, dropout=0.0, **rngs()))
    told, valid = words()
    x, places = jnp.zeros((PAIRS, 1, WIDTH)), jnp.ones((1, WIDTH))
    call = lambda memory: layer(x, places, memory, jnp.ones((LENGTH, WIDTH)), valid)  # noqa: E731
    np.testing.assert_array_equal(call(told), call(jnp.where(valid[..., None], told, 9.0)))
    assert not np.allclose(call(told), call(told + 1.0))
