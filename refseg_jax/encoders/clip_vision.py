"""CLIP's vision transformer, with the group tokens of UniRES beside the patches."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from refseg_jax.encoders.stem import ConvolutionalStem, PatchEmbedding
from refseg_jax.layers.linear import Linear, gaussian
from refseg_jax.layers.norm import LayerNorm
from refseg_jax.layers.transformer import BlockScales, TransformerBlock, run_block

#: Standard deviation of initial group tokens (not stated in the paper; usual for learned queries).
GROUP_TOKEN_STDDEV = 0.02


class VisionFeatures(NamedTuple):
    """Output of the tower.

    Attributes:
        patches: `[B, P, output_width]`, after the final norm and CLIP's projection.
        low, high: group tokens `[B, T, width]` as they leave the residual stream; `None` for a level
            without tokens.
        low_patches, high_patches: the patches `[B, P, width]` at the same place of the residual stream.
        pixels: pixel features of a convolutional stem or `None`, see `refseg_jax.encoders.stem.Stem`.
    """

    patches: jax.Array
    low: jax.Array | None
    high: jax.Array | None
    low_patches: jax.Array
    high_patches: jax.Array
    pixels: jax.Array | None


class ClipVision(nnx.Module):
    """CLIP's ViT with group tokens: low tokens in blocks 1..L/2, high tokens in blocks L/2+1..L.

    In the paper (section 5, Figure 4) the low tokens enter at the first layer and the high tokens at
    the middle layer, and each set passes through one half of the tower. Not stated in the paper, and
    decided here: group tokens enter after CLIP's first norm and have no position embedding, and the
    class token stays beside the patches in all blocks.
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
        """Encodes images u8 `[B, H, W, 3]` with H = W = grid * patch_size."""
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
        """Runs some blocks with group tokens appended, and splits the two kinds of tokens again."""
        count = x.shape[1]
        if tokens is not None:
            rows = jnp.broadcast_to(tokens[...], (x.shape[0], *tokens.shape)).astype(x.dtype)
            x = jnp.concatenate([x, rows], 1)
        for number in blocks:
            x = run_block(self.blocks[number], x, remat=self.remat)
        return (x, None) if tokens is None else (x[:, :count], x[:, count:])


def assign_groups(patches: jax.Array, tokens: jax.Array) -> jax.Array:
    """The similarity of each patch to each group token, for maps like Figure 5 of the UniRES paper.

    It is the cosine similarity after subtracting the mean patch from both, because the part that all
    patches share does not tell groups apart. The paper does not state how the figure was made.

    Args:
        patches: `[B, P, width]`.
        tokens: `[B, T, width]`, from the same place of the tower.

    Returns:
        f32 `[B, T, P]` in -1..1; the argmax over T is the group of a patch.
    """
    patches, tokens = patches.astype(jnp.float32), tokens.astype(jnp.float32)
    mean = jnp.mean(patches, 1, keepdims=True)
    unit = lambda x: x / (jnp.linalg.norm(x, axis=-1, keepdims=True) + np.float32(1e-6))  # noqa: E731
    return jnp.einsum("btc,bpc->btp", unit(tokens - mean), unit(patches - mean))
