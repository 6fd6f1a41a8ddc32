"""How ReLA trains: one compilation, and what a device holds of it when parameters are cut."""

import functools
import math
from typing import Any

import jax
import numpy as np
import pytest
from jax.sharding import AbstractMesh, AxisType

from refseg_jax import sharding
from refseg_jax.batch import Batch
from refseg_jax.models import build_model
from refseg_jax.models.forward import Forward
from refseg_jax.training.objectives import RelationObjective
from refseg_jax.training.optim import OptimConfig, make_optimizer
from refseg_jax.training.state import Trainer
from tests.refseg_jax.models.rela_test import EXPRESSIONS, IMAGES, ROWS, SMALL, batch

#: The backward pass of every layer is compiled.
SHORT: dict[str, Any] = {**SMALL, "swin_depths": (1, 1), "region_layers": 1}


def _targets(given: Batch, seed: int) -> Batch:
    """With masks, of which some are empty, and pairs that do not count."""
    rng = np.random.default_rng(seed)
    pairs = (ROWS, IMAGES, EXPRESSIONS)
    present = rng.random(pairs) < 0.7
    masks = 255 * (rng.random((*pairs, 32, 32)) < 0.3) * present[..., None, None]
    return Batch(
        given.image, given.text, given.text_valid, mask=masks.astype(np.uint8), present=present,
        valid=rng.random(pairs) < 0.8, size=np.full((ROWS, IMAGES, 2), 64, np.int32),
        affine=np.zeros((ROWS, IMAGES, 2, 3), np.float32),
    )  # fmt: skip


def test_no_step_compiles_again():
    """Whatever is in the batch, and with the state that a step gave out."""
    forward = Forward(lambda rngs: build_model(SHORT, rngs=rngs))
    mesh = sharding.make_mesh(sharding.MeshConfig())
    trainer = Trainer(forward, RelationObjective(), OptimConfig(lr=1e-3), 10, mesh)
    step, state = trainer.compile_step(), trainer.create()
    losses = []
    for seed in range(4):
        placed = sharding.put_batch(_targets(batch(seed), seed), mesh)
        state, metrics = step(state, placed)
        losses.append(float(metrics["loss"]))
    assert step._cache_size() == 1  # pyright: ignore[reportFunctionMemberAccess]
    assert np.isfinite(losses).all()
    assert len(set(losses)) == len(losses)
    assert state.step == 4


@functools.cache
def _whole_state() -> tuple[dict[str, Any], dict[str, Any]]:
    """Shapes of the parameters of ReLA at its full width, and of them with the optimiser's moments.

    Layers that repeat one another's shapes are left out.
    """
    few = {"swin_depths": (2, 2, 2, 2), "text_layers": 1, "pixel_layers": 1, "region_layers": 1}
    model = {"name": "rela", **few}
    params = Forward(lambda rngs: build_model(model, rngs=rngs)).shapes
    optimizer = make_optimizer(OptimConfig(), 10)
    return params, {"params": params, "opt_state": jax.eval_shape(optimizer.init, params)}


@pytest.mark.parametrize("devices", [2, 8])
def test_a_device_holds_its_share_of_parameters_and_moments(devices: int):
    mesh: Any = AbstractMesh(
        (1, devices, 1), sharding.AXES, axis_types=(AxisType.Auto,) * len(sharding.AXES)
    )
    params, state = _whole_state()
    layouts = sharding.state_shardings(state, sharding.param_shardings(params, mesh), mesh)
    leaves, cut = jax.tree.leaves(state), jax.tree.leaves(layouts)
    whole = sum(math.prod(leaf.shape) for leaf in leaves)
    held = sum(
        math.prod(one.shard_shape(leaf.shape)) for leaf, one in zip(leaves, cut, strict=True)
    )
    assert whole > 3 * 80e6
    assert held * devices < 1.02 * whole
