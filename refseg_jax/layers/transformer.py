"""The residual block of CLIP's transformers, and the MLP of all transformers."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from refseg_jax.layers.attention import MultiHeadAttention
from refseg_jax.layers.linear import Initializer, Linear, gaussian
from refseg_jax.layers.norm import LayerNorm


def quick_gelu(x: jax.Array) -> jax.Array:
    """`x * sigmoid(1.702 x)`, CLIP's activation."""
    return x * jax.nn.sigmoid(1.702 * x)


def exact_gelu(x: jax.Array) -> jax.Array:
    """`x * (1 + erf(x / sqrt(2))) / 2`, computed in f32: the activation of Swin and BERT.

    `jax.nn.gelu` uses a tanh approximation by default. Its exact formula calls `erfc`, whose two
    branches a CPU computes both. The sum `1 + erf` costs at most 9e-7 of accuracy in f32, but would
    cost too much in bf16.
    """
    wide = x.astype(jnp.float32)
    return (0.5 * wide * (1.0 + jax.lax.erf(wide * 2**-0.5))).astype(x.dtype)


#: `exact_gelu` whose backward pass computes it again, and stores nothing beside its input.
recomputed_gelu = jax.checkpoint(exact_gelu)

#: Activations of CLIP's MLPs by their name in configs: OpenAI's, and that of most OpenCLIP models.
ACTIVATIONS: Mapping[str, Callable[[jax.Array], jax.Array]] = {
    "quick_gelu": quick_gelu,
    "gelu": exact_gelu,
}


@dataclasses.dataclass(frozen=True)
class BlockScales:
    """Standard deviations of the initial kernels in CLIP's transformers.

    Attributes:
        attention: of the projections to query, key and value.
        output: of the last product of each residual branch (`out` and `down`).
        up: of the first product of an MLP.
    """

    attention: float
    output: float
    up: float

    @classmethod
    def of(cls, width: int, layers: int) -> "BlockScales":
        """The scales of OpenAI's CLIP: `output` shrinks with the number of layers."""
        attention = width**-0.5
        return cls(attention, attention * (2 * layers) ** -0.5, (2 * width) ** -0.5)


class Mlp(nnx.Module):
    """A two-layer perceptron: `down(activation(up(x)))`."""

    def __init__(
        self,
        width: int,
        hidden: int,
        *,
        activation: Callable[[jax.Array], jax.Array],
        up_init: Initializer,
        down_init: Initializer,
        dtype: Any,
        rngs: nnx.Rngs,
    ):
        self.up = Linear(width, hidden, dtype=dtype, rngs=rngs, kernel_init=up_init)
        self.down = Linear(hidden, width, dtype=dtype, rngs=rngs, kernel_init=down_init)
        self.activation = activation

    def __call__(self, x: jax.Array) -> jax.Array:
        """`[..., width]` to the same shape."""
        # The backward pass computes the activation again. Else its sigmoid or error function and its
        # result would be stored beside its input, all as wide as the hidden layer.
        return jax.checkpoint(lambda hidden: self.down(self.activation(hidden)))(self.up(x))


class TransformerBlock(nnx.Module):
    """A pre-norm block: `x += attention(norm(x)); x += mlp(norm(x))`."""

    def __init__(
        self,
        width: int,
        heads: int,
        *,
        activation: str,
        scales: BlockScales,
        dtype: Any,
        rngs: nnx.Rngs,
    ):
        self.attention_norm = LayerNorm(width, dtype=dtype)
        self.attention = MultiHeadAttention(
            width,
            heads,
            dtype=dtype,
            rngs=rngs,
            kernel_init=gaussian(scales.attention),
            output_init=gaussian(scales.output),
        )
        self.mlp_norm = LayerNorm(width, dtype=dtype)
        self.mlp = Mlp(
            width,
            4 * width,
            activation=ACTIVATIONS[activation],
            up_init=gaussian(scales.up),
            down_init=gaussian(scales.output),
            dtype=dtype,
            rngs=rngs,
        )

    def __call__(self, x: jax.Array, *, causal: bool = False) -> jax.Array:
        """`[B, T, width]` to the same shape."""
        normed = self.attention_norm(x)
        x = x + self.attention(normed, normed, normed, causal=causal)
        return x + self.mlp(self.mlp_norm(x))


def run_block(block: Callable[..., Any], *args: Any, remat: bool, **kwargs: Any) -> Any:
    """Calls a block; with `remat`, the backward pass recomputes its activations (none are stored)."""
    call = lambda *inputs: block(*inputs, **kwargs)  # noqa: E731  # pyright: ignore
    return (jax.checkpoint(call) if remat else call)(*args)
