"""The residual block of CLIP's transformers."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
from flax import nnx

from refseg_jax.layers.attention import MultiHeadAttention
from refseg_jax.layers.linear import Linear, gaussian
from refseg_jax.layers.norm import LayerNorm


def quick_gelu(x: jax.Array) -> jax.Array:
    """`x * sigmoid(1.702 x)`, CLIP's activation."""
    return x * jax.nn.sigmoid(1.702 * x)


@dataclasses.dataclass(frozen=True)
class BlockScales:
    """Standard deviations that CLIP's own transformers start with."""

    attention: float
    output: float
    up: float

    @classmethod
    def of(cls, width: int, layers: int) -> "BlockScales":
        """CLIP's rule: residual branches shrink with the depth of the transformer."""
        attention = width**-0.5
        return cls(attention, attention * (2 * layers) ** -0.5, (2 * width) ** -0.5)


class QuickGeluMlp(nnx.Module):
    """`down(quick_gelu(up(x)))`, four times as wide inside."""

    def __init__(self, width: int, *, scales: BlockScales, dtype: Any, rngs: nnx.Rngs):
        up_init, down_init = gaussian(scales.up), gaussian(scales.output)
        self.up = Linear(width, 4 * width, dtype=dtype, rngs=rngs, kernel_init=up_init)
        self.down = Linear(4 * width, width, dtype=dtype, rngs=rngs, kernel_init=down_init)

    def __call__(self, x: jax.Array) -> jax.Array:
        """`[..., width]` to the same shape."""
        return self.down(quick_gelu(self.up(x)))


class TransformerBlock(nnx.Module):
    """`x += attention(norm(x)); x += mlp(norm(x))`."""

    def __init__(self, width: int, heads: int, *, scales: BlockScales, dtype: Any, rngs: nnx.Rngs):
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
        self.mlp = QuickGeluMlp(width, scales=scales, dtype=dtype, rngs=rngs)

    def __call__(self, x: jax.Array, *, causal: bool = False) -> jax.Array:
        """`[B, T, width]` to the same shape."""
        normed = self.attention_norm(x)
        x = x + self.attention(normed, normed, normed, causal=causal)
        return x + self.mlp(self.mlp_norm(x))


def run_block(block: Callable[..., Any], *args: Any, remat: bool, **kwargs: Any) -> Any:
    """Calls a block; with `remat` its inside is computed again in the backward pass, not stored."""
    call = lambda *inputs: block(*inputs, **kwargs)  # noqa: E731  # pyright: ignore
    return (jax.checkpoint(call) if remat else call)(*args)
