"""Parameters alone, out of a run's checkpoints."""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from refseg_jax.checkpoints import manifest
from refseg_jax.checkpoints.checkpointer import Checkpointer
from refseg_jax.checkpoints.params import load_params
from refseg_jax.errors import UserError
from refseg_jax.images.resize import resize_position_embedding
from tests.refseg_jax.checkpoints.saved_states import (
    CONFIG,
    assert_same,
    checkpoints_folder,
    flip,
    leaf,
    open_saver,
    save,
    state_of,
)

directory = pytest.fixture(checkpoints_folder)
saver = pytest.fixture(open_saver)


def test_params_alone(saver: Checkpointer, directory: Path) -> None:
    """From any of the three folders; the average is preferred; given layouts are used."""
    state = state_of(3, ema=True)
    saver.save(3, state, data_state=None, config=CONFIG, metrics=None)
    saver.wait()
    for path in (directory.parent, directory, directory / "3", str(directory / "3")):
        params, config = load_params(path)
        assert config == CONFIG
        assert all(isinstance(x, np.ndarray) for x in params.values())
        assert_same(params, jax.tree.map(np.asarray, state["ema"]))
    layout = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    wanted = {path: leaf(value) for path, value in state["params"].items()}
    params, _ = load_params(directory, step=3, expected=wanted)
    assert all(x.sharding == layout for x in params.values())
    with pytest.raises(UserError, match=r"head\.bias. is in the checkpoint only"):
        load_params(directory, expected={"other": wanted["head.bias"]})
    smaller = {**wanted, "head.bias": leaf(jnp.zeros(3))}
    with pytest.raises(UserError, match=r"'head\.bias' is \(8,\) there, the model's is \(3,\)"):
        load_params(directory, expected=smaller)


def test_positions_of_another_image_size_are_resized(saver: Checkpointer, directory: Path) -> None:
    table = np.random.default_rng(0).standard_normal((1 + 4 * 4, 3)).astype(np.float32)
    state = {"params": {"vision.position_embedding": jnp.asarray(table)}}
    saver.save(1, state, data_state=None, config=CONFIG, metrics=None)
    saver.wait()
    wanted = {"vision.position_embedding": leaf(jnp.zeros((1 + 8 * 8, 3)))}
    params, _ = load_params(directory, expected=wanted)
    resized = resize_position_embedding(table, 8)
    np.testing.assert_array_equal(params["vision.position_embedding"], resized)
    wider = {"vision.position_embedding": leaf(jnp.zeros((1 + 8 * 8, 2)))}
    with pytest.raises(UserError, match=r"\(17, 3\) there, the model's is \(65, 2\)"):
        load_params(directory, expected=wider)


def test_load_params_errors(saver: Checkpointer, directory: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such folder"):
        load_params(tmp_path / "nowhere")
    with pytest.raises(UserError, match="holds no checkpoint"):
        load_params(tmp_path)
    save(saver, 1)
    save(saver, 2)
    saver.wait()
    with pytest.raises(UserError, match=r"no checkpoint 3; there are \[1, 2\]"):
        load_params(directory, step=3)
    with pytest.raises(UserError, match="no checkpoint has a score"):
        load_params(directory, step="best")
    flip(directory / "2" / "_CHECKPOINT_METADATA")
    assert_same(load_params(directory)[0], jax.tree.map(np.asarray, state_of(1)["params"]))
    with pytest.raises(UserError, match="no sound checkpoint"):
        load_params(directory / "2")
    with pytest.raises(UserError, match="no sound checkpoint"):
        load_params(directory, step=2)


@pytest.mark.parametrize("field", ["dtype", "shape", "name"])
def test_record_that_lies_about_arrays(saver: Checkpointer, directory: Path, field: str) -> None:
    save(saver, 1)
    saver.wait()
    (directory / "1" / manifest.NAME).unlink()
    path = directory / "1" / "run" / "run.json"
    record = json.loads(path.read_text())
    dtype, shape = record["arrays"].pop("params/head.bias")
    name = "params/other" if field == "name" else "params/head.bias"
    record["arrays"][name] = ["no such" if field == "dtype" else dtype, shape]
    if field == "shape":
        record["arrays"][name][1] = [-8, "x"]
    path.write_text(json.dumps(record))
    with pytest.raises(UserError):
        load_params(
            directory,
            expected={
                k.removeprefix("params/"): leaf(state_of()["params"]["head.bias"])
                for k in record["arrays"]
                if k.startswith("params/")
            },
        )
