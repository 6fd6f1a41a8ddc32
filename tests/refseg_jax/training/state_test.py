"""The step: gradients under accumulation, padding, freezing and averaging."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from refseg_jax import sharding
from refseg_jax.batch import Batch, SegOutput
from refseg_jax.models.forward import Forward
from refseg_jax.training.objectives import MaskObjective, build_objective
from refseg_jax.training.optim import OptimConfig
from refseg_jax.training.state import Trainer


class Toy(nnx.Module):
    """A mask from an image's mean colour and a word vector; linear enough to reason about."""

    def __init__(self, rngs: nnx.Rngs):
        self.words = nnx.Embed(7, 3, rngs=rngs)
        self.head = nnx.Linear(3, 16, rngs=rngs)

    def __call__(self, batch: Batch, *, rngs: nnx.Rngs | None = None) -> SegOutput:
        del rngs
        colour = jnp.asarray(batch.image, jnp.float32).mean((2, 3)) / 255.0
        words = self.words(jnp.asarray(batch.text)).mean(2)
        logits = self.head(colour[:, :, None] * words[:, None])
        return SegOutput(logits.reshape(*logits.shape[:3], 4, 4))


def make_batch(rows: int = 4, seed: int = 0) -> Batch:
    rng = np.random.default_rng(seed)
    return Batch(
        image=rng.integers(0, 256, (rows, 1, 8, 8, 3), np.uint8),
        text=rng.integers(0, 7, (rows, 2, 5), np.int32),
        text_valid=np.ones((rows, 2, 5), bool),
        mask=rng.integers(0, 256, (rows, 1, 2, 4, 4), np.uint8),
        present=np.ones((rows, 1, 2), bool),
        valid=rng.random((rows, 1, 2)) < 0.7,
        size=np.full((rows, 1, 2), 8, np.int32),
        affine=np.zeros((rows, 1, 2, 3), np.float32),
    )


def make_trainer(**fields) -> Trainer:
    mesh = sharding.make_mesh(sharding.MeshConfig())
    config = dataclasses.replace(OptimConfig(lr=0.1, warmup=0.0), **fields)
    return Trainer(Forward(Toy), MaskObjective(1.0, 0.5), config, steps=10, mesh=mesh)


def step_once(trainer: Trainer, batch: Batch):
    state = trainer.create()
    before = jax.tree.map(np.asarray, state.params)
    state, metrics = trainer.compile_step()(state, sharding.put_batch(batch, trainer.mesh))
    return before, state, {name: float(value) for name, value in metrics.items()}


def test_parameters_have_dotted_paths():
    forward = Forward(Toy)
    assert set(forward.shapes) == {"words.embedding", "head.kernel", "head.bias"}
    assert forward.shapes["head.kernel"].shape == (3, 16)


def test_parameters_that_are_not_given_are_drawn_as_ever():
    trainer = make_trainer(ema_decay=0.5)
    plain = trainer.create().params
    given = {"words.embedding": jnp.full((7, 3), 5.0)}
    state = trainer.create_from(given)
    assert state.params.keys() == plain.keys()
    for path, leaf in state.params.items():
        np.testing.assert_array_equal(leaf, given.get(path, plain[path]))
        assert leaf.sharding == plain[path].sharding
        np.testing.assert_array_equal(state.eval_params[path], leaf)
    assert state.step == 0


@pytest.mark.parametrize("parts", [2, 4])
def test_accumulation_changes_neither_loss_nor_update(parts):
    # The rows have unequal numbers of valid pairs: averaging averages would show here.
    batch = make_batch(8)
    assert len({int(v) for v in batch.valid.sum((1, 2))}) > 1
    _, whole, metrics = step_once(make_trainer(), batch)
    _, cut, metrics_cut = step_once(make_trainer(accumulation=parts), batch)
    assert metrics_cut["loss"] == pytest.approx(metrics["loss"], rel=1e-6)
    assert metrics_cut["grad_norm"] == pytest.approx(metrics["grad_norm"], rel=1e-5)
    for path, leaf in whole.params.items():
        np.testing.assert_allclose(leaf, cut.params[path], atol=1e-5)


def test_a_batch_that_cannot_be_cut_is_refused():
    with pytest.raises(ValueError, match="4 rows cannot be cut into 3"):
        step_once(make_trainer(accumulation=3), make_batch(4))


def test_padding_does_not_count():
    batch = make_batch(4)
    garbage = make_batch(4, seed=1)
    both = jax.tree.map(lambda a, b: np.concatenate([a, b]), batch, garbage)
    both.valid[4:] = False
    _, _, alone = step_once(make_trainer(), batch)
    _, _, padded = step_once(make_trainer(), both)
    assert padded["loss"] == pytest.approx(alone["loss"], rel=1e-6)
    assert padded["grad_norm"] == pytest.approx(alone["grad_norm"], rel=1e-5)


def test_frozen_parameters_stay_and_have_no_moments():
    trainer = make_trainer(lr_multipliers=((r"words\..*", 0.0), (r".*", 1.0)))
    before, state, _ = step_once(trainer, make_batch())
    np.testing.assert_array_equal(state.params["words.embedding"], before["words.embedding"])
    assert not np.array_equal(state.params["head.kernel"], before["head.kernel"])
    moments = [x for x in jax.tree.leaves(state.opt_state) if x.shape == (7, 3)]
    assert not moments


def test_average_is_what_evaluation_uses():
    before, state, _ = step_once(make_trainer(ema_decay=0.5), make_batch())
    kernel = "head.kernel"
    # At step 0 the decay is min(0.5, 1/10).
    expected = 0.1 * before[kernel] + 0.9 * np.asarray(state.params[kernel])
    np.testing.assert_allclose(state.eval_params[kernel], expected, rtol=1e-5, atol=1e-7)


def test_one_compilation_for_many_steps():
    trainer = make_trainer()
    state, step = trainer.create(), trainer.compile_step()
    for seed in range(3):
        state, _ = step(state, sharding.put_batch(make_batch(seed=seed), trainer.mesh))
    assert step._cache_size() == 1
    assert int(state.step) == 3


def test_a_mistyped_objective_field_names_the_nearest():
    with pytest.raises(ValueError, match="did you mean 'dice'"):
        build_objective({"name": "mask", "dise": 1.0})
    with pytest.raises(ValueError, match="there are: group, mask"):
        build_objective({"name": "xyzzy"})
