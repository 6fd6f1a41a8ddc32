"""Small training states and checkpointers, for the tests of checkpoints."""

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from refseg_jax.checkpoints.checkpointer import Checkpointer

CONFIG = {"model": {"name": "unires"}, "sizes": [1, 2]}


def state_of(seed: int = 0, ema: bool = False) -> dict[str, Any]:
    keys = jax.random.split(jax.random.key(seed), 2)
    params = {
        "vision.blocks.0.attention.query.kernel": jax.random.normal(keys[0], (16, 8)),
        "head.bias": jax.random.normal(keys[1], (8,)).astype(jnp.bfloat16),
    }
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(1e-3))
    opt_state = optimizer.init(params)
    _, opt_state = optimizer.update(params, opt_state, params)
    return {
        "step": jnp.int32(seed),
        "params": params,
        "opt_state": opt_state,
        "ema": jax.tree.map(lambda x: x * 2, params) if ema else None,
    }


def abstract(state: Any) -> Any:
    layout = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=layout), state)


def assert_same(a: Any, b: Any) -> None:
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        assert x.dtype == y.dtype
        assert np.asarray(x).tobytes() == np.asarray(y).tobytes()


def save(saver: Checkpointer, step: int, metrics: dict[str, float] | None = None) -> None:
    saver.save(step, state_of(step), data_state={"next": step}, config=CONFIG, metrics=metrics)


def step_names(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0x10
    path.write_bytes(content)


def leaf(value: jax.Array) -> jax.ShapeDtypeStruct:
    layout = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    return jax.ShapeDtypeStruct(value.shape, value.dtype, sharding=layout)


def checkpoints_folder(tmp_path: Path) -> Path:
    """Fixture: the folder of the checkpoints."""
    return tmp_path / "run" / "checkpoints"


def open_saver(directory: Path) -> Iterator[Checkpointer]:
    """Fixture: a checkpointer in the folder of the fixture `directory`."""
    saver = Checkpointer(directory, keep_latest=3, best_metric="mIoU")
    yield saver
    saver.close()


def absl_warnings(caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    """Fixture: what is logged from warnings on, by absl too."""
    logging.getLogger("absl").propagate = True
    caplog.set_level(logging.WARNING)
    return caplog
