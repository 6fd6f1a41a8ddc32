"""Pre-Fusion and both paths of the UniLSeg paper against its equations, written out in numpy."""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from refseg_jax.decoders.paper_paths import MultiModalPyramid, PathConfig, SymmetricTransformer
from refseg_jax.decoders.word_activation import WordActivations

HEADS, WIDTH, MASK_WIDTH, WORD_WIDTH, SENTENCE_WIDTH, LENGTH = 2, 16, 24, 10, 14, 6
#: Height, width and channels of the maps, the finest first.
SHAPES = ((8, 6, 8), (4, 3, 12), (2, 2, 16))
WIDTHS = [channels for *_, channels in SHAPES]
CONFIG = PathConfig(
    width=WIDTH,
    mask_width=MASK_WIDTH,
    heads=HEADS,
    hidden=24,
    layers=2,
    dropout=0.0,
    norm="group",
)
#: Two images, each with two expressions, the second of three words.
IMAGES, PAIRS = 2, 4


def stirred(module: Any) -> Any:
    """The module with random parameters: fresh biases are zeros, which would hide a wrong place."""
    rng = np.random.default_rng(0)
    state = nnx.state(module, nnx.Param)
    nnx.update(module, jax.tree.map(lambda x: x + 0.2 * rng.normal(size=x.shape), state))
    return module


def fusion(residual: bool = False) -> WordActivations:
    return stirred(
        WordActivations(
            WIDTHS, WORD_WIDTH, HEADS, residual=residual, dtype=jnp.float32, rngs=nnx.Rngs(0)
        )
    )


def vision(**changes: Any) -> MultiModalPyramid:
    config = dataclasses.replace(CONFIG, **changes)
    return stirred(
        MultiModalPyramid(config, WIDTHS, WORD_WIDTH, dtype=jnp.float32, rngs=nnx.Rngs(0))
    )


def language(**changes: Any) -> SymmetricTransformer:
    config = dataclasses.replace(CONFIG, **changes)
    return stirred(
        SymmetricTransformer(
            config, WIDTHS, WORD_WIDTH, SENTENCE_WIDTH, dtype=jnp.float32, rngs=nnx.Rngs(0)
        )
    )


def image_maps(rows: int = IMAGES) -> Any:
    rng = np.random.default_rng(1)
    return tuple(rng.normal(size=(rows, *shape)).astype(np.float32) for shape in SHAPES)


def words_of_pairs() -> Any:
    words = np.random.default_rng(2).normal(size=(PAIRS, LENGTH, WORD_WIDTH)).astype(np.float32)
    valid = np.arange(LENGTH) < np.array([[LENGTH], [3], [5], [2]])
    return words, valid


def sentences() -> Any:
    return np.random.default_rng(3).normal(size=(PAIRS, SENTENCE_WIDTH)).astype(np.float32)


# The twin, in f64, for one pair at a time.


def weights(variable: Any) -> np.ndarray:
    return np.asarray(variable[...], np.float64)


def linear(layer: Any, x: np.ndarray) -> np.ndarray:
    y = x @ weights(layer.kernel)
    return y if layer.bias is None else y + weights(layer.bias)


def layer_norm(norm: Any, x: np.ndarray) -> np.ndarray:
    y = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-5)
    return y * weights(norm.scale) + weights(norm.bias)


def softmax(x: np.ndarray) -> np.ndarray:
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def attend(module: Any, query: np.ndarray, key: np.ndarray, value: np.ndarray) -> np.ndarray:
    q, k, v = linear(module.query, query), linear(module.key, key), linear(module.value, value)
    size = q.shape[-1] // HEADS
    parts = []
    for head in range(HEADS):
        s = slice(head * size, (head + 1) * size)
        parts.append(softmax(q[:, s] @ k[:, s].T / math.sqrt(size)) @ v[:, s])
    return linear(module.out, np.concatenate(parts, -1))


def mlp(module: Any, x: np.ndarray) -> np.ndarray:
    return linear(module.down, np.maximum(linear(module.up, x), 0))


def sines(height: int, width: int, channels: int) -> np.ndarray:
    half = channels // 2
    out = np.zeros((height, width, channels))
    for row, column in np.ndindex(height, width):
        for place, size, offset in ((row, height, 0), (column, width, half)):
            for i in range(half):
                angle = 2 * math.pi * (place + 1) / (size + 1e-6) / 10000 ** (2 * (i // 2) / half)
                out[row, column, offset + i] = math.cos(angle) if i % 2 else math.sin(angle)
    return out.reshape(-1, channels)


def convolve(x: np.ndarray, kernel: np.ndarray) -> Any:
    height, width, _ = x.shape
    padded = np.pad(x, ((1, 1), (1, 1), (0, 0)))
    return sum(
        padded[dy : dy + height, dx : dx + width] @ kernel[dy, dx]
        for dy in range(3)
        for dx in range(3)
    )


def group_norm(norm: Any, x: np.ndarray) -> np.ndarray:
    height, width, channels = x.shape
    grouped = x.reshape(height * width, norm.groups, -1)
    centred = grouped - grouped.mean((0, 2), keepdims=True)
    y = centred / np.sqrt(grouped.var((0, 2), keepdims=True) + 1e-5)
    return y.reshape(height, width, channels) * weights(norm.scale) + weights(norm.bias)


def enlarged(x: np.ndarray) -> np.ndarray:
    """Twice the size: bilinear, half-pixel centres, edges clamped."""

    def blend(cells: int) -> np.ndarray:
        out = np.zeros((2 * cells, cells))
        for pixel in range(2 * cells):
            place = min(max((pixel + 0.5) / 2 - 0.5, 0.0), cells - 1.0)
            low = int(place)
            out[pixel, low] += 1 - (place - low)
            if place > low:
                out[pixel, low + 1] += place - low
        return out

    return np.einsum("yi,xj,ijc->yxc", blend(x.shape[0]), blend(x.shape[1]), x)


def equation_1(level: Any, image: np.ndarray, words: np.ndarray) -> np.ndarray:
    cells = image.reshape(-1, image.shape[-1])
    memory = linear(level.words, words)
    return attend(level.attention, cells, memory, memory).reshape(image.shape)


def equations_2_to_5(layer: Any, x: np.ndarray, places: np.ndarray, words: np.ndarray):
    f_m = np.concatenate([x + places, words])
    f_b = attend(layer.self_attention, f_m, f_m, f_m)[: len(x)]
    f_b = layer_norm(layer.self_attention_norm, f_b) + x
    told = attend(layer.cross_attention, f_b, words, words)
    f_b = layer_norm(layer.cross_attention_norm, told) + f_b
    return layer_norm(layer.mlp_norm, mlp(layer.mlp, f_b)) + f_b


def vision_written_out(path: Any, maps: list[np.ndarray], words: np.ndarray) -> np.ndarray:
    levels = [linear(layer, x) for layer, x in zip(path.maps, maps, strict=True)]
    for number, layers in enumerate(path.levels, 1):
        shape = levels[number].shape
        x = levels[number].reshape(-1, WIDTH)
        for layer in layers:
            x = equations_2_to_5(layer, x, sines(*shape), linear(path.words, words))
        levels[number] = x.reshape(shape)
    *finer, joined = levels
    steps = zip(path.pyramid.fine, path.pyramid.coarse, path.pyramid.norms, strict=True)
    for (fine, coarse, norm), level in zip(steps, finer[::-1], strict=True):
        height, width = level.shape[:2]
        wide = convolve(enlarged(joined), weights(coarse.kernel))[:height, :width]
        joined = np.maximum(group_norm(norm, convolve(level, weights(fine.kernel)) + wide), 0)
    return joined


def language_written_out(
    path: Any, maps: list[np.ndarray], words: np.ndarray, sentence: np.ndarray
) -> np.ndarray:
    levels = [linear(layer, x) for layer, x in zip(path.maps, maps[1:], strict=True)]
    places = np.concatenate([sines(*x.shape) for x in levels])
    image = np.concatenate([x.reshape(-1, WIDTH) for x in levels])
    s = linear(path.sentence, sentence)[None]
    initial = np.concatenate([s, linear(path.words, words)])
    queries = []
    for layer in path.layers:
        seen = attend(layer.cross_attention, s, image + places, image)
        s = layer_norm(layer.cross_attention_norm, seen) + s
        joined = np.concatenate([s, initial])
        mixed = attend(layer.self_attention, joined, joined, joined)[:1]
        s = layer_norm(layer.self_attention_norm, mixed) + s
        s = layer_norm(layer.mlp_norm, mlp(layer.mlp, s)) + s
        queries.append(linear(path.query, s[0]))
    return np.stack(queries)


# The modules against it.


@pytest.mark.parametrize("residual", [False, True])
def test_pre_fusion_is_equation_1(residual: bool) -> None:
    module, maps, (words, valid) = fusion(residual), image_maps(), words_of_pairs()
    found = module(maps, words, valid)
    assert found[0] is maps[0]
    for pair in range(PAIRS):
        image = [x[pair // 2] for x in maps]
        for level, x, y in zip(module.levels, image[1:], found[1:], strict=True):
            expected = equation_1(level, x.astype(np.float64), words[pair, valid[pair]])
            expected = expected + x if residual else expected
            np.testing.assert_allclose(y[pair], expected, rtol=1e-4, atol=1e-5)


def test_the_vision_path_is_equations_2_to_5_and_a_pyramid() -> None:
    module, maps, (words, valid) = vision(), image_maps(), words_of_pairs()
    found, read = module(maps, words, valid)
    assert all(a is b for a, b in zip(read, maps, strict=True))
    assert found.shape == (PAIRS, *SHAPES[0][:2], MASK_WIDTH)
    for pair in range(PAIRS):
        image = [x[pair // 2].astype(np.float64) for x in maps]
        expected = vision_written_out(module, image, words[pair, valid[pair]])
        np.testing.assert_allclose(found[pair], expected, rtol=1e-4, atol=1e-4)


def test_the_language_path_looks_at_the_image_and_then_at_the_initial_prompt() -> None:
    module, maps, (words, valid) = language(), image_maps(), words_of_pairs()
    found = module(maps, words, valid, sentences())
    assert found.shape == (2, PAIRS, MASK_WIDTH)
    for pair in range(PAIRS):
        image = [x[pair // 2].astype(np.float64) for x in maps]
        expected = language_written_out(module, image, words[pair, valid[pair]], sentences()[pair])
        np.testing.assert_allclose(found[:, pair], expected, rtol=1e-4, atol=1e-5)


def _paths() -> dict[str, Callable[..., jax.Array]]:
    see, speak = vision(), language()
    return {
        "vision": lambda maps, words, valid: see(maps, words, valid).masks,
        "language": lambda maps, words, valid: jnp.moveaxis(
            speak(maps, words, valid, sentences()), 1, 0
        ),
    }


@pytest.mark.parametrize("name", ["vision", "language"])
def test_maps_of_images_are_those_of_their_pairs(name: str) -> None:
    call, maps, (words, valid) = _paths()[name], image_maps(), words_of_pairs()
    of_pairs = tuple(np.repeat(x, 2, axis=0) for x in maps)
    found, expected = (call(given, words, valid) for given in (maps, of_pairs))
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ["vision", "language"])
def test_padding_of_words_changes_nothing(name: str) -> None:
    call, maps, (words, valid) = _paths()[name], image_maps(), words_of_pairs()
    other = np.where(valid[..., None], words, 9.0).astype(np.float32)
    np.testing.assert_array_equal(call(maps, words, valid), call(maps, other, valid))


def test_without_layers_the_vision_path_is_a_pyramid_that_reads_no_words() -> None:
    module, maps, (words, valid) = vision(layers=0), image_maps(), words_of_pairs()
    assert module.words is None
    found = module(maps, words, valid).masks
    np.testing.assert_array_equal(found, module(maps, words + 1, valid).masks)
    expected = vision_written_out(module, [x[1].astype(np.float64) for x in maps], words[0])
    np.testing.assert_allclose(found[3], expected, rtol=1e-4, atol=1e-4)


def test_pairs_that_do_not_count_leave_the_others_and_the_statistics_alone() -> None:
    (words, valid), maps = words_of_pairs(), image_maps(PAIRS)
    counted = np.array([True, True, False, True])
    found, averages = [], []
    for value in (0.0, 50.0):
        module = vision(norm="batch")
        given: Any = [np.where(counted[:, None, None, None], x, value) for x in maps]
        seen = module(given, words, valid, jnp.asarray(counted), training=True)
        found.append(np.asarray(seen.masks)[counted])
        means = [norm.mean[...] for norm in module.pyramid.norms]  # pyright: ignore
        averages.append(np.concatenate(means))
    np.testing.assert_array_equal(*found)
    np.testing.assert_array_equal(*averages)
    assert np.abs(averages[0]).max() > 0


def test_dropout_needs_a_key() -> None:
    maps, (words, valid) = image_maps(), words_of_pairs()
    see, speak = vision(dropout=0.5), language(dropout=0.5)
    seen = see(maps, words, valid).masks
    np.testing.assert_array_equal(seen, vision()(maps, words, valid).masks)
    key = jax.random.key(0)
    assert not np.allclose(see(maps, words, valid, key=key).masks, seen)
    dropped = speak(maps, words, valid, sentences(), key=key)
    assert not np.allclose(dropped, speak(maps, words, valid, sentences()))


def test_the_first_queries_are_zero() -> None:
    maps, (words, valid) = image_maps(), words_of_pairs()
    path = SymmetricTransformer(
        CONFIG, WIDTHS, WORD_WIDTH, SENTENCE_WIDTH, dtype=jnp.float32, rngs=nnx.Rngs(0)
    )
    assert not np.any(path(maps, words, valid, sentences()))


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"heads": 3}, "3 heads do not divide the width 16"),
        ({"width": 18, "heads": 2}, "width=18 is not divisible by 4"),
        ({"hidden": 0}, "hidden=0 is less than 1"),
    ],
)
def test_sizes_that_do_not_fit(fields: dict[str, Any], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        dataclasses.replace(CONFIG, **fields)
