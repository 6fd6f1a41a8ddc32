"""The forms of UniRES: heads, strides, levels of group tokens, the presence head."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.refseg_jax.layers.compiling import quick_jit
from tests.refseg_jax.models.micro import micro, micro_batch, micro_params

LEAVES = ("kernel", "bias")


def _logits(forward, params, batch):
    return np.asarray(quick_jit(forward.apply)(params, batch).mask_logits)


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
    assign = quick_jit(lambda p, image: forward.bind(p).group_assignment(image))
    levels = assign(params, micro_batch().image)
    assert set(levels) == {name for name, count in (("low", low), ("high", high)) if count}


def test_a_presence_head_adds_its_parameters_and_changes_nothing_else():
    forward, headed, key = micro(), micro(presence_head=True), jax.random.key(0)
    more = headed.shapes.keys() - forward.shapes.keys()
    assert more == {f"presence.{name}.{leaf}" for name in ("up", "down") for leaf in LEAVES}
    fresh, plain = headed.init(key), forward.init(key)
    for path, value in plain.items():
        np.testing.assert_array_equal(fresh[path], value, path)
    params = micro_params(forward)
    batch = micro_batch(rows=2, images=2, expressions=3)
    assert jax.eval_shape(forward.apply, params, batch).present_logits is None
    found = quick_jit(headed.apply)({**params, **{p: fresh[p] for p in more}}, batch)
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
    alone = quick_jit(headed.apply)({**params, **{p: fresh[p] for p in more}}, one).present_logits
    np.testing.assert_allclose(alone[:, 0, 0], found.present_logits[:, 1, 2], atol=2e-5)


def test_evidence_of_the_mask_is_added_to_what_the_head_says():
    headed, both = (micro(presence_head=True, **more) for more in ({}, {"mask_evidence": True}))
    more = both.shapes.keys() - headed.shapes.keys()
    assert more == {f"evidence.{name}.{leaf}" for name in ("up", "down") for leaf in LEAVES}
    params, batch = micro_params(both), micro_batch(rows=2, images=2, expressions=3)
    found = quick_jit(both.apply)(params, batch)
    plain = quick_jit(headed.apply)({p: params[p] for p in headed.shapes}, batch)
    np.testing.assert_array_equal(found.mask_logits, plain.mask_logits)
    evidence = both.bind(params).evidence
    assert evidence is not None
    said = evidence(found.mask_logits.reshape(-1, 16, 16)).reshape(2, 2, 3)
    assert np.ptp(said) > 1e-3
    np.testing.assert_allclose(found.present_logits, plain.present_logits + said, atol=1e-5)


@pytest.mark.parametrize("stride", [1, 2, 4])
def test_pixel_kernels_give_the_same_masks_together_one_by_one_and_in_parts(stride):
    forward = micro(head="pixel_kernel", stem_width=8, mask_stride=stride)
    params, batch = micro_params(forward), micro_batch(rows=2, images=2, expressions=3)
    together = _logits(forward, params, batch)
    assert together.shape == (2, 2, 3, 32 // stride, 32 // stride)
    image = quick_jit(forward.encode_image)(params, batch.image[:, 1:])
    text = quick_jit(forward.encode_text)(params, batch.text[:, 2:], batch.text_valid[:, 2:])
    one = quick_jit(forward.decode)(params, image, text).mask_logits
    np.testing.assert_allclose(one[:, 0, 0], together[:, 1, 2], atol=2e-5)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"head": "pixel_kernel"}, "needs stem_width > 0"),
        ({"mask_evidence": True}, "set presence_head, too"),
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
