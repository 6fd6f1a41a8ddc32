"""Swin against its definition written another way; tests/parity holds it against transformers."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from refseg_jax.encoders import swin as swin_module
from refseg_jax.encoders.swin import (
    PatchMerging,
    Swin,
    SwinBlock,
    SwinConfig,
    relative_index,
    shift_mask,
    swin_config,
)
from refseg_jax.images.colours import CLIP_MEAN, CLIP_STD, IMAGENET_MEAN, IMAGENET_STD
from refseg_jax.models.forward import Forward

#: Two stages compile in half the time of three.
SMALL = {"preset": "tiny", "depths": (2, 1), "heads": (1, 2), "width": 8}

IMAGE = np.random.default_rng(0).integers(0, 256, (2, 50, 61, 3), dtype=np.uint8)


@functools.cache
def _tower(**fields) -> tuple[Forward[Swin], dict[str, jax.Array]]:
    config = swin_config({**SMALL, **fields})
    forward: Forward[Swin] = Forward(lambda rngs: Swin(config, rngs=rngs))
    return forward, _params()


@functools.cache
def _params() -> dict[str, jax.Array]:
    tiny = swin_config(SMALL)
    return jax.jit(Forward(lambda rngs: Swin(tiny, rngs=rngs)).init)(jax.random.key(0))


@functools.cache
def _jitted(forward):
    return jax.jit(lambda params, image, key: forward.bind(params)(image, key))


def _run(forward, params, image=IMAGE, key=None):
    return _jitted(forward)(params, image, key)


def test_any_image_gives_maps_at_strides_rounded_up():
    forward, params = _tower()
    features = _run(forward, params)
    assert [x.shape for x in features] == [(2, 13, 16, 8), (2, 7, 8, 16)]
    for x in features:
        assert x.dtype == jnp.float32 and np.isfinite(x).all()


def test_stages_driven_from_outside_give_the_same():
    forward, params = _tower()
    tower = forward.bind(params)
    image = jnp.asarray(IMAGE[:1, :24, :24])
    x = tower.embed(image)
    features = []
    for stage, norm in zip(tower.stages, tower.norms, strict=True):
        x = stage(x)
        features.append(norm(x))
        x = x if stage.downsample is None else stage.downsample(x)
    for ours, expected in zip(tower(image), features, strict=True):
        np.testing.assert_array_equal(ours, expected)


def test_remat_changes_neither_features_nor_gradients():
    def value(params, forward):
        features = forward.bind(params)(IMAGE[:, :32, :32], jax.random.key(1))
        return sum(jnp.sum(jnp.sin(x)) for x in features)

    results = []
    for remat in (False, True):
        forward, params = _tower(remat=remat, drop_path=0.2)
        results.append(
            jax.jit(jax.value_and_grad(functools.partial(value, forward=forward)))(params)
        )
    (plain, gradient), (again, other) = results
    np.testing.assert_allclose(plain, again, rtol=1e-6)
    for path, leaf in gradient.items():
        # Softmax does not see what all keys share.
        assert np.isfinite(leaf).all()
        assert np.abs(leaf).max() > 1e-6 or path.endswith("key.bias"), path
        np.testing.assert_allclose(leaf, other[path], rtol=1e-3, atol=1e-4)


def test_bf16_is_close_to_f32():
    forward, params = _tower(dtype="bfloat16")
    exact, _ = _tower()
    for ours, expected in zip(_run(forward, params), _run(exact, params), strict=True):
        assert ours.dtype == jnp.bfloat16
        error = np.linalg.norm(np.asarray(ours, np.float32) - expected) / np.linalg.norm(expected)
        assert error < 0.03


def test_drop_path_is_random_in_training_and_absent_without_a_key():
    forward, params = _tower(drop_path=0.5)
    plain, _ = _tower()
    one, same, two = (_run(forward, params, key=jax.random.key(seed)) for seed in (0, 0, 1))
    np.testing.assert_array_equal(one[-1], same[-1])
    assert np.abs(one[-1] - two[-1]).max() > 1e-2
    np.testing.assert_array_equal(_run(forward, params)[-1], _run(plain, params)[-1])


def test_drop_path_grows_linearly_over_all_blocks():
    forward, _ = _tower(drop_path=0.3, depths=(2, 4))
    rates = [block.drop_path for stage in forward.model.stages for block in stage.blocks]
    np.testing.assert_allclose(rates, np.arange(6) * 0.06)


def test_every_second_block_is_shifted_by_half_a_window():
    forward, _ = _tower(window=7)
    assert [[b.shift for b in s.blocks] for s in forward.model.stages] == [[0, 3], [0]]


@pytest.mark.parametrize(
    ("pixels", "mean", "std"),
    [("imagenet", IMAGENET_MEAN, IMAGENET_STD), ("clip", CLIP_MEAN, CLIP_STD)],
)
def test_pixels_are_filled_with_zeros_after_the_normalisation(pixels, mean, std):
    forward, params = _tower(pixels=pixels)
    tower = forward.bind(params)
    normal = (IMAGE / 255.0 - np.array(mean)) / np.array(std)
    padded = np.pad(normal, ((0, 0), (0, 2), (0, 3), (0, 0))).astype(np.float32)
    kernel = params["patch_embedding.kernel"].reshape(4, 4, 3, -1)
    convolved = jax.lax.conv_general_dilated(
        padded, kernel, (4, 4), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    expected = tower.patch_norm(convolved + params["patch_embedding.bias"])
    np.testing.assert_allclose(tower.embed(jnp.asarray(IMAGE)), expected, atol=2e-5)


def test_squares_merge_column_by_column():
    merging = PatchMerging(2, dtype=jnp.float32, rngs=nnx.Rngs(0))
    x = np.random.default_rng(0).standard_normal((1, 3, 4, 2)).astype(np.float32)
    padded = np.pad(x, ((0, 0), (0, 1), (0, 0), (0, 0)))
    ordered = [padded[:, row::2, column::2] for column in (0, 1) for row in (0, 1)]
    expected = merging.reduction(merging.norm(jnp.asarray(np.concatenate(ordered, -1))))
    np.testing.assert_allclose(merging(jnp.asarray(x)), expected, atol=1e-6)


@pytest.mark.parametrize("window", [2, 3, 7])
def test_relative_index_is_query_minus_key(window):
    index = relative_index(window)
    for query in np.ndindex(window, window):
        for key in np.ndindex(window, window):
            dy, dx = np.subtract(query, key) + window - 1
            place = (query[0] * window + query[1], key[0] * window + key[1])
            assert index[place] == dy * (2 * window - 1) + dx


@pytest.mark.parametrize(("height", "width", "window", "shift"), [(8, 12, 4, 2), (7, 7, 7, 3)])
def test_shifted_windows_see_only_what_was_near(height, width, window, shift):
    def windows(place: np.ndarray) -> np.ndarray:
        rolled = np.roll(place, (-shift, -shift), (0, 1))
        tiles = rolled.reshape(height // window, window, width // window, window)
        return tiles.swapaxes(1, 2).reshape(-1, window * window)

    # Neighbours are as far apart in the window as they were in the map.
    near = np.array(True)
    for axis in (0, 1):
        place = windows(np.indices((height, width))[axis])
        within = np.indices((window, window))[axis].ravel()
        near = near & (place[:, :, None] - place[:, None] == within[:, None] - within)
    np.testing.assert_array_equal(shift_mask(height, width, window, shift), near)


@pytest.mark.parametrize("shift", [0, 2])
def test_a_block_is_attention_among_neighbours_of_the_filled_map(shift):
    # Written with one mask over all tokens, instead of windows and rolling.
    block = SwinBlock(
        8, 2, window=4, shift=shift, drop_path=0.0, dtype=jnp.float32, rngs=nnx.Rngs(0)
    )
    # What fills windows up is keys and values of the biases, which start as zeros.
    own = block.attention
    for number, linear in enumerate((own.query, own.key, own.value, own.out)):
        linear.bias = nnx.Param(jax.random.normal(jax.random.key(number), (8,)))
    x = np.random.default_rng(0).standard_normal((2, 6, 9, 8)).astype(np.float32)
    filled = np.zeros((2, 8, 12, 8), np.float32)
    filled[:, :6, :9] = block.attention_norm(jnp.asarray(x))
    y, x_place = (axis.ravel() for axis in np.mgrid[:8, :12])
    window_of = (y - shift) // 4 * 100 + (x_place - shift) // 4
    together = window_of[:, None] == window_of
    far = ~together
    dy, dx = y[:, None] - y + 3, x_place[:, None] - x_place + 3
    index = np.where(far, 0, dy * 7 + dx)
    bias = np.asarray(block.relative_positions[...])[index].transpose(2, 0, 1)
    bias = np.where(far, -1e30, bias).astype(np.float32)
    tokens = jnp.asarray(filled.reshape(2, 96, 8))
    mixed = block.attention(tokens, tokens, tokens, bias=jnp.asarray(bias)).reshape(2, 8, 12, 8)
    expected = jnp.asarray(x) + mixed[:, :6, :9]
    expected = expected + block.mlp(block.mlp_norm(expected))
    np.testing.assert_allclose(block(jnp.asarray(x)), expected, atol=1e-5)


def test_the_tower_has_the_published_sizes():
    for preset, millions in (("B", 86.9), ("L", 195.2)):
        config = swin_config({"preset": preset, "window": 12})
        shapes = Forward(lambda rngs, config=config: Swin(config, rngs=rngs)).shapes
        count = sum(int(np.prod(leaf.shape)) for leaf in shapes.values())
        assert count / 1e6 == pytest.approx(millions, abs=0.3)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"pixels": "imagnet"}, "did you mean 'imagenet'"),
        ({"dtype": "float16"}, "unknown dtype"),
        ({"drop_path": 1.0}, "drop_path=1.0"),
        ({"depths": (2, 2)}, "different stages"),
        ({"heads": (3, 6, 12, 24)}, "3 heads do not divide the width 128"),
        ({"window": 1}, "window at least 2"),
        ({"preset": "C"}, "unknown preset"),
        ({"windows": 7}, "did you mean 'window'"),
    ],
)
def test_mistakes_in_the_config_are_told(fields, message):
    with pytest.raises(ValueError, match=message):
        swin_config(fields)


def test_config_is_hashable_whatever_it_was_read_from():
    assert hash(swin_config({"depths": [2, 2, 6, 2]})) == hash(SwinConfig(depths=(2, 2, 6, 2)))
    assert set(swin_module.PIXELS) == {"imagenet", "clip"}
