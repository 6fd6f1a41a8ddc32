"""Mask2Former's pixel decoder: from the maps of a backbone to multi-scale maps and mask features."""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from refseg_jax.images.resize import resize_bilinear
from refseg_jax.layers.convolution import Conv3x3
from refseg_jax.layers.deformable_attention import DeformableAttention, Shapes
from refseg_jax.layers.linear import Initializer, Linear, fan_in_uniform
from refseg_jax.layers.norm import GroupNorm, LayerNorm
from refseg_jax.layers.positions import sine_positions_relative
from refseg_jax.layers.transformer import Mlp, run_block

#: The pixel decoder computes in f32, whatever the compute type of the towers, as in Mask2Former.
DTYPE = jnp.float32


@dataclasses.dataclass(frozen=True)
class PixelDecoderConfig:
    """Sizes; the defaults are Mask2Former's and ReLA's.

    Attributes:
        width: channels of the tokens and of the levels.
        mask_width: channels of the mask features.
        layers, heads: of the encoder.
        points: sampling points per head and level.
        hidden: width inside the MLPs of the encoder.
        remat: recompute activations inside the layers in the backward pass instead of storing them.
    """

    width: int = 256
    mask_width: int = 256
    layers: int = 6
    heads: int = 8
    points: int = 4
    hidden: int = 1024
    remat: bool = False

    def __post_init__(self) -> None:
        """Checks the fields.

        Raises:
            ValueError: the sizes do not fit together.
        """
        for field in dataclasses.fields(self):
            if field.type is int and getattr(self, field.name) < 1:
                raise ValueError(f"{field.name}={getattr(self, field.name)} is less than 1")
        if self.width % self.heads:
            raise ValueError(f"heads={self.heads} does not divide width={self.width}")
        if self.width % 4:
            raise ValueError(f"width={self.width} is not divisible by 4")


class PixelFeatures(NamedTuple):
    """Output of the pixel decoder.

    Attributes:
        masks: mask features f32 `[B, h, w, mask_width]` at stride 4, the size of the finest map.
        levels: the other maps after the encoder, the coarsest first: f32 `[B, h, w, width]` each, at
            strides 32, 16, 8 for a backbone of four stages.
    """

    masks: jax.Array
    levels: tuple[jax.Array, ...]


class PixelDecoder(nnx.Module):
    """A deformable-attention encoder, and one step of a feature pyramid that adds the finest map.

        tokens = norm(linear(map)) of all maps but the finest
        tokens = layer(tokens, sine positions + level embedding), for each layer
        masks = linear(relu(norm(conv3x3(norm(linear(finest map)) + upsampled(finest level)))))

    Norms of maps are GroupNorms of 32 groups. Kernels are initialised as in Mask2Former (Cheng et al.
    2022). Products are in f32; devices that multiply f32 in bf16 or TF32 by default use at least TF32.
    """

    def __init__(self, config: PixelDecoderConfig, widths: Sequence[int], *, rngs: nnx.Rngs):
        """Creates the layers.

        Args:
            config: sizes.
            widths: channels of the backbone's maps, the finest (stride 4) first; at least two.
            rngs: random streams for the parameters.

        Raises:
            ValueError: there are fewer than two maps.
        """
        if len(widths) < 2:
            raise ValueError(f"a pixel decoder needs maps of at least two strides, not {widths}")
        width, levels = config.width, len(widths) - 1
        self.projections = nnx.List(
            [
                ProjectedMap(inputs, width, init=_XAVIER, bias=True, rngs=rngs)
                for inputs in widths[:0:-1]
            ]
        )
        self.level_embedding = nnx.Param(jax.random.normal(rngs.params(), (levels, width), DTYPE))
        self.layers = nnx.List(
            [EncoderLayer(config, levels, rngs=rngs) for _ in range(config.layers)]
        )
        self.lateral = ProjectedMap(widths[0], width, init=caffe_uniform, bias=False, rngs=rngs)
        self.convolution = Conv3x3(width, width, dtype=DTYPE, rngs=rngs, kernel_init=caffe_uniform)
        self.convolution_norm = _map_norm(width)
        self.mask_projection = Linear(
            width, config.mask_width, dtype=DTYPE, rngs=rngs, kernel_init=caffe_uniform
        )
        self.config = config

    def __call__(self, maps: Sequence[jax.Array]) -> PixelFeatures:
        """Decodes a backbone's maps `[B, h, w, widths[s]]` of any float type, the finest first."""
        with jax.default_matmul_precision("high"):
            levels = self._mix(maps[:0:-1])
            finest = self.lateral(maps[0])
            joined = finest + resize_bilinear(levels[-1], (finest.shape[1], finest.shape[2]))
            smooth = jax.nn.relu(self.convolution_norm(self.convolution(joined)))
            return PixelFeatures(self.mask_projection(smooth), levels)

    def _mix(self, maps: Sequence[jax.Array]) -> tuple[jax.Array, ...]:
        """Runs the encoder over maps, the coarsest first."""
        width = self.config.width
        shapes = [(x.shape[1], x.shape[2]) for x in maps]
        projected = [p(x) for p, x in zip(self.projections, maps, strict=True)]
        tokens = jnp.concatenate([x.reshape(x.shape[0], -1, width) for x in projected], 1)
        positions = jnp.concatenate(
            [
                sine_positions_relative(*shape, width) + embedding
                for shape, embedding in zip(shapes, self.level_embedding[...], strict=True)
            ]
        )
        for layer in self.layers:
            call = lambda x, p, layer=layer: layer(x, p, shapes)  # noqa: E731
            tokens = run_block(call, tokens, positions, remat=self.config.remat)
        ends = np.cumsum([height * width for height, width in shapes])
        parts = jnp.split(tokens, ends[:-1], axis=1)
        return tuple(x.reshape(y.shape) for x, y in zip(parts, projected, strict=True))


class EncoderLayer(nnx.Module):
    """A post-norm layer of the encoder.

    `x = norm(x + attention(query = x + positions, tokens = x)); x = norm(x + mlp(x))`.
    """

    def __init__(self, config: PixelDecoderConfig, levels: int, *, rngs: nnx.Rngs):
        self.attention = DeformableAttention(
            config.width,
            config.heads,
            levels=levels,
            points=config.points,
            dtype=DTYPE,
            rngs=rngs,
        )
        self.attention_norm = LayerNorm(config.width, dtype=DTYPE)
        self.mlp = Mlp(
            config.width,
            config.hidden,
            activation=jax.nn.relu,
            up_init=_XAVIER,
            down_init=_XAVIER,
            dtype=DTYPE,
            rngs=rngs,
        )
        self.mlp_norm = LayerNorm(config.width, dtype=DTYPE)

    def __call__(self, x: jax.Array, positions: jax.Array, shapes: Shapes) -> jax.Array:
        """`[B, S, width]` to the same shape; `positions` are `[S, width]`."""
        x = self.attention_norm(x + self.attention(x + positions, x, shapes))
        return self.mlp_norm(x + self.mlp(x))


class ProjectedMap(nnx.Module):
    """`norm(linear(x))`, which takes the channels of a map to the width of the decoder."""

    def __init__(self, inputs: int, width: int, *, init: Initializer, bias: bool, rngs: nnx.Rngs):
        self.linear = Linear(inputs, width, dtype=DTYPE, rngs=rngs, use_bias=bias, kernel_init=init)
        self.norm = _map_norm(width)

    def __call__(self, x: jax.Array) -> jax.Array:
        """`[B, h, w, inputs]` to f32 `[B, h, w, width]`."""
        return self.norm(self.linear(x))


def caffe_uniform(key: jax.Array, shape: tuple[int, ...], dtype: Any = DTYPE) -> jax.Array:
    """The initialisation of detectron2's convolutions: U(-sqrt(3/F), sqrt(3/F)).

    F is the product of all axes of the kernel `[..., I, O]` but the last.
    """
    return math.sqrt(3.0) * fan_in_uniform(key, shape, dtype)


def _map_norm(width: int) -> GroupNorm:
    return GroupNorm(width, groups=math.gcd(32, width), dtype=DTYPE)


_XAVIER = jax.nn.initializers.xavier_uniform()
