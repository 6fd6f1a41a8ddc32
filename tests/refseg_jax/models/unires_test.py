"""UniRES as a whole: what its masks depend on."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.refseg_jax.layers.compiling import quick_jit
from tests.refseg_jax.models.micro import EOS, micro, micro_batch, micro_params


@pytest.fixture(scope="module")
def forward():
    return micro()


@pytest.fixture(scope="module")
def params(forward):
    return micro_params(forward)


@pytest.fixture(scope="module")
def run(forward):
    return quick_jit(lambda params, batch: forward.apply(params, batch).mask_logits)


@pytest.fixture(scope="module")
def batch():
    """Of one size wherever it can be: each other one is compiled again."""
    return micro_batch(rows=2, images=2, expressions=3, length=7)


def test_logits_cover_every_image_and_expression(params, run, batch):
    logits = run(params, batch)
    assert logits.shape == (2, 2, 3, 16, 16)
    assert logits.dtype == jnp.float32
    assert np.isfinite(logits).all()


def test_expressions_together_equal_one_by_one(params, run, batch):
    together = np.asarray(run(params, batch))
    for k in range(3):
        one = dataclasses.replace(
            batch, text=batch.text[:, k : k + 1], text_valid=batch.text_valid[:, k : k + 1]
        )
        np.testing.assert_allclose(run(params, one)[:, :, 0], together[:, :, k], atol=2e-5)


def test_images_of_a_row_equal_rows_of_one_image(params, run, batch):
    together = np.asarray(run(params, batch))
    for n in range(2):
        one = dataclasses.replace(batch, image=batch.image[:, n : n + 1])
        np.testing.assert_allclose(run(params, one)[:, 0], together[:, n], atol=2e-5)


def test_the_three_parts_make_the_whole(forward, params, run, batch):
    image = quick_jit(forward.encode_image)(params, batch.image)
    text = quick_jit(forward.encode_text)(params, batch.text, batch.text_valid)
    parts = quick_jit(forward.decode)(params, image, text).mask_logits
    np.testing.assert_allclose(parts, run(params, batch), atol=2e-5)


def test_padding_does_not_change_masks(params, run, batch):
    longer = dataclasses.replace(
        batch,
        text=jnp.pad(batch.text, ((0, 0), (0, 0), (0, 4))),
        text_valid=jnp.pad(batch.text_valid, ((0, 0), (0, 0), (0, 4))),
    )
    junk = dataclasses.replace(longer, text=jnp.where(longer.text_valid, longer.text, 9))
    expected = run(params, batch)
    np.testing.assert_allclose(run(params, longer), expected, atol=2e-5)
    np.testing.assert_allclose(run(params, junk), expected, atol=2e-5)


def test_words_change_masks(params, run, batch):
    swapped = dataclasses.replace(
        batch, text=batch.text[:, ::-1], text_valid=batch.text_valid[:, ::-1]
    )
    assert np.abs(run(params, batch) - run(params, swapped)).max() > 1e-3


def test_rows_of_padding_give_finite_masks(params, run, batch):
    empty = dataclasses.replace(
        batch, text=jnp.zeros_like(batch.text), text_valid=jnp.zeros_like(batch.text_valid)
    )
    assert np.isfinite(run(params, empty)).all()


@pytest.mark.parametrize("level", ["low", "high"])
def test_group_tokens_reach_the_mask_through_the_second_stage(params, run, batch, level):
    path = f"vision.{level}_tokens"
    moved = {**params, path: -50.0 * params[path]}
    assert np.abs(run(params, batch) - run(moved, batch)).max() > 1e-4


def test_group_assignment_covers_the_grid(forward, params, batch):
    maps = quick_jit(lambda p, i: forward.bind(p).group_assignment(i))(params, batch.image)
    assert maps["low"].shape == (2, 2, 5, 4, 4)
    assert maps["high"].shape == (2, 2, 3, 4, 4)
    for similarity in maps.values():
        assert np.abs(similarity).max() <= 1.0 + 1e-6


def test_bf16_is_close_to_f32(params, run, batch):
    half = quick_jit(micro(dtype="bfloat16").apply)(params, batch).mask_logits
    full = np.asarray(run(params, batch))
    assert half.dtype == np.float32
    assert 0.0 < np.abs(half - full).max() < 0.05 * np.abs(full).max()


def test_dropout_only_with_a_key(forward, params, run, batch):
    dropped = quick_jit(lambda params, key: forward.apply(params, batch, key).mask_logits)
    same = dropped(params, jax.random.key(0))
    other = dropped(params, jax.random.key(1))
    assert np.abs(same - other).max() > 1e-4
    np.testing.assert_array_equal(same, dropped(params, jax.random.key(0)))
    np.testing.assert_array_equal(run(params, batch), run(params, batch))


def test_an_image_of_another_size_is_refused(forward, params):
    image = np.zeros((1, 1, 40, 40, 3), np.uint8)
    with pytest.raises(ValueError, match=r"\(40, 40, 3\).*\(32, 32, 3\)"):
        forward.encode_image(params, image)


def test_a_text_longer_than_the_table_is_refused(forward, params):
    with pytest.raises(ValueError, match="13 text positions asked for, but the table has 12"):
        forward.encode_text(params, np.full((1, 1, 13), EOS, np.int32), np.ones((1, 1, 13), bool))
