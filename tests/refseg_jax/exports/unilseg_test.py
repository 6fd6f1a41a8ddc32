"""A UniLSeg with batch normalisation from its checkpoint to an export, and back."""

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file

from refseg_jax import sharding
from refseg_jax.exports.exporter import export
from refseg_jax.exports.source import load_start
from refseg_jax.models.forward import Params
from refseg_jax.models.graphs import forward_of
from refseg_jax.prediction.predictor import Predictor
from refseg_jax.training.objectives import MaskObjective
from refseg_jax.training.optim import OptimConfig
from refseg_jax.training.state import Trainer
from tests.refseg_jax.exports.folders import TEXTS, compiling_once, picture
from tests.refseg_jax.models.small_unilseg import SMALL
from tests.refseg_jax.training.tiny_run import (
    one_device,
    random_params,
    save_unires,
    unires_run_config,
)

#: With CLIP's vocabulary, which the texts need.
MODEL: dict[str, Any] = {**SMALL, "vocab_size": 49408, "eos_id": 49407}
FORWARD = forward_of(MODEL)


@pytest.fixture(scope="module")
def params() -> Params:
    # Other numbers would fill or empty the masks.
    return random_params(FORWARD, seed=4)


@pytest.fixture(scope="module")
def folder(params: Params, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run's checkpoint and its export."""
    folder = tmp_path_factory.mktemp("unilseg")
    save_unires(folder / "run", params, config=unires_run_config(0.5, MODEL))
    export(folder / "run", "safetensors", folder / "safetensors", command=["make", "it"])
    return folder


def test_the_export_has_the_running_averages_bit_by_bit(folder: Path, params: Params) -> None:
    stored = load_file(folder / "safetensors" / "model.safetensors")
    assert FORWARD.statistics < stored.keys() == params.keys()
    for path, value in params.items():
        assert stored[path].tobytes() == np.asarray(value).tobytes(), path


def test_the_export_answers_as_the_checkpoint(folder: Path, tmp_path: Path) -> None:
    with compiling_once(tmp_path):
        expected, found = (
            Predictor.from_checkpoint(folder / kind).predict(picture(), TEXTS)
            for kind in ("run", "safetensors")
        )
    # Else equal masks would say nothing.
    assert any(0.02 < one.mask.mean() < 0.98 for one in expected)
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_array_equal(one.mask, other.mask)
        assert (one.score, one.present) == (other.score, other.present)


def test_a_run_starts_with_the_running_averages_of_an_export(folder: Path, params: Params) -> None:
    target = sharding.abstract_params(FORWARD.shapes, one_device())
    start, step = load_start(folder / "safetensors", target, {"model": MODEL})
    assert step == 1
    trainer = Trainer(FORWARD, MaskObjective(), OptimConfig(ema_decay=0.9), 10, one_device())
    # Copied: the state gives its arrays away.
    state = trainer.create_from(jax.tree.map(jnp.copy, start))
    for path in FORWARD.statistics:
        np.testing.assert_array_equal(state.params[path], params[path])
        np.testing.assert_array_equal(state.eval_params[path], params[path])


def test_a_group_norm_has_no_running_averages() -> None:
    assert not forward_of({**MODEL, "norm": "group"}).statistics
