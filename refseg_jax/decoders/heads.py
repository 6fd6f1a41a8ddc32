"""Mask heads of UniRES: from fused image tokens to mask logits.

The UniRES paper says "a linear projection layer" (section 5). `linear` and `pixel_shuffle` follow the
wording; `projector` is the head of CRIS, on which UniRES builds; `pixel_kernel` is for models that are
trained from scratch.
"""

import math
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from refseg_jax.images.resize import upsample_bilinear
from refseg_jax.layers.convolution import UpsampleConv3x3, dynamic_conv3x3
from refseg_jax.layers.linear import Linear, gaussian
from refseg_jax.layers.norm import GroupNorm

#: Names of the heads in configs.
HEADS = ("projector", "pixel_shuffle", "linear", "pixel_kernel")

#: Initial foreground probability of every mask cell, set by the bias of the logits. Not stated in the
#: paper; without it, training would begin with unlearning masks that are half foreground.
FOREGROUND_PRIOR = 0.1

#: Channels of the kernels and of the projected pixel features of the head `pixel_kernel`.
KERNEL_WIDTH = 32


class ProjectorHead(nnx.Module):
    """CRIS's projector, whose last convolution has a kernel that is predicted from the sentence.

    `log2(factor)` times: upsampling by 2, 3x3 convolution, norm, ReLU (the last one halves the width).
    Then a 1x1 convolution, and a 3x3 convolution to one channel whose kernel and bias are a linear
    function of the sentence. The 1x1 convolution is folded into that kernel, which is exact.
    """

    def __init__(self, *, width: int, state_width: int, factor: int, dtype: Any, rngs: nnx.Rngs):
        stages = factor.bit_length() - 1
        if factor < 2 or factor != 1 << stages:
            raise ValueError(
                f"head 'projector' doubles the resolution: patch_size / mask_stride = {factor} "
                "is not 2, 4, 8 ...; take another mask_stride or head 'pixel_shuffle'"
            )
        widths = [width] * stages + [width // 2]
        self.convolutions = nnx.List(
            [
                UpsampleConv3x3(widths[i], widths[i + 1], dtype=dtype, rngs=rngs)
                for i in range(stages)
            ]
        )
        self.norms = nnx.List(
            [GroupNorm(w, groups=math.gcd(32, w), dtype=dtype) for w in widths[1:]]
        )
        last = widths[-1]
        self.projection = Linear(last, last, dtype=dtype, rngs=rngs)
        self.text = Linear(
            state_width,
            9 * last + 1,
            dtype=dtype,
            rngs=rngs,
            kernel_init=gaussian((state_width * 9 * last) ** -0.5),
        )
        self.text.bias[...] = self.text.bias[...].at[-1].set(_prior_logit())  # pyright: ignore

    def __call__(self, tokens: jax.Array, state: jax.Array) -> jax.Array:
        """See `build_head`."""
        x = _as_map(tokens)
        for convolution, norm in zip(self.convolutions, self.norms, strict=True):
            x = jax.nn.relu(norm(convolution(x)))
        written = self.text(state).astype(jnp.float32)
        kernel = written[:, :-1].reshape(state.shape[0], x.shape[-1], 9).transpose(0, 2, 1)
        folded = jnp.einsum("btc,dc->btd", kernel, self.projection.kernel[...])
        offset = jnp.einsum("btc,c->bt", kernel, self.projection.bias[...])  # pyright: ignore
        return dynamic_conv3x3(x, folded, offset) + written[:, -1, None, None]


class PixelShuffleHead(nnx.Module):
    """A linear map from each token to the `factor * factor` logits of its patch.

    The sentence is not used: the tokens have already attended to the words.
    """

    def __init__(self, *, width: int, factor: int, dtype: Any, rngs: nnx.Rngs):
        self.projection = Linear(width, factor * factor, dtype=dtype, rngs=rngs)
        _start_at_prior(self.projection)
        self.factor = factor

    def __call__(self, tokens: jax.Array, state: jax.Array) -> jax.Array:
        """See `build_head`."""
        del state
        logits = _as_map(self.projection(tokens).astype(jnp.float32))
        rows, height, width, _ = logits.shape
        cells = logits.reshape(rows, height, width, self.factor, self.factor)
        return cells.transpose(0, 1, 3, 2, 4).reshape(
            rows, height * self.factor, width * self.factor
        )


class LinearHead(nnx.Module):
    """A linear map from each token to one logit, then bilinear upsampling (half-pixel centres).

    The sentence is not used: the tokens have already attended to the words.
    """

    def __init__(self, *, width: int, factor: int, dtype: Any, rngs: nnx.Rngs):
        self.projection = Linear(width, 1, dtype=dtype, rngs=rngs)
        _start_at_prior(self.projection)
        self.factor = factor

    def __call__(self, tokens: jax.Array, state: jax.Array) -> jax.Array:
        """See `build_head`."""
        del state
        logits = _as_map(self.projection(tokens).astype(jnp.float32))
        return upsample_bilinear(logits, self.factor)[..., 0]


class PixelKernelHead(nnx.Module):
    """Each token predicts a kernel, which is multiplied with the pixel features of its patch.

    Not in the paper. It is MaskFormer's product of mask and pixel embeddings (Cheng et al. 2021), with
    a kernel for each patch: the tokens tell what is referred to, and the pixel features, which a
    convolutional stem computes once per image, tell where its edges are. A mask takes only
    `kernel_width` multiplications per cell, so fine masks are cheap.
    """

    def __init__(
        self,
        *,
        width: int,
        pixel_width: int,
        kernel_width: int,
        subcells: int,
        dtype: Any,
        rngs: nnx.Rngs,
    ):
        """Creates the two projections.

        Args:
            width: channels of the tokens.
            pixel_width: channels of the pixel features.
            kernel_width: channels of the kernels.
            subcells: mask cells along a side of the cell of a pixel feature.
            dtype: compute type.
            rngs: random streams for the parameters.
        """
        channels = subcells * subcells * kernel_width
        self.pixel_projection = Linear(pixel_width, channels, dtype=dtype, rngs=rngs)
        self.kernel = Linear(width, kernel_width + 1, dtype=dtype, rngs=rngs)
        self.kernel.bias[...] = self.kernel.bias[...].at[-1].set(_prior_logit())  # pyright: ignore
        self.kernel_width = kernel_width
        self.subcells = subcells

    def project(self, pixels: jax.Array) -> jax.Array:
        """Projects the pixel features of an image, which does not depend on the words.

        Args:
            pixels: `[B, P, c * c, pixel_width]`, the features of the c x c cells of each patch.

        Returns:
            `[B, P, c * c * subcells * subcells, kernel_width]`.
        """
        projected = self.pixel_projection(pixels)
        return projected.reshape(*pixels.shape[:2], -1, self.kernel_width)

    def __call__(self, tokens: jax.Array, pixels: jax.Array) -> jax.Array:
        """Computes the masks of K expressions per image.

        Args:
            tokens: `[B * K, P, width]` of a square grid.
            pixels: `[B, P, cells, kernel_width]`, the output of `project`.

        Returns:
            Mask logits f32 `[B * K, h, w]`.
        """
        rows, count, cells, width = pixels.shape
        written = self.kernel(tokens).reshape(rows, -1, count, width + 1)
        logits = jnp.einsum(
            "bkpc,bpmc->bkpm", written[..., :-1], pixels, preferred_element_type=jnp.float32
        )
        logits = logits * width**-0.5 + written[..., -1:].astype(jnp.float32)
        grid, fine = math.isqrt(count), self.subcells
        coarse = math.isqrt(cells) // fine
        squares = logits.reshape(-1, grid, grid, coarse, coarse, fine, fine)
        side = grid * coarse * fine
        return squares.transpose(0, 1, 3, 5, 2, 4, 6).reshape(-1, side, side)


def build_head(
    name: str, *, width: int, state_width: int, factor: int, dtype: Any, rngs: nnx.Rngs
) -> nnx.Module:
    """Builds a head by name (`projector`, `pixel_shuffle` or `linear`).

    The head is called with tokens `[B, P, width]` of a square grid and sentences `[B, state_width]`,
    and returns mask logits f32 `[B, h, w]`.

    Args:
        name: name of the head.
        width: channels of the tokens.
        state_width: channels of the sentences.
        factor: mask cells along a side of a patch.
        dtype: compute type.
        rngs: random streams for the parameters.

    Raises:
        ValueError: the head does not support this factor.
    """
    if name == "projector":
        return ProjectorHead(
            width=width, state_width=state_width, factor=factor, dtype=dtype, rngs=rngs
        )
    plain = {"pixel_shuffle": PixelShuffleHead, "linear": LinearHead}[name]
    return plain(width=width, factor=factor, dtype=dtype, rngs=rngs)


def _as_map(tokens: jax.Array) -> jax.Array:
    """`[B, P, C]` of a square grid to `[B, side, side, C]`."""
    side = math.isqrt(tokens.shape[1])
    return tokens.reshape(tokens.shape[0], side, side, tokens.shape[2])


def _prior_logit() -> float:
    return math.log(FOREGROUND_PRIOR / (1.0 - FOREGROUND_PRIOR))


def _start_at_prior(layer: Linear) -> None:
    layer.bias[...] = jnp.full_like(layer.bias[...], _prior_logit())  # pyright: ignore
