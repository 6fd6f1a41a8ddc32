"""Is there anything at all that an expression means: what features and masks say of it."""

import math
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from refseg_jax.layers.linear import Linear


class PresenceHead(nnx.Module):
    """`down(relu(up([mean over tokens, max over tokens, sentence])))`, for models without a head.

    ReLA (Liu, Ding and Jiang 2023, section 4.3) asks the mean of its regions; here decoded image
    tokens stand for regions. The maximum is there for what is small: one patch of hundreds hardly
    moves the mean. The sentence tells what was asked for.
    """

    def __init__(self, *, width: int, state_width: int, dtype: Any, rngs: nnx.Rngs):
        """`width`: of tokens and of the hidden layer. `state_width`: of sentences."""
        self.up = Linear(2 * width + state_width, width, dtype=dtype, rngs=rngs)
        self.down = Linear(width, 1, dtype=dtype, rngs=rngs)

    def __call__(self, tokens: jax.Array, sentence: jax.Array) -> jax.Array:
        """One logit a pair of image and expression; above 0 there is something.

        Args:
            tokens: decoded, `[G, P, width]`.
            sentence: `[G, state_width]`.

        Returns:
            f32 `[G]`.
        """
        wide = tokens.astype(jnp.float32)
        pooled = (jnp.mean(wide, 1), jnp.max(wide, 1), sentence.astype(jnp.float32))
        hidden = jax.nn.relu(self.up(jnp.concatenate(pooled, -1)))
        return self.down(hidden).astype(jnp.float32)[:, 0]


class MaskEvidence(nnx.Module):
    """What a decoded mask says of whether anything is there: a term of the presence logit.

        area      = log mean over cells of sigmoid(m)
        peak      = max over cells of m
        certainty = sum of sigmoid(m) m / sum of sigmoid(m)
        down(relu(up([area, peak, certainty])))

    Not in the papers, whose heads see features alone: the size of the mask is what ReLA's pixel rule
    decides by (section 5.3). Cells are of the network's input, its border included. `down` starts with
    zeros. Masks get no gradient from here, so that their own losses alone teach them.
    """

    HIDDEN = 16

    def __init__(self, *, rngs: nnx.Rngs):
        zeros = jax.nn.initializers.zeros
        self.up = Linear(3, self.HIDDEN, dtype=jnp.float32, rngs=rngs)
        self.down = Linear(self.HIDDEN, 1, dtype=jnp.float32, rngs=rngs, kernel_init=zeros)

    def __call__(self, logits: jax.Array) -> jax.Array:
        """f32 mask logits `[G, h, w]` to logits f32 `[G]`."""
        cells = jax.lax.stop_gradient(logits).reshape(logits.shape[0], -1)
        weights = jax.nn.log_sigmoid(cells)
        total = jax.nn.logsumexp(weights, -1)
        certainty = (jax.nn.softmax(weights, -1) * cells).sum(-1)
        features = jnp.stack((total - math.log(cells.shape[1]), cells.max(-1), certainty), -1)
        return self.down(jax.nn.relu(self.up(features)))[:, 0]
