"""The unit of which convolutional decoders are built: a product without bias, a norm and a ReLU."""

from typing import Any

import jax
from flax import nnx

from refseg_jax.layers.batch_norm import NormKind, make_norm
from refseg_jax.layers.convolution import Conv3x3
from refseg_jax.layers.linear import Linear


class ConvNormRelu(nnx.Module):
    """`relu(norm(convolution(x)))`, where the norm has the bias.

    Parameter paths are `convolution.kernel`, of shape `[3, 3, I, O]` or, for size 1, `[I, O]`, and those
    of the norm below `norm`. A convolution of size 1 also takes vectors.
    """

    def __init__(
        self, inputs: int, outputs: int, *, size: int, norm: NormKind, dtype: Any, rngs: nnx.Rngs
    ):
        """Creates the convolution and the norm.

        Args:
            inputs, outputs: channels.
            size: side of the kernel, 1 or 3.
            norm: a kind of `make_norm`.
            dtype: compute type; the norm computes in f32.
            rngs: random streams for the parameters.

        Raises:
            ValueError: the size or the norm is unknown.
        """
        if size not in (1, 3):
            raise ValueError(f"size={size} is not 1 or 3")
        self.convolution = (
            Linear(inputs, outputs, dtype=dtype, rngs=rngs, use_bias=False)
            if size == 1
            else Conv3x3(inputs, outputs, dtype=dtype, rngs=rngs)
        )
        self.norm = make_norm(norm, outputs, dtype=dtype, rngs=rngs)

    def __call__(self, x: jax.Array, valid: jax.Array | None, *, training: bool) -> jax.Array:
        """Runs the three steps.

        Args:
            x: `[G, h, w, inputs]`, or `[G, inputs]` if the size is 1.
            valid: bool `[G]`, the rows that count for batch statistics; all do if absent.
            training: whether batch statistics are those of this call.

        Returns:
            The shape of `x`, with `outputs` channels.
        """
        return jax.nn.relu(self.norm(self.convolution(x), valid, training=training))
