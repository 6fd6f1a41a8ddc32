"""The optimiser's table, schedule and average."""

import dataclasses
import logging
import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from refseg_jax.training import optim

PATHS = ("vision.blocks.0.kernel", "vision.blocks.0.bias", "head.kernel")


def test_first_matching_row_decides():
    table = ((r"vision\..*bias", 0.0), (r"vision\..*", 0.1), (r".*", 1.0))
    assert optim.multipliers(PATHS, table) == dict(zip(PATHS, (0.1, 0.0, 1.0), strict=True))


def test_table_must_cover_every_path_and_every_row_must_decide():
    with pytest.raises(ValueError, match=r"head\.kernel"):
        optim.multipliers(PATHS, ((r"vision\..*", 1.0),))
    with pytest.raises(ValueError, match=r"vison"):
        optim.multipliers(PATHS, ((r"vison\..*", 0.1), (r".*", 1.0)))


def test_schedule_warms_up_and_ends_at_its_share():
    schedule = optim.make_schedule(optim.OptimConfig(lr=2.0, warmup=0.1, end_lr_share=0.25), 100)
    assert float(schedule(0)) == 0.0
    assert float(schedule(5)) == pytest.approx(1.0)
    assert float(schedule(10)) == pytest.approx(2.0)
    assert float(schedule(55)) == pytest.approx(0.5 + 1.5 * 0.5)
    assert float(schedule(100)) == pytest.approx(0.5)


def test_schedule_without_warm_up_starts_at_the_peak_and_logs_nothing(caplog):
    with caplog.at_level(logging.INFO, "absl"):
        config = optim.OptimConfig(lr=2.0, warmup=0.0, end_lr_share=0.5)
        schedule = optim.make_schedule(config, 10)
    found = [float(schedule(step)) for step in (0, 5, 10, 11)]
    assert found == pytest.approx([2.0, 1.5, 1.0, 1.0])
    assert not caplog.records


def test_schedule_that_drops():
    config = optim.OptimConfig(lr=2.0, warmup=0.1, drops=(0.5, 0.9))
    schedule = optim.make_schedule(config, 100)
    found = [float(schedule(step)) for step in (0, 5, 10, 49, 51, 89, 91, 100)]
    assert found == pytest.approx([0.0, 1.0, 2.0, 2.0, 0.2, 0.2, 0.02, 0.02])
    at_once = optim.make_schedule(dataclasses.replace(config, warmup=0.0), 100)
    assert float(at_once(0)) == 2.0
    with pytest.raises(ValueError, match=r"optim\.drops=\(50,\): shares of training in \(0, 1\)"):
        optim.make_schedule(optim.OptimConfig(drops=(50,)), 100)


def test_schedule_of_a_polynomial():
    config = optim.OptimConfig(lr=2.0, warmup=0.0, power=0.9)
    schedule = optim.make_schedule(config, 100)
    # LAVT's factor of the rate at an iteration.
    expected = [2.0 * (1 - step / 100) ** 0.9 for step in (0, 1, 50, 99, 100)]
    found = [float(schedule(step)) for step in (0, 1, 50, 99, 100)]
    assert found == pytest.approx(expected, rel=1e-5, abs=1e-7)
    late = optim.make_schedule(dataclasses.replace(config, warmup=0.5, end_lr_share=0.5), 100)
    assert [float(late(step)) for step in (25, 50, 100)] == pytest.approx([1.0, 2.0, 1.0])
    with pytest.raises(ValueError, match=r"optim\.power=-1: an exponent above 0"):
        optim.make_schedule(optim.OptimConfig(power=-1), 100)
    with pytest.raises(ValueError, match=r"optim\.power=0"):
        optim.make_schedule(optim.OptimConfig(power=0.9, drops=(0.5,)), 100)


def test_decay_of_chosen_paths():
    config = optim.OptimConfig(lr=0.1, warmup=0.0, weight_decay=0.3, undecayed=r".*norm.*")
    params = {"norm.kernel": jnp.ones((2, 2)), "a.kernel": jnp.ones((2, 2)), "a.bias": jnp.ones(2)}
    optimizer = optim.make_optimizer(config, 10)
    still = jax.tree.map(jnp.zeros_like, params)
    updates, _ = optimizer.update(still, optimizer.init(params), params)
    np.testing.assert_allclose(updates["norm.kernel"], 0.0)
    np.testing.assert_allclose(updates["a.kernel"], -0.03, rtol=1e-5)
    np.testing.assert_allclose(updates["a.bias"], -0.03, rtol=1e-5)


def test_update_equals_adamw_with_per_path_rates():
    config = optim.OptimConfig(
        lr=0.1,
        warmup=0.0,
        weight_decay=0.3,
        clip_norm=0.0,
        end_lr_share=1.0,
        lr_multipliers=((r"slow.*", 0.5), (r".*", 1.0)),
    )
    params = {"slow": jnp.ones((2, 2)), "fast": jnp.ones((2, 2)), "bias": jnp.ones(2)}
    gradient = jax.tree.map(lambda x: 0.7 * x, params)
    optimizer = optim.make_optimizer(config, 10)
    updates, _ = optimizer.update(gradient, optimizer.init(params), params)
    # Adam's first direction is sign(g) / (1 + eps / |g|).
    direction = 0.7 / (0.7 + config.eps)
    np.testing.assert_allclose(updates["fast"], -0.1 * (direction + 0.3), rtol=1e-5)
    np.testing.assert_allclose(updates["slow"], -0.05 * (direction + 0.3), rtol=1e-5)
    np.testing.assert_allclose(updates["bias"], -0.1 * direction, rtol=1e-5)


@pytest.mark.parametrize(("size", "left"), [(1e3, 1.0), (1e-3, 1e-3 * 13**0.5)])
def test_clipping_bounds_the_global_norm_and_leaves_smaller_ones(size, left):
    config = optim.OptimConfig(clip_norm=1.0)
    params = {"a": jnp.zeros((3, 3)), "b": jnp.zeros(4)}
    gradient = jax.tree.map(lambda x: size * jnp.ones_like(x), params)
    optimizer = optim.make_optimizer(config, 10)
    _, state = optimizer.update(gradient, optimizer.init(params), params)
    moments = next(s for s in state if isinstance(s, optax.ScaleByAdamState)).mu
    assert float(optax.tree.norm(moments)) == pytest.approx(left * (1.0 - config.b1), rel=1e-5)


def test_average_follows_quickly_at_first():
    average, params = {"a": jnp.zeros(1)}, {"a": jnp.ones(1)}
    early = optim.update_average(average, params, jnp.int32(0), 0.999)
    late = optim.update_average(average, params, jnp.int32(10**6), 0.999)
    assert float(early["a"][0]) == pytest.approx(0.9)
    assert float(late["a"][0]) == pytest.approx(0.001, rel=1e-3)


def _orthogonal(matrix: np.ndarray) -> np.ndarray:
    u, _, v = np.linalg.svd(matrix, full_matrices=False)
    return u @ v


def test_muon_makes_the_kernels_it_is_given_orthogonal_and_leaves_the_rest_to_adam():
    rng = np.random.default_rng(0)
    shapes = {
        "a.kernel": (6, 4),
        "conv.kernel": (3, 3, 2, 5),
        "head.kernel": (6, 4),
        "a.bias": (4,),
    }
    params = {k: jnp.asarray(rng.standard_normal(s), jnp.float32) for k, s in shapes.items()}
    gradient = {k: jnp.asarray(rng.standard_normal(s), jnp.float32) for k, s in shapes.items()}
    config = optim.OptimConfig(
        lr=0.1, warmup=0.0, weight_decay=0.0, clip_norm=0.0, muon=r"(?!head\.).*kernel"
    )
    optimizer = optim.make_optimizer(config, 10)
    moved, _ = optimizer.update(gradient, optimizer.init(params), params)
    adam = optim.make_optimizer(dataclasses.replace(config, muon=""), 10)
    by_adam, _ = adam.update(gradient, adam.init(params), params)
    for path in ("head.kernel", "a.bias"):
        np.testing.assert_array_equal(moved[path], by_adam[path])
    for path, rows in (("a.kernel", 6), ("conv.kernel", 18)):
        step = np.asarray(moved[path]).reshape(rows, -1)
        direction = _orthogonal(np.asarray(gradient[path]).reshape(rows, -1))
        # Five Newton-Schulz iterations bring singular values near 1 only.
        singular = np.linalg.svd(step, compute_uv=False) / (0.1 * 0.2 * math.sqrt(rows))
        assert singular.min() > 0.6 and singular.max() < 1.3
        cosine = -np.sum(step * direction) / np.linalg.norm(step) / np.linalg.norm(direction)
        assert cosine > 0.97


@pytest.mark.parametrize(("pattern", "named"), [("kernle", "no parameter"), (".*", "a.bias")])
def test_muon_refuses_what_is_no_kernel(pattern, named):
    params = {"a.kernel": jnp.ones((2, 2)), "a.bias": jnp.ones(2)}
    optimizer = optim.make_optimizer(optim.OptimConfig(muon=pattern), 10)
    with pytest.raises(ValueError, match=f"{re.escape(repr(pattern))} names {named}"):
        optimizer.init(params)
