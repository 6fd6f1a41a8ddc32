"""CLIP's vision transformer with UniRES's group tokens beside the patches."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from refseg_jax.encoders.stem import ConvolutionalStem, PatchEmbedding
from refseg_jax.layers.linear import Linear, gaussian
from refseg_jax.layers.norm import LayerNorm
from refseg_jax.layers.transformer import BlockScales, TransformerBlock, run_block

#: Standard deviation that group tokens start with (not stated in the paper; usual for queries).
GROUP_TOKEN_STDDEV = 0.02


class VisionFeatures(NamedTuple):
    """What the tower gives; token arrays `[B, count, width]`, `None` where a level has no tokens.

    Attributes:
        patches: `[B, P, output_width]`, after the final norm and CLIP's projection.
        low, high: group tokens as they leave the residual stream.
        low_patches, high_patches: the patches `[B, P, width]` beside which they left it.
        pixels: of a convolutional stem, see `refseg_jax.encoders.stem.Stem`.
    """

    patches: jax.Array
    low: jax.Array | None
    high: jax.Array | None
    low_patches: jax.Array
    high_patches: jax.Array
    pixels: jax.Array | None


class ClipVision(nnx.Module):
    """Blocks 1..L/2 see class token, patches and low tokens; blocks L/2+1..L the high tokens.

    The paper (section 5, Figure 4) has the low tokens enter at the first and the high ones at the
    middle layer, each crossing one half of the tower. Not stated there: they enter after the first
    norm and have no position embedding; the class token stays.
    """

    def __init__(
        self,
        *,
        grid: int,
        patch_size: int,
        stem_width: int,
        width: int,
        layers: int,
        heads: int,
        output_width: int,
        activation: str,
        low_tokens: int,
        high_tokens: int,
        dtype: Any,
        remat: bool,
        rngs: nnx.Rngs,
    ):
        scale = width**-0.5
        scales = BlockScales.of(width, layers)

        def table(count: int, stddev: float) -> nnx.Param:
            return nnx.Param(stddev * jax.random.normal(rngs.params(), (count, width), jnp.float32))

        if stem_width:
            self.patch_embedding = ConvolutionalStem(
                patch_size, width, stem_width=stem_width, dtype=dtype, rngs=rngs
            )
        else:
            self.patch_embedding = PatchEmbedding(patch_size, width, dtype=dtype, rngs=rngs)
        self.class_token = table(1, scale)
        self.position_embedding = table(1 + grid * grid, scale)
        self.low_tokens = table(low_tokens, GROUP_TOKEN_STDDEV) if low_tokens else None
        self.high_tokens = table(high_tokens, GROUP_TOKEN_STDDEV) if high_tokens else None
        self.input_norm = LayerNorm(width, dtype=dtype)
        self.blocks = nnx.List(
            [
                TransformerBlock(
                    width, heads, activation=activation, scales=scales, dtype=dtype, rngs=rngs
                )
                for _ in range(layers)
            ]
        )
        self.final_norm = LayerNorm(width, dtype=dtype)
        self.projection = Linear(
            width,
            output_width,
            dtype=dtype,
            rngs=rngs,
            use_bias=False,
            kernel_init=gaussian(scale),
        )
        self.dtype = dtype
        self.remat = remat

    def __call__(self, image: jax.Array) -> VisionFeatures:
        """u8 `[B, H, W, 3]` to features; H = W = grid * patch_size."""
        x, pixels = self.patch_embedding(image)
        class_token = jnp.broadcast_to(self.class_token[...], (x.shape[0], 1, x.shape[2]))
        x = jnp.concatenate([class_token.astype(x.dtype), x], 1)
        x = self.input_norm(x + self.position_embedding[...].astype(x.dtype))
        middle = len(self.blocks) // 2
        x, low = self._cross(x, self.low_tokens, range(middle))
        low_patches = x[:, 1:]
        x, high = self._cross(x, self.high_tokens, range(middle, len(self.blocks)))
        high_patches = x[:, 1:]
        patches = self.projection(self.final_norm(high_patches))
        return VisionFeatures(patches, low, high, low_patches, high_patches, pixels)

    def _cross(
        self, x: jax.Array, tokens: nnx.Param | None, blocks: range
    ) -> tuple[jax.Array, jax.Array | None]:
        """Runs some blocks with group tokens behind the other tokens, and parts them again."""
        count = x.shape[1]
        if tokens is not None:
            rows = jnp.broadcast_to(tokens[...], (x.shape[0], *tokens.shape)).astype(x.dtype)
            x = jnp.concatenate([x, rows], 1)
        for number in blocks:
            x = run_block(self.blocks[number], x, remat=self.remat)
        return (x, None) if tokens is None else (x[:, :count], x[:, count:])


def assign_groups(patches: jax.Array, tokens: jax.Array) -> jax.Array:
    """How much each group token claims each patch (for maps as in the paper's Figure 5).

    Cosine similarity, after the mean patch is taken off both: what all patches share says nothing
    about groups. How the figure was made is not stated in the paper.

    Args:
        patches: `[B, P, width]`; tokens: `[B, T, width]`, both from one place of the tower.

    Returns:
        f32 `[B, T, P]` in -1..1; the argmax over T is the patch's group.
    """
    patches, tokens = patches.astype(jnp.float32), tokens.astype(jnp.float32)
    mean = jnp.mean(patches, 1, keepdims=True)
    unit = lambda x: x / (jnp.linalg.norm(x, axis=-1, keepdims=True) + np.float32(1e-6))  # noqa: E731
    return jnp.einsum("btc,bpc->btp", unit(tokens - mean), unit(patches - mean))
