"""Predicts whether the image contains anything that the expression refers to."""

import math
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from refseg_jax.layers.linear import Linear


class PresenceHead(nnx.Module):
    """A presence head for models whose paper has none.

        down(relu(up([mean over tokens, max over tokens, sentence])))

    ReLA (Liu, Ding and Jiang 2023, section 4.1) uses the mean of its regions; here the decoded image
    tokens take the place of regions. The maximum is for small referents, because one patch among
    hundreds hardly changes the mean. The sentence tells the head what to look for.
    """

    def __init__(self, *, width: int, state_width: int, dtype: Any, rngs: nnx.Rngs):
        """Creates the two layers.

        Args:
            width: channels of the tokens and of the hidden layer.
            state_width: channels of the sentences.
            dtype: compute type.
            rngs: random streams for the parameters.
        """
        self.up = Linear(2 * width + state_width, width, dtype=dtype, rngs=rngs)
        self.down = Linear(width, 1, dtype=dtype, rngs=rngs)

    def __call__(self, tokens: jax.Array, sentence: jax.Array) -> jax.Array:
        """Predicts presence for G pairs of image and expression.

        Args:
            tokens: decoded image tokens, `[G, P, width]`.
            sentence: `[G, state_width]`.

        Returns:
            Logits f32 `[G]`, positive if the image contains a referent.
        """
        wide = tokens.astype(jnp.float32)
        pooled = (jnp.mean(wide, 1), jnp.max(wide, 1), sentence.astype(jnp.float32))
        hidden = jax.nn.relu(self.up(jnp.concatenate(pooled, -1)))
        return self.down(hidden).astype(jnp.float32)[:, 0]


class MaskEvidence(nnx.Module):
    """The evidence for presence in a decoded mask: a term that is added to the presence logit.

        area      = log mean over cells of sigmoid(m)
        peak      = max over cells of m
        certainty = sum of sigmoid(m) m / sum of sigmoid(m)
        down(relu(up([area, peak, certainty])))

    Not in the papers, whose presence heads use only features; the 50-pixel rule in section 5.3 of the
    ReLA paper, by contrast, decides by the size of the mask alone. All cells of the network's input
    count, including the border of a letterbox. The kernel of `down` starts at zero. No gradient flows
    back to the masks, so that only their own loss trains them.
    """

    HIDDEN = 16

    def __init__(self, *, rngs: nnx.Rngs):
        zeros = jax.nn.initializers.zeros
        self.up = Linear(3, self.HIDDEN, dtype=jnp.float32, rngs=rngs)
        self.down = Linear(self.HIDDEN, 1, dtype=jnp.float32, rngs=rngs, kernel_init=zeros)

    def __call__(self, logits: jax.Array) -> jax.Array:
        """Mask logits f32 `[G, h, w]` to terms of the presence logits, f32 `[G]`."""
        cells = jax.lax.stop_gradient(logits).reshape(logits.shape[0], -1)
        weights = jax.nn.log_sigmoid(cells)
        total = jax.nn.logsumexp(weights, -1)
        certainty = (jax.nn.softmax(weights, -1) * cells).sum(-1)
        features = jnp.stack((total - math.log(cells.shape[1]), cells.max(-1), certainty), -1)
        return self.down(jax.nn.relu(self.up(features)))[:, 0]
