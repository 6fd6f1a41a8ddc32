"""Losses against numpy in f64, and objectives as sums and weights."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from refseg_jax.batch import Batch, SegOutput
from refseg_jax.training import losses
from refseg_jax.training.objectives import MaskObjective, build_objective

SHAPE = (3, 2, 4, 5, 6)


def _numpy_cross_entropy(logits: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """-t log p - (1 - t) log(1 - p), with log p = -log(1 + e^-x)."""
    x, t = logits.astype(np.float64), targets.astype(np.float64)
    return t * np.logaddexp(0, -x) + (1 - t) * np.logaddexp(0, x)


def _numpy_dice(logits: np.ndarray, targets: np.ndarray, smoothing: float) -> np.ndarray:
    result = np.zeros(logits.shape[:-2])
    for place in np.ndindex(result.shape):
        p, t = 1 / (1 + np.exp(-logits[place].astype(np.float64))), targets[place]
        result[place] = 1 - (2 * (p * t).sum() + smoothing) / (p.sum() + t.sum() + smoothing)
    return result


def _case(seed: int = 0) -> tuple[SegOutput, Batch]:
    rng = np.random.default_rng(seed)
    masks = rng.integers(0, 256, SHAPE, np.uint8)
    valid = rng.random(SHAPE[:3]) < 0.6
    blank = np.zeros(1)
    logits = rng.normal(0, 3, SHAPE).astype(np.float32)
    batch = Batch(blank, blank, blank, masks, valid, valid, blank, blank)
    return SegOutput(logits), batch


def _terms(objective: MaskObjective, output: SegOutput, batch: Batch) -> dict[str, tuple]:
    terms = objective(output, batch, jnp.float32(0.5))
    return {k: (float(t.sum), float(t.weight), float(t.coefficient)) for k, t in terms.items()}


def test_cross_entropy_of_soft_targets() -> None:
    rng = np.random.default_rng(0)
    logits = rng.normal(0, 10, (7, 9)).astype(np.float32)
    targets = rng.random((7, 9)).astype(np.float32)
    found = losses.sigmoid_cross_entropy(jnp.asarray(logits), jnp.asarray(targets))
    np.testing.assert_allclose(found, _numpy_cross_entropy(logits, targets), rtol=1e-5, atol=1e-6)


def test_cross_entropy_is_finite_for_huge_logits() -> None:
    logits = jnp.asarray([-1e30, -200.0, 0.0, 200.0, 1e30])
    found = losses.sigmoid_cross_entropy(logits, jnp.asarray([0.0, 1.0, 0.5, 0.0, 1.0]))
    np.testing.assert_allclose(found, [0, 200, np.log(2), 200, 0], rtol=1e-6)


def test_the_gradient_of_cross_entropy_is_probability_minus_target() -> None:
    logits = jnp.asarray([-200.0, -3.0, -0.1, 0.1, 2.0, 200.0])
    targets = jnp.asarray([0.0, 1.0, 0.3, 0.7, 0.5, 0.0])
    found = jax.grad(lambda x: losses.sigmoid_cross_entropy(x, targets).sum())(logits)
    expected = 1 / (1 + np.exp(-np.asarray(logits, np.float64))) - targets
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("smoothing", [1.0, 1e-3, 10.0])
def test_dice_of_soft_targets(smoothing: float) -> None:
    rng = np.random.default_rng(1)
    logits = rng.normal(0, 4, (3, 2, 8, 5)).astype(np.float32)
    targets = rng.random((3, 2, 8, 5)).astype(np.float32)
    found = losses.dice(jnp.asarray(logits), jnp.asarray(targets), smoothing)
    np.testing.assert_allclose(found, _numpy_dice(logits, targets, smoothing), rtol=1e-5)


def test_dice_at_its_ends() -> None:
    full, empty = jnp.full((8, 8), 50.0), jnp.full((8, 8), -50.0)
    one, zero = jnp.ones((8, 8)), jnp.zeros((8, 8))
    assert float(losses.dice(full, one)) == pytest.approx(0, abs=1e-6)
    assert float(losses.dice(empty, zero)) == pytest.approx(0, abs=1e-6)
    assert float(losses.dice(full, zero)) == pytest.approx(64 / 65)
    assert float(losses.dice(empty, one)) == pytest.approx(64 / 65)


def test_terms_are_sums_over_valid_pairs() -> None:
    output, batch = _case()
    logits, targets = np.asarray(output.mask_logits), np.asarray(batch.mask) / 255
    valid = np.asarray(batch.valid)
    found = _terms(MaskObjective(2.0, 0.5), output, batch)
    cross_entropy = _numpy_cross_entropy(logits, targets).mean((-2, -1))[valid].sum()
    overlap = _numpy_dice(logits, targets, 1.0)[valid].sum()
    assert found["cross_entropy"] == pytest.approx((cross_entropy, valid.sum(), 2.0), rel=1e-5)
    assert found["dice"] == pytest.approx((overlap, valid.sum(), 0.5), rel=1e-5)


def test_the_parts_of_a_batch_add_up_to_the_whole() -> None:
    output, batch = _case()
    objective = MaskObjective(1.0, 1.0)
    whole = _terms(objective, output, batch)
    parts = []
    for rows in (slice(0, 1), slice(1, 3)):
        half = dataclasses.replace(batch, mask=batch.mask[rows], valid=batch.valid[rows])
        parts.append(_terms(objective, SegOutput(output.mask_logits[rows]), half))
    for name, (total, weight, _) in whole.items():
        assert sum(part[name][0] for part in parts) == pytest.approx(total, rel=1e-6)
        assert sum(part[name][1] for part in parts) == weight


def test_padding_neither_counts_nor_learns() -> None:
    output, batch = _case()
    valid = np.asarray(batch.valid)
    rng = np.random.default_rng(9)
    other = np.where(valid[..., None, None], output.mask_logits, 99.0).astype(np.float32)
    masks = np.where(valid[..., None, None], batch.mask, rng.integers(0, 256, SHAPE))
    changed = dataclasses.replace(batch, mask=masks.astype(np.uint8))
    objective = MaskObjective(1.0, 1.0)
    found = _terms(objective, SegOutput(other), changed)
    assert found == _terms(objective, output, batch)

    def total(logits: jax.Array) -> jax.Array:
        terms = objective(SegOutput(logits), batch, jnp.float32(0))
        return jnp.add(terms["cross_entropy"].sum, terms["dice"].sum)

    gradient = np.asarray(jax.grad(total)(jnp.asarray(output.mask_logits)))
    assert (gradient[~valid] == 0).all()
    assert (np.abs(gradient[valid]).sum((-2, -1)) > 0).all()


def test_a_batch_of_padding_alone_weighs_nothing() -> None:
    output, batch = _case()
    empty = dataclasses.replace(batch, valid=np.zeros_like(batch.valid))
    assert _terms(MaskObjective(), output, empty) == {"cross_entropy": (0.0, 0.0, 1.0)}


def test_losses_of_bfloat16_logits_are_f32() -> None:
    output, batch = _case()
    rounded = jnp.asarray(output.mask_logits, jnp.bfloat16)
    terms = MaskObjective()(SegOutput(rounded), batch, jnp.float32(0))
    exact = MaskObjective()(SegOutput(rounded.astype(jnp.float32)), batch, jnp.float32(0))
    assert jnp.asarray(terms["cross_entropy"].sum).dtype == jnp.float32
    assert terms["cross_entropy"].sum == exact["cross_entropy"].sum


def test_a_term_without_coefficient_is_not_there() -> None:
    output, batch = _case()
    assert set(_terms(MaskObjective(), output, batch)) == {"cross_entropy"}
    assert set(_terms(MaskObjective(0.0, 1.0), output, batch)) == {"dice"}


def test_objectives_are_built_by_name() -> None:
    found = build_objective({"name": "mask", "dice": 0.25})
    assert found == MaskObjective(cross_entropy=1.0, dice=0.25)
    with pytest.raises(ValueError, match="unknown objective 'msk': did you mean 'mask'"):
        build_objective({"name": "msk"})
    with pytest.raises(ValueError, match="did you mean 'dice'"):
        build_objective({"name": "mask", "dise": 1.0})
