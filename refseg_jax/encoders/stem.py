"""Turns pixels into patch tokens: by CLIP's single product, or with a few convolutions before it."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from refseg_jax.images.colours import CLIP_MEAN, CLIP_STD, normalise
from refseg_jax.layers.convolution import Conv3x3
from refseg_jax.layers.linear import Linear, contract, gaussian
from refseg_jax.layers.norm import LayerNorm

#: Sides in pixels of a cell in the two stages of `ConvolutionalStem`.
FINE, COARSE = 4, 8


class Stem(NamedTuple):
    """Output of a stem.

    Attributes:
        tokens: `[B, P, width]`.
        pixels: `[B, P, (patch_size / 4)^2, C]`, features of the cells of 4 x 4 pixels in each patch,
            row by row; `None` for `PatchEmbedding`.
    """

    tokens: jax.Array
    pixels: jax.Array | None


class PatchEmbedding(nnx.Module):
    """CLIP's patch embedding: a p x p convolution of stride p; `kernel` f32 `[p, p, 3, width]`."""

    def __init__(self, patch_size: int, width: int, *, dtype: Any, rngs: nnx.Rngs):
        shape = (patch_size, patch_size, 3, width)
        stddev = (patch_size * patch_size * 3) ** -0.5
        self.kernel = nnx.Param(gaussian(stddev)(rngs.params(), shape, jnp.float32))
        self.dtype = dtype

    def __call__(self, image: jax.Array) -> Stem:
        """u8 `[B, H, W, 3]` to tokens `[B, P, width]`, P = H/p * W/p."""
        size, width = self.kernel.shape[0], self.kernel.shape[-1]
        patches = normalise(cut(image, size), CLIP_MEAN, CLIP_STD)
        patches = patches.reshape(image.shape[0], -1, size * size * 3)
        return Stem(contract(patches, self.kernel[...].reshape(-1, width), self.dtype), None)


class ConvolutionalStem(nnx.Module):
    """Residual 3x3 convolutions at strides 4 and 8 before the patches, for training from scratch.

    Not in the paper, whose tower starts from CLIP's weights. A ViT with random weights learns much
    faster from convolved features (Xiao et al. 2021, "Early Convolutions Help Transformers See
    Better"), and the head `pixel_kernel` takes the edges of masks from its pixel features.
    """

    def __init__(self, patch_size: int, width: int, *, stem_width: int, dtype: Any, rngs: nnx.Rngs):
        self.embedding = Linear(FINE * FINE * 3, stem_width, dtype=dtype, rngs=rngs)
        self.fine_block = ConvolutionBlock(stem_width, dtype=dtype, rngs=rngs)
        self.fine_norm = LayerNorm(stem_width, dtype=dtype)
        self.down = Linear(4 * stem_width, 2 * stem_width, dtype=dtype, rngs=rngs)
        self.coarse_blocks = nnx.List(
            [ConvolutionBlock(2 * stem_width, dtype=dtype, rngs=rngs) for _ in range(2)]
        )
        self.coarse_norm = LayerNorm(2 * stem_width, dtype=dtype)
        self.lateral = Linear(2 * stem_width, stem_width, dtype=dtype, rngs=rngs)
        cells = (patch_size // COARSE) ** 2
        self.projection = Linear(cells * 2 * stem_width, width, dtype=dtype, rngs=rngs)
        self.patch_size = patch_size

    def __call__(self, image: jax.Array) -> Stem:
        """u8 `[B, H, W, 3]` to tokens and pixel features of `stem_width + 48` channels.

        The pixel features are the sum of both stages, as in a feature pyramid, and the 48 normalised
        colours of the cell.
        """
        colours = _flat_cells(normalise(cut(image, FINE), CLIP_MEAN, CLIP_STD))
        fine = self.fine_norm(self.fine_block(self.embedding(colours)))
        coarse = self.down(_flat_cells(cut(fine, 2)))
        for block in self.coarse_blocks:
            coarse = block(coarse)
        coarse = self.coarse_norm(coarse)

        patches = cut(coarse, self.patch_size // COARSE)
        tokens = self.projection(
            patches.reshape(image.shape[0], -1, self.projection.kernel.shape[0])
        )
        seen = jax.nn.relu(fine + _doubled(self.lateral(coarse)))
        pixels = cut(
            jnp.concatenate([seen, colours.astype(seen.dtype)], -1), self.patch_size // FINE
        )
        cells = (self.patch_size // FINE) ** 2
        return Stem(tokens, pixels.reshape(*tokens.shape[:2], cells, pixels.shape[-1]))


class ConvolutionBlock(nnx.Module):
    """A residual convolution: `x += gelu(conv(norm(x)))`."""

    def __init__(self, width: int, *, dtype: Any, rngs: nnx.Rngs):
        self.norm = LayerNorm(width, dtype=dtype)
        self.convolution = Conv3x3(width, width, dtype=dtype, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """`[B, h, w, width]` to the same shape."""
        return x + jax.nn.gelu(self.convolution(self.norm(x)))


def cut(x: jax.Array, size: int) -> jax.Array:
    """Cuts `[B, h, w, C]` into squares: `[B, h / size, w / size, size, size, C]`."""
    batch, height, width, channels = x.shape
    squares = x.reshape(batch, height // size, size, width // size, size, channels)
    return squares.transpose(0, 1, 3, 2, 4, 5)


def _flat_cells(squares: jax.Array) -> jax.Array:
    return squares.reshape(*squares.shape[:3], -1)


def _doubled(x: jax.Array) -> jax.Array:
    """Nearest-neighbour upsampling by 2: `[B, h, w, C]` to `[B, 2h, 2w, C]`."""
    batch, height, width, channels = x.shape
    wide = jnp.broadcast_to(x[:, :, None, :, None], (batch, height, 2, width, 2, channels))
    return wide.reshape(batch, 2 * height, 2 * width, channels)
