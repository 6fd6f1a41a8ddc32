"""A run with batch normalisation that is stopped and goes on, and what is loaded from it."""

from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from refseg_jax import sharding
from refseg_jax.checkpoints.folder import read_record
from refseg_jax.checkpoints.params import load_params
from tests.refseg_jax.training.loop_runs import build_sound, train
from tests.refseg_jax.training.normed_model import STATISTICS, normed_trainer
from tests.refseg_jax.training.tiny_run import one_device

sound = pytest.fixture(scope="module")(build_sound)

STEPS = 5


@pytest.mark.parametrize("fields", [{}, {"accumulation": 2, "microbatch_statistics": True}])
def test_a_run_that_is_stopped_goes_on_bit_by_bit(
    sound: Path, tmp_path: Path, fields: dict[str, Any]
) -> None:
    def run(name: str, **more: Any) -> Any:
        trainer = normed_trainer(STEPS, ema_decay=0.9, **fields)
        return train(tmp_path / name, sound, STEPS, trainer=trainer, **more)

    whole = run("whole").state
    assert run("cut", signal_at=3).speed["preempted"]
    resumed = run("cut")
    assert resumed.speed["steps"] == STEPS - 3
    found, expected = (jax.tree_util.tree_leaves_with_path(s) for s in (resumed.state, whole))
    for (place, one), (other_place, other) in zip(found, expected, strict=True):
        assert place == other_place
        np.testing.assert_array_equal(one, other, err_msg=str(place))
    assert all((np.asarray(whole.params[path]) != whole.ema[path]).any() for path in STATISTICS)

    # What is loaded are the averages, those of the statistics included.
    record = read_record(tmp_path / "cut" / "checkpoints" / str(STEPS))
    assert {f"params/{path}" for path in STATISTICS} <= record.arrays.keys()
    moments = [name for name in record.arrays if name.startswith("opt_state")]
    assert moments and not [name for name in moments if name.endswith(("mean", "variance"))]
    target = sharding.abstract_params(normed_trainer().forward.shapes, one_device())
    loaded, _ = load_params(tmp_path / "cut", expected=target)
    for path, leaf in whole.ema.items():
        np.testing.assert_array_equal(loaded[path], leaf)
