"""Is there anything at all that an expression means: a head for models that have none of their own."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from refseg_jax.layers.linear import Linear


class PresenceHead(nnx.Module):
    """`down(relu(up([mean over tokens, max over tokens, sentence])))`.

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
