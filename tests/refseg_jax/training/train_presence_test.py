"""A presence head, and what it makes of the mask, learn from what the pipeline says is there."""

import itertools
from pathlib import Path

import jax
import numpy as np
import pytest

from input_pipeline import pipeline
from refseg_jax import sharding
from refseg_jax.models import build_model
from refseg_jax.models.forward import Forward
from refseg_jax.training.objectives import build_objective
from refseg_jax.training.optim import OptimConfig
from refseg_jax.training.state import Trainer
from tests.input_pipeline.tiny_dataset import build_tiny_dataset
from tests.refseg_jax.training.tiny_run import WITH_PRESENCE, data_config, one_device

STEPS = 25


@pytest.mark.long
def test_the_presence_term_falls_and_the_head_tells_what_is_there(tmp_path: Path) -> None:
    build_tiny_dataset(tmp_path, {"train": 12})
    config = data_config(tmp_path, "train", pairs=6)
    batches = pipeline.train_batches(config, batch_size=4, seed=0)
    trainer = Trainer(
        Forward(lambda rngs: build_model({**WITH_PRESENCE, "mask_evidence": True}, rngs=rngs)),
        build_objective({"name": "mask", "presence": 0.5}),
        OptimConfig(lr=1e-2, warmup=0.1),
        steps=STEPS,
        mesh=one_device(),
    )
    state = trainer.create()
    heads = ("presence.", "evidence.")
    head = {p: np.asarray(x) for p, x in state.params.items() if p.startswith(heads)}
    assert len(head) == 8
    step = trainer.compile_step()
    terms = []
    for host in itertools.islice(batches, STEPS):
        said = np.array([meta.granularities for meta in host.meta])[:, None]
        assert host.batch.valid.all()
        # One of an image's six expressions means nothing in it.
        np.testing.assert_array_equal(host.batch.present, said != "none")
        assert (said == "none").sum() == 4
        state, metrics = step(state, sharding.put_batch(host.batch, trainer.mesh))
        assert set(metrics) >= {"loss/cross_entropy", "loss/presence"}
        terms.append({name: float(value) for name, value in metrics.items()})
    first, last = terms[0], terms[-1]
    assert last["loss/presence"] < 0.3 * first["loss/presence"]
    assert last["loss/cross_entropy"] < first["loss/cross_entropy"]
    assert all(np.abs(state.params[path] - value).max() > 0 for path, value in head.items())
    output = jax.jit(trainer.forward.apply)(state.params, host.batch)
    np.testing.assert_array_equal(np.asarray(output.present_logits) > 0, host.batch.present)
