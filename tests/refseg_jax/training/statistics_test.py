"""Running averages of batch normalisation in a training: who moves them, and what they may change."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from refseg_jax import sharding
from refseg_jax.batch import Batch
from refseg_jax.errors import UserError
from refseg_jax.models.forward import Forward
from refseg_jax.training.state import Trainer, TrainState
from tests.refseg_jax.training.normed_model import (
    STATISTICS,
    normed_batch,
    normed_forward,
    normed_trainer,
)


def numpy_of(params: Any) -> dict[str, np.ndarray]:
    return {path: np.array(leaf) for path, leaf in params.items()}


def train(trainer: Trainer, *batches: Batch) -> tuple[TrainState, list[float]]:
    state, step = trainer.create(), trainer.compile_step()
    losses = []
    for batch in batches:
        state, metrics = step(state, sharding.put_batch(batch, trainer.mesh))
        losses.append(float(metrics["loss"]))
    return state, losses


def test_statistics_are_named_and_are_no_parameters():
    trainer = normed_trainer()
    assert trainer.forward.statistics == STATISTICS
    assert trainer.forward.shapes.keys() - trainer.trainable == STATISTICS
    drawn = numpy_of(trainer.create().params)
    for path in STATISTICS:
        np.testing.assert_array_equal(drawn[path], float(path.endswith("variance")))


def test_other_variables_are_refused():
    class Counting(nnx.Module):
        def __init__(self, rngs: nnx.Rngs):
            self.kernel = nnx.Param(jnp.zeros(3))
            self.calls = nnx.Variable(jnp.zeros(()))

    with pytest.raises(ValueError, match="neither parameters nor statistics: calls"):
        Forward(Counting)


def test_a_step_moves_the_averages_by_the_pairs_that_count():
    trainer, batch = normed_trainer(), normed_batch()
    before = numpy_of(trainer.create().params)
    state, _ = train(trainer, batch)
    cells = batch.image.astype(np.float64).reshape(8, 4, 2, 4, 2, 3).mean((2, 4)) / 255.0
    maps = cells @ before["colours.kernel"] + before["colours.bias"]
    counted = maps[batch.valid.any(-1).reshape(-1)].reshape(-1, maps.shape[-1])
    np.testing.assert_allclose(state.params["seen.mean"], 0.1 * counted.mean(0), atol=1e-6)
    np.testing.assert_allclose(
        state.params["seen.variance"], 0.9 + 0.1 * counted.var(0, ddof=1), rtol=1e-5
    )
    # Neither weight decay nor Adam has touched them, and there are no moments of them.
    moments = [
        x for x in jax.tree_util.tree_leaves_with_path(state.opt_state) if "seen.mean" in str(x)
    ]
    assert not moments


def test_inference_uses_the_averages_and_leaves_them():
    trainer, batch = normed_trainer(), normed_batch()
    state, _ = train(trainer, batch)
    apply = jax.jit(trainer.forward.apply)
    alone = jax.tree.map(lambda x: x[:1], batch)
    both = apply(state.params, batch).mask_logits
    np.testing.assert_allclose(apply(state.params, alone).mask_logits, both[:1], atol=1e-5)
    trained, _ = trainer.forward.apply_training(state.params, batch, jax.random.key(0))
    assert np.abs(trained.mask_logits - both).max() > 1e-2


@pytest.mark.parametrize("whole_rows", [True, False])
def test_pairs_that_do_not_count_change_nothing(whole_rows: bool):
    batch, garbage = normed_batch(4), normed_batch(4, seed=1)
    both = jax.tree.map(lambda a, b: np.concatenate([a, b]), batch, garbage)
    if whole_rows:
        both.valid[4:] = False
    else:
        # Garbage in the single pairs that do not count: their words, and images without any.
        batch = both
        batch.valid[:, :, 2] = False
        batch.valid[:, 1] = False
        both = jax.tree.map(np.copy, batch)
        both.text[:, 2] = 7
        both.image[:, 1] = 255
    alone, losses = train(normed_trainer(), batch, batch)
    padded, losses_padded = train(normed_trainer(), both, both)
    np.testing.assert_allclose(losses, losses_padded, rtol=1e-6)
    for path in STATISTICS:
        np.testing.assert_allclose(padded.params[path], alone.params[path], rtol=1e-5, atol=1e-6)


def test_the_average_of_parameters_has_the_statistics_too():
    trainer = normed_trainer(ema_decay=0.5)
    before = numpy_of(trainer.create().params)
    state, _ = train(trainer, normed_batch())
    assert state.ema is not None
    for path in STATISTICS:
        expected = 0.1 * before[path] + 0.9 * np.asarray(state.params[path])
        np.testing.assert_allclose(state.eval_params[path], expected, rtol=1e-5, atol=1e-7)


def test_statistics_that_are_not_given_start_afresh():
    trainer = normed_trainer()
    given = {path: leaf + 1.0 for path, leaf in trainer.create().params.items()}
    state = trainer.create_from(dict(given))
    np.testing.assert_array_equal(state.params["seen.variance"], 2.0)
    left = {path: leaf + 1.0 for path, leaf in trainer.create().params.items()}
    del left["seen.variance"]
    np.testing.assert_array_equal(trainer.create_from(left).params["seen.variance"], 1.0)


def test_a_frozen_layer_normalises_by_its_running_averages():
    trainer = normed_trainer(lr_multipliers=((r"seen\..*", 0.0), (r".*", 1.0)))
    batch = normed_batch()
    before = numpy_of(trainer.create().params)
    state, losses = train(trainer, batch)
    after = numpy_of(state.params)
    assert {p for p in after if np.array_equal(after[p], before[p])} == {
        f"seen.{name}" for name in ("scale", "bias", "mean", "variance")
    }
    # Its result no longer depends on the batch: the running averages of the start are 0 and 1.
    model = trainer.forward.bind(before)
    model.seen.frozen = True
    key = jax.random.fold_in(jax.random.fold_in(jax.random.key(trainer.seed + 1), 0), 0)
    output = model(batch, rngs=nnx.Rngs(dropout=key))
    terms = trainer.objective(output, batch, jnp.float32(0))
    expected = sum(t.coefficient * t.sum / t.weight for t in terms.values())
    assert losses[0] == pytest.approx(float(expected), rel=1e-5)


def test_frozen_parameters_alone_let_the_averages_follow_as_in_torch():
    trainer = normed_trainer(lr_multipliers=((r"seen\.(scale|bias)", 0.0), (r".*", 1.0)))
    state, _ = train(trainer, normed_batch())
    np.testing.assert_array_equal(state.params["seen.scale"], 1.0)
    assert (np.asarray(state.params["seen.mean"]) != 0.0).all()


def test_accumulation_is_refused_in_one_line():
    with pytest.raises(UserError, match=r"config\.optim\.accumulation=2: .*microbatch") as caught:
        normed_trainer(accumulation=2)
    assert "\n" not in str(caught.value)
    assert "--config.optim.microbatch_statistics=True" in str(caught.value)


def test_microbatches_move_the_averages_in_order_where_this_is_allowed():
    batch = normed_batch(4)
    trainer = normed_trainer(accumulation=2, microbatch_statistics=True)
    # Each device keeps its own rows: microbatch 0 has rows 0 and 2.
    parts = [jax.tree.map(lambda x, n=n: x[n::2], batch) for n in range(2)]
    params = trainer.create().params
    for part in parts:
        _, moved = trainer.forward.apply_training(params, part, jax.random.key(0))
        params = {**params, **moved}
    state, _ = train(trainer, batch)
    for path in STATISTICS:
        np.testing.assert_allclose(state.params[path], params[path], rtol=1e-5, atol=1e-6)


def test_accumulation_over_frozen_layers_keeps_its_promise():
    frozen = {"lr_multipliers": ((r"(seen|joined)\..*", 0.0), (r".*", 1.0))}
    batch = normed_batch(4)
    whole, losses = train(normed_trainer(**frozen), batch)
    cut, losses_cut = train(normed_trainer(**frozen, accumulation=2), batch)
    assert losses_cut == pytest.approx(losses, rel=1e-6)
    for path, leaf in whole.params.items():
        np.testing.assert_allclose(leaf, cut.params[path], atol=1e-5)


def test_a_state_is_cut_like_its_parameters():
    trainer = normed_trainer(ema_decay=0.9)
    layouts = trainer.shardings()
    assert layouts.params.keys() == trainer.forward.shapes.keys()
    assert layouts.ema is not None and layouts.ema.keys() == layouts.params.keys()
    assert normed_forward().statistics <= trainer.abstract().params.keys()
