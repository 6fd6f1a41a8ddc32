"""UniRES as a whole."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.refseg_jax.models.micro import EOS, micro, micro_batch, micro_params

LEAVES = ("kernel", "bias")


def _logits(forward, params, batch, key=None):
    return np.asarray(jax.jit(forward.apply)(params, batch, key).mask_logits)


@pytest.fixture(scope="module")
def forward():
    return micro()


@pytest.fixture(scope="module")
def params(forward):
    return micro_params(forward)


@pytest.fixture(scope="module")
def run(forward):
    return jax.jit(lambda params, batch: forward.apply(params, batch).mask_logits)


def test_logits_cover_every_image_and_expression(params, run):
    logits = run(params, micro_batch(rows=2, images=2, expressions=3))
    assert logits.shape == (2, 2, 3, 16, 16)
    assert logits.dtype == jnp.float32
    assert np.isfinite(logits).all()


def test_expressions_together_equal_one_by_one(params, run):
    batch = micro_batch(rows=2, expressions=3)
    together = np.asarray(run(params, batch))
    for k in range(3):
        one = dataclasses.replace(
            batch, text=batch.text[:, k : k + 1], text_valid=batch.text_valid[:, k : k + 1]
        )
        np.testing.assert_allclose(run(params, one)[:, :, 0], together[:, :, k], atol=2e-5)


def test_images_of_a_row_equal_rows_of_one_image(params, run):
    batch = micro_batch(rows=1, images=3, expressions=2)
    together = np.asarray(run(params, batch))
    for n in range(3):
        one = dataclasses.replace(batch, image=batch.image[:, n : n + 1])
        np.testing.assert_allclose(run(params, one)[:, 0], together[:, n], atol=2e-5)


def test_the_three_parts_make_the_whole(forward, params, run):
    batch = micro_batch()
    image = jax.jit(forward.encode_image)(params, batch.image)
    text = jax.jit(forward.encode_text)(params, batch.text, batch.text_valid)
    parts = jax.jit(forward.decode)(params, image, text).mask_logits
    np.testing.assert_allclose(parts, run(params, batch), atol=2e-5)


def test_padding_does_not_change_masks(params, run):
    batch = micro_batch(length=7)
    longer = dataclasses.replace(
        batch,
        text=jnp.pad(batch.text, ((0, 0), (0, 0), (0, 4))),
        text_valid=jnp.pad(batch.text_valid, ((0, 0), (0, 0), (0, 4))),
    )
    junk = dataclasses.replace(longer, text=jnp.where(longer.text_valid, longer.text, 9))
    expected = run(params, batch)
    np.testing.assert_allclose(run(params, longer), expected, atol=2e-5)
    np.testing.assert_allclose(run(params, junk), expected, atol=2e-5)


def test_words_change_masks(params, run):
    batch = micro_batch()
    swapped = dataclasses.replace(
        batch, text=batch.text[:, ::-1], text_valid=batch.text_valid[:, ::-1]
    )
    assert np.abs(run(params, batch) - run(params, swapped)).max() > 1e-3


def test_rows_of_padding_give_finite_masks(params, run):
    batch = micro_batch()
    empty = dataclasses.replace(
        batch, text=jnp.zeros_like(batch.text), text_valid=jnp.zeros_like(batch.text_valid)
    )
    assert np.isfinite(run(params, empty)).all()


@pytest.mark.parametrize(
    ("low", "high"), [(0, 0), (5, 0), (0, 3)], ids=["none", "low only", "high only"]
)
def test_group_tokens_can_be_switched_off(low, high):
    forward = micro(low_tokens=low, high_tokens=high)
    paths = set(forward.shapes)
    assert ("vision.low_tokens" in paths) == (low > 0)
    assert ("vision.high_tokens" in paths) == (high > 0)
    assert any(p.startswith("low_filter.") for p in paths) == (low > 0)
    assert any(p.startswith("high_filter.") for p in paths) == (high > 0)
    assert any(p.startswith("group_decoder.") for p in paths) == (low + high > 0)
    params = micro_params(forward)
    assert _logits(forward, params, micro_batch()).shape == (2, 1, 3, 16, 16)
    image = micro_batch().image
    levels = forward.bind(params).group_assignment(image)
    assert set(levels) == {name for name, count in (("low", low), ("high", high)) if count}


def test_a_presence_head_adds_its_parameters_and_changes_nothing_else(forward, params):
    headed, key = micro(presence_head=True), jax.random.key(0)
    more = headed.shapes.keys() - forward.shapes.keys()
    assert more == {f"presence.{name}.{leaf}" for name in ("up", "down") for leaf in LEAVES}
    fresh, plain = headed.init(key), forward.init(key)
    for path, value in plain.items():
        np.testing.assert_array_equal(fresh[path], value, path)
    batch = micro_batch(rows=2, images=2, expressions=3)
    assert jax.eval_shape(forward.apply, params, batch).present_logits is None
    found = jax.jit(headed.apply)({**params, **{p: fresh[p] for p in more}}, batch)
    expected = _logits(forward, params, batch)
    np.testing.assert_allclose(found.mask_logits, expected, atol=1e-6)
    assert found.present_logits.shape == (2, 2, 3)
    assert found.present_logits.dtype == jnp.float32
    # Every pair has an answer of its own, which stands in its place.
    assert len(np.unique(found.present_logits)) == 12
    one = dataclasses.replace(
        batch,
        image=batch.image[:, 1:],
        text=batch.text[:, 2:],
        text_valid=batch.text_valid[:, 2:],
    )
    alone = jax.jit(headed.apply)({**params, **{p: fresh[p] for p in more}}, one).present_logits
    np.testing.assert_allclose(alone[:, 0, 0], found.present_logits[:, 1, 2], atol=2e-5)


@pytest.mark.parametrize("level", ["low", "high"])
def test_group_tokens_reach_the_mask_through_the_second_stage(forward, params, run, level):
    path = f"vision.{level}_tokens"
    batch = micro_batch()
    moved = {**params, path: -50.0 * params[path]}
    assert np.abs(run(params, batch) - run(moved, batch)).max() > 1e-4


def test_group_assignment_covers_the_grid(forward, params):
    image = micro_batch(rows=2, images=2).image
    maps = jax.jit(lambda p, i: forward.bind(p).group_assignment(i))(params, image)
    assert maps["low"].shape == (2, 2, 5, 4, 4)
    assert maps["high"].shape == (2, 2, 3, 4, 4)
    for similarity in maps.values():
        assert np.abs(similarity).max() <= 1.0 + 1e-6


def _loss(forward, params, batch, key=None):
    logits = forward.apply(params, batch, key).mask_logits
    target = batch.mask / 255.0
    return jnp.mean(jnp.logaddexp(0.0, logits) - target * logits)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_every_parameter_that_matters_gets_a_finite_gradient(dtype):
    forward = micro(dtype=dtype)
    params = micro_params(forward)
    gradients = jax.jit(jax.grad(lambda p: _loss(forward, p, micro_batch())))(params)
    for path, gradient in gradients.items():
        assert gradient.dtype == jnp.float32, path
        assert np.isfinite(gradient).all(), path
        # A key's bias moves all scores of a query alike: softmax does not see it.
        if not path.endswith("attention.key.bias"):
            assert np.abs(gradient).max() > 0.0, path


def test_bf16_is_close_to_f32(forward, params, run):
    half = _logits(micro(dtype="bfloat16"), params, micro_batch())
    full = np.asarray(run(params, micro_batch()))
    assert half.dtype == np.float32
    assert 0.0 < np.abs(half - full).max() < 0.05 * np.abs(full).max()


def test_remat_changes_nothing_but_memory(forward, params):
    again = micro(remat=True)
    batch = micro_batch()
    plain = jax.jit(jax.value_and_grad(lambda p: _loss(forward, p, batch)))(params)
    remat = jax.jit(jax.value_and_grad(lambda p: _loss(again, p, batch)))(params)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), plain, remat)
    text = str(jax.make_jaxpr(lambda p: _loss(again, p, batch))(params))
    # 2 vision blocks, 1 text block, 2 branches of each of the 2 + 1 decoder layers.
    assert text.count("checkpoint[") + text.count("remat2[") + text.count("remat[") == 9


def test_dropout_only_with_a_key(forward, params, run):
    batch = micro_batch()
    same = _logits(forward, params, batch, jax.random.key(0))
    other = _logits(forward, params, batch, jax.random.key(1))
    assert np.abs(same - other).max() > 1e-4
    np.testing.assert_array_equal(same, _logits(forward, params, batch, jax.random.key(0)))
    np.testing.assert_array_equal(run(params, batch), run(params, batch))


def test_remat_with_dropout_keeps_its_pattern(forward, params):
    batch, key = micro_batch(), jax.random.key(3)
    plain = jax.jit(jax.grad(lambda p: _loss(forward, p, batch, key)))(params)
    again = micro(remat=True)
    remat = jax.jit(jax.grad(lambda p: _loss(again, p, batch, key)))(params)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), plain, remat)


@pytest.mark.parametrize("stride", [1, 2, 4])
def test_pixel_kernels_give_the_same_masks_together_one_by_one_and_in_parts(stride):
    forward = micro(head="pixel_kernel", stem_width=8, mask_stride=stride)
    params, batch = micro_params(forward), micro_batch(rows=2, images=2, expressions=3)
    together = _logits(forward, params, batch)
    assert together.shape == (2, 2, 3, 32 // stride, 32 // stride)
    image = forward.encode_image(params, batch.image[:, 1:])
    text = forward.encode_text(params, batch.text[:, 2:], batch.text_valid[:, 2:])
    one = forward.decode(params, image, text).mask_logits
    np.testing.assert_allclose(one[:, 0, 0], together[:, 1, 2], atol=2e-5)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"head": "pixel_kernel"}, "needs stem_width > 0"),
        ({"head": "pixel_kernel", "stem_width": 8, "mask_stride": 8}, "mask_stride 1, 2 or 4"),
        ({"stem_width": 8, "patch_size": 4}, "a stem needs a multiple of 8"),
    ],
)
def test_stems_and_heads_that_do_not_fit_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        micro(**changes)


@pytest.mark.parametrize(
    ("head", "stride"),
    [("projector", 4), ("projector", 1), ("pixel_shuffle", 2), ("linear", 4), ("linear", 8)],
)
def test_heads_give_the_grid_of_their_stride(head, stride):
    forward = micro(head=head, mask_stride=stride)
    assert _logits(forward, micro_params(forward), micro_batch()).shape[-1] == 32 // stride
    assert forward.model.mask_stride == stride


def test_an_image_of_another_size_is_refused(forward, params):
    image = np.zeros((1, 1, 40, 40, 3), np.uint8)
    with pytest.raises(ValueError, match=r"\(40, 40, 3\).*\(32, 32, 3\)"):
        forward.encode_image(params, image)


def test_a_text_longer_than_the_table_is_refused(forward, params):
    with pytest.raises(ValueError, match="13 text positions asked for, but the table has 12"):
        forward.encode_text(params, np.full((1, 1, 13), EOS, np.int32), np.ones((1, 1, 13), bool))
