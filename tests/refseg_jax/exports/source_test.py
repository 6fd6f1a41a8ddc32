"""Exported weights as what another run begins with."""

from pathlib import Path

import jax
import numpy as np
import pytest

from refseg_jax import sharding
from refseg_jax.checkpoint_params import load_params
from refseg_jax.errors import UserError
from refseg_jax.exports.source import load_start
from refseg_jax.models import build_model
from refseg_jax.train_state import Forward
from tests.refseg_jax.exports.folders import damaged, one_line, write_all
from tests.refseg_jax.tiny_run import UNIRES


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("exports")
    write_all(folder, "safetensors")
    return folder


def expected(**changes: object) -> dict[str, jax.ShapeDtypeStruct]:
    mesh = sharding.make_mesh(sharding.MeshConfig(data=1, fsdp=-1))
    forward = Forward(lambda rngs: build_model({**UNIRES, **changes}, rngs=rngs))
    return sharding.abstract_params(forward.shapes, mesh)


@pytest.mark.parametrize("changes", [{}, {"image_size": 48}])
def test_a_run_begins_alike_with_the_checkpoint_and_with_its_export(folder, changes):
    wanted = expected(**changes)
    ours = load_start(folder / "run", wanted)
    theirs = load_start(folder / "safetensors", wanted)
    assert ours.keys() == theirs.keys() == wanted.keys()
    for path, leaf in wanted.items():
        assert theirs[path].sharding == leaf.sharding
        np.testing.assert_array_equal(ours[path], theirs[path])


def test_what_does_not_fit_is_named(folder, tmp_path):
    with pytest.raises(UserError) as error:
        load_start(folder / "safetensors", expected(low_tokens=0))
    one_line(error, "safetensors", "is in the checkpoint only")
    flipped = damaged(
        folder / "safetensors",
        tmp_path / "bad",
        "model.safetensors",
        lambda data: data[:-1] + bytes([data[-1] ^ 1]),
    )
    with pytest.raises(UserError) as error:
        load_start(flipped, expected())
    one_line(error, "bad/model.safetensors")


def test_a_checkpoint_is_read_as_before(folder):
    stored, _ = load_params(folder / "run")
    for path, value in load_start(folder / "run", expected()).items():
        np.testing.assert_array_equal(value, stored[path])
