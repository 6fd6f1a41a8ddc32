"""The smallest model with batch normalisation, on images and on pairs, and batches for it."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from refseg_jax.batch import Batch, SegOutput
from refseg_jax.layers.batch_norm import BatchNorm
from refseg_jax.layers.linear import Linear
from refseg_jax.layers.rows import over_images, repeat_rows
from refseg_jax.models.forward import Forward
from refseg_jax.training.objectives import MaskObjective
from refseg_jax.training.optim import OptimConfig
from refseg_jax.training.state import Trainer
from tests.refseg_jax.training.tiny_run import one_device

SIDE, CELLS, WIDTH = 8, 4, 6
STATISTICS = {f"{layer}.{name}" for layer in ("seen", "joined") for name in ("mean", "variance")}


class Normed(nnx.Module):
    """Colours of cells and the mean of word vectors, each normalised, then multiplied to logits."""

    def __init__(self, rngs: nnx.Rngs):
        self.colours = Linear(3, WIDTH, dtype=jnp.float32, rngs=rngs)
        self.seen = BatchNorm(WIDTH, dtype=jnp.float32, rngs=rngs)
        self.words = nnx.Embed(49408, WIDTH, rngs=rngs)
        self.joined = BatchNorm(WIDTH, dtype=jnp.float32, rngs=rngs)
        self.head = Linear(WIDTH, 1, dtype=jnp.float32, rngs=rngs)

    def __call__(self, batch: Batch, *, rngs: nnx.Rngs | None = None) -> SegOutput:
        training = rngs is not None
        b, n, height, width, _ = batch.image.shape
        k = batch.text.shape[1]
        valid = jnp.asarray(batch.valid)
        cells = jnp.asarray(batch.image, jnp.float32).reshape(
            b * n, height // 2, 2, width // 2, 2, 3
        )
        maps = self.colours(cells.mean((2, 4)) / 255.0)
        maps = jax.nn.relu(self.seen(maps, valid.any(-1).reshape(-1), training=training))
        words = self.words(jnp.asarray(batch.text)) * jnp.asarray(batch.text_valid)[..., None]
        pairs = repeat_rows(maps, k) * over_images(words.sum(2), n)[:, None, None]
        pairs = self.joined(pairs, valid.reshape(-1), training=training)
        logits = self.head(pairs)[..., 0]
        return SegOutput(logits.reshape(b, n, k, height // 2, width // 2))


def normed_forward() -> Forward[Normed]:
    return Forward(Normed)


def normed_batch(rows: int = 4, images: int = 2, seed: int = 0) -> Batch:
    """Random rows with 3 expressions; about a third of the pairs do not count."""
    rng = np.random.default_rng(seed)
    pairs = (rows, images, 3)
    return Batch(
        image=rng.integers(0, 256, (rows, images, SIDE, SIDE, 3), np.uint8),
        text=rng.integers(0, 99, (rows, 3, 5), np.int32),
        text_valid=np.ones((rows, 3, 5), bool),
        mask=rng.integers(0, 256, (*pairs, CELLS, CELLS), np.uint8),
        present=np.ones(pairs, bool),
        valid=rng.random(pairs) < 0.7,
        size=np.full((rows, images, 2), SIDE, np.int32),
        affine=np.zeros((rows, images, 2, 3), np.float32),
    )


def normed_trainer(steps: int = 10, **fields: Any) -> Trainer:
    # The gradient of a bias before a norm is rounding alone: with Adam's own epsilon, its steps would
    # be full steps of random sign.
    defaults = {"lr": 0.1, "warmup": 0.0, "weight_decay": 0.1, "eps": 1e-3}
    config = OptimConfig(**{**defaults, **fields})
    return Trainer(normed_forward(), MaskObjective(1.0, 0.5), config, steps, one_device())
