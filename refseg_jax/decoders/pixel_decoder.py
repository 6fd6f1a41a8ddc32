"""Mask2Former's pixel decoder: a backbone's maps to mixed maps and to the features of masks."""

import dataclasses
import math
from collections.abc import Sequence
from typing import NamedTuple

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

#: All of it is in f32, whatever the towers compute in, as in the original.
DTYPE = jnp.float32


@dataclasses.dataclass(frozen=True)
class PixelDecoderConfig:
    """Sizes; the defaults are Mask2Former's and ReLA's.

    Attributes:
        width: channels of tokens and of the mixed maps.
        mask_width: channels of the mask features.
        layers, heads, points, hidden: of the encoder; `hidden` is inside its MLPs.
        remat: compute the layers' insides again in the backward pass instead of storing them.
    """

    width: int = 256
    mask_width: int = 256
    layers: int = 6
    heads: int = 8
    points: int = 4
    hidden: int = 1024
    remat: bool = False

    def __post_init__(self) -> None:
        """Checks what would else fail late.

        Raises:
            ValueError: sizes that do not fit together.
        """
        for field in dataclasses.fields(self):
            if field.type is int and getattr(self, field.name) < 1:
                raise ValueError(f"{field.name}={getattr(self, field.name)} is less than 1")
        if self.width % self.heads:
            raise ValueError(f"heads={self.heads} does not divide width={self.width}")
        if self.width % 4:
            raise ValueError(f"width={self.width} is not divisible by 4")


class PixelFeatures(NamedTuple):
    """What the pixel decoder gives.

    Attributes:
        masks: f32 `[B, h, w, mask_width]` at stride 4, the size of the first map.
        levels: the other maps mixed, the coarsest first: f32 `[B, h, w, width]` each, at strides
            32, 16, 8 for a backbone of four stages.
    """

    masks: jax.Array
    levels: tuple[jax.Array, ...]


class PixelDecoder(nnx.Module):
    """Deformable attention over all maps but the finest, which one step of a pyramid then joins.

        tokens = norm(linear(map)) of the levels;  tokens = layer(tokens, sines + level embedding)
        masks = linear(relu(norm(conv3x3(norm(linear(finest)) + upsampled(finest level)))))

    Norms of maps are GroupNorms of 32 groups. Kernels start as in Mask2Former (Cheng et al. 2022).
    Products are in f32, on chips that multiply f32 in bf16 or TF32 by themselves in at least TF32.
    """

    def __init__(self, config: PixelDecoderConfig, widths: Sequence[int], *, rngs: nnx.Rngs):
        """Builds it.

        Args:
            config: sizes.
            widths: channels of the backbone's maps, the finest (stride 4) first, at least two.
            rngs: for the kernels.

        Raises:
            ValueError: a single map.
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
        """Mixes a backbone's maps `[B, h, w, widths[s]]` of any float type, the finest first."""
        with jax.default_matmul_precision("high"):
            levels = self._mix(maps[:0:-1])
            finest = self.lateral(maps[0])
            joined = finest + resize_bilinear(levels[-1], (finest.shape[1], finest.shape[2]))
            smooth = jax.nn.relu(self.convolution_norm(self.convolution(joined)))
            return PixelFeatures(self.mask_projection(smooth), levels)

    def _mix(self, maps: Sequence[jax.Array]) -> tuple[jax.Array, ...]:
        """The encoder, over maps from the coarsest on."""
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
    """`x = norm(x + attention(query = x + positions, tokens = x)); x = norm(x + mlp(x))`."""

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
        """`[B, S, width]` to the same shape; `positions` `[S, width]`."""
        x = self.attention_norm(x + self.attention(x + positions, x, shapes))
        return self.mlp_norm(x + self.mlp(x))


class ProjectedMap(nnx.Module):
    """`norm(linear(x))`: a map's channels to the decoder's width."""

    def __init__(self, inputs: int, width: int, *, init: Initializer, bias: bool, rngs: nnx.Rngs):
        self.linear = Linear(inputs, width, dtype=DTYPE, rngs=rngs, use_bias=bias, kernel_init=init)
        self.norm = _map_norm(width)

    def __call__(self, x: jax.Array) -> jax.Array:
        """`[B, h, w, inputs]` to f32 `[B, h, w, width]`."""
        return self.norm(self.linear(x))


def caffe_uniform(key: jax.Array, shape: tuple[int, ...], dtype: jnp.dtype = DTYPE) -> jax.Array:
    """U(-sqrt(3/I), sqrt(3/I)) for a kernel `[..., I, O]`: what detectron2's convolutions start with."""
    return math.sqrt(3.0) * fan_in_uniform(key, shape, dtype)


def _map_norm(width: int) -> GroupNorm:
    return GroupNorm(width, groups=math.gcd(32, width), dtype=DTYPE)


_XAVIER = jax.nn.initializers.xavier_uniform()
