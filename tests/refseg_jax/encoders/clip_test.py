"""The two CLIP towers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from refseg_jax.encoders.clip_text import ClipText
from refseg_jax.encoders.clip_vision import ClipVision, assign_groups
from refseg_jax.encoders.stem import PatchEmbedding
from refseg_jax.images.colours import CLIP_MEAN, CLIP_STD


def _vision(low=3, high=2, layers=4):
    return ClipVision(
        grid=2,
        patch_size=4,
        stem_width=0,
        width=8,
        layers=layers,
        heads=2,
        output_width=6,
        activation="quick_gelu",
        low_tokens=low,
        high_tokens=high,
        dtype=jnp.float32,
        remat=False,
        rngs=nnx.Rngs(0),
    )


def _text(layers=2):
    return ClipText(
        vocab_size=32,
        positions=10,
        width=8,
        layers=layers,
        heads=2,
        output_width=6,
        activation="quick_gelu",
        eos_id=31,
        dtype=jnp.float32,
        remat=False,
        rngs=nnx.Rngs(0),
    )


IMAGE = np.random.default_rng(0).integers(0, 256, (2, 8, 8, 3), dtype=np.uint8)


def test_patches_are_a_strided_convolution_of_the_normalised_image():
    layer = PatchEmbedding(4, 5, dtype=jnp.float32, rngs=nnx.Rngs(0))
    x = (IMAGE / 255.0 - np.array(CLIP_MEAN)) / np.array(CLIP_STD)
    expected = jax.lax.conv_general_dilated(
        x.astype(np.float32),
        layer.kernel[...],
        (4, 4),
        "VALID",
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )
    np.testing.assert_allclose(
        layer(jnp.asarray(IMAGE)).tokens, expected.reshape(2, 4, 5), atol=1e-5
    )


def test_tokens_ride_beside_the_patches_through_their_half_only(monkeypatch):
    vision = _vision()
    seen = []

    def record(block, x, **_):
        seen.append(np.asarray(x))
        return x

    monkeypatch.setattr("refseg_jax.encoders.clip_vision.run_block", record)
    features = vision(jnp.asarray(IMAGE))
    # Class token and 4 patches; 3 low tokens in blocks 1 and 2, 2 high ones in blocks 3 and 4.
    assert [x.shape[1] for x in seen] == [8, 8, 7, 7]
    for block, tokens in ((0, vision.low_tokens), (2, vision.high_tokens)):
        for row in range(2):
            np.testing.assert_array_equal(seen[block][row, 5:], tokens[...])  # pyright: ignore
    np.testing.assert_array_equal(seen[0][:, :5], seen[2][:, :5])
    np.testing.assert_array_equal(features.low, seen[0][:, 5:])
    np.testing.assert_array_equal(features.high, seen[2][:, 5:])
    np.testing.assert_array_equal(features.high_patches, seen[0][:, 1:5])
    assert features.patches.shape == (2, 4, 6)


def test_high_tokens_leave_what_came_before_them_alone():
    vision = _vision()
    before = vision(jnp.asarray(IMAGE))
    vision.high_tokens[...] = -50.0 * vision.high_tokens[...]  # pyright: ignore
    after = vision(jnp.asarray(IMAGE))
    np.testing.assert_array_equal(before.low, after.low)
    assert np.abs(before.patches - after.patches).max() > 1e-4


def test_without_tokens_the_tower_is_clips_own():
    features = _vision(low=0, high=0)(jnp.asarray(IMAGE))
    assert features.low is None and features.high is None
    assert features.patches.shape == (2, 4, 6)


def test_assignment_finds_the_token_that_looks_like_the_patch():
    rng = np.random.default_rng(0)
    tokens = rng.standard_normal((1, 3, 16)).astype(np.float32)
    groups = np.array([[2, 0, 1, 1, 2, 0]])
    shared = 50.0 * rng.standard_normal(16).astype(np.float32)
    patches = 7.0 * tokens[0][groups] + shared
    similarity = assign_groups(jnp.asarray(patches), jnp.asarray(tokens + shared))
    np.testing.assert_array_equal(jnp.argmax(similarity, 1), groups)


def test_words_see_only_what_is_before_them():
    text = _text()
    ids = np.random.default_rng(0).integers(1, 31, (2, 6)).astype(np.int32)
    words, _ = text(jnp.asarray(ids))
    changed = ids.copy()
    changed[:, 3] = 5
    others, _ = text(jnp.asarray(changed))
    np.testing.assert_allclose(words[:, :3], others[:, :3], atol=1e-6)
    assert np.abs(words[:, 3:] - others[:, 3:]).max() > 1e-3


def test_the_sentence_is_the_word_at_the_first_eos():
    text = _text()
    # 31 is EOS; padding with EOS again, as some tokenizers do, must not move it.
    ids = jnp.asarray([[1, 2, 31, 31, 31], [1, 31, 0, 0, 0]], jnp.int32)
    words, sentence = text(ids)
    expected = np.stack([words[0, 2], words[1, 1]]) @ np.asarray(text.projection.kernel[...])
    np.testing.assert_allclose(sentence, expected, atol=1e-5)


def test_a_shorter_text_uses_the_head_of_the_table():
    text = _text()
    ids = jnp.asarray([[1, 2, 3, 31, 0, 0, 0, 0]], jnp.int32)
    long_words, long_sentence = text(ids)
    words, sentence = text(ids[:, :4])
    np.testing.assert_allclose(words, long_words[:, :4], atol=1e-6)
    np.testing.assert_allclose(sentence, long_sentence, atol=1e-6)
    assert text.position_embedding.shape[0] == 10


def test_more_words_than_positions_are_refused():
    with pytest.raises(ValueError, match="11 text positions"):
        _text()(jnp.zeros((1, 11), jnp.int32))
