"""Swin Transformer (Liu et al. 2021) as a backbone of dense prediction, in stages."""

import dataclasses
from collections.abc import Mapping
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from refseg_jax import naming
from refseg_jax.encoders.stem import cut
from refseg_jax.images.colours import CLIP_MEAN, CLIP_STD, IMAGENET_MEAN, IMAGENET_STD, normalise
from refseg_jax.layers.attention import MultiHeadAttention, attention
from refseg_jax.layers.dropout import drop_path, split_key
from refseg_jax.layers.linear import Linear, contract, gaussian
from refseg_jax.layers.norm import LayerNorm
from refseg_jax.layers.transformer import Mlp, exact_gelu, run_block

#: Side of a patch in pixels; every published Swin has it.
PATCH = 4

#: Standard deviation of fresh kernels and relative positions (torch's truncation at 2 is void).
STDDEV = 0.02

#: Mean and standard deviation of RGB, by the name that configs use.
PIXELS = {"imagenet": (IMAGENET_MEAN, IMAGENET_STD), "clip": (CLIP_MEAN, CLIP_STD)}


@dataclasses.dataclass(frozen=True)
class SwinConfig:
    """Sizes and choices; the defaults are Swin-B with windows of 12 (LAVT, ReLA).

    Attributes:
        width: channels of the first stage; each stage doubles them.
        depths: blocks of each stage.
        heads: attention heads of each stage.
        window: side of a window in tokens, 7 or 12 in the published weights.
        pixels: `imagenet` | `clip`: which mean and deviation the input is normalised with (UniLSeg
            takes CLIP's, everybody else ImageNet's).
        drop_path: stochastic depth of the last block in training, growing linearly from 0 (0.3 in
            LAVT and ReLA, 0.2 in UniLSeg).
        dtype: compute type, `float32` or `bfloat16`; sums, norms and softmax are in f32.
        remat: compute the blocks' insides again in the backward pass instead of storing them.
    """

    width: int = 128
    depths: tuple[int, ...] = (2, 2, 18, 2)
    heads: tuple[int, ...] = (4, 8, 16, 32)
    window: int = 12
    pixels: str = "imagenet"
    drop_path: float = 0.0
    dtype: str = "float32"
    remat: bool = False

    def __post_init__(self) -> None:
        """Checks what would else fail late.

        Raises:
            ValueError: sizes that do not fit together, or an unknown name.
        """
        if self.pixels not in PIXELS:
            raise ValueError(naming.unknown("normalisation of pixels", self.pixels, PIXELS))
        if self.dtype not in ("float32", "bfloat16"):
            raise ValueError(naming.unknown("dtype", self.dtype, ("float32", "bfloat16")))
        if not 0.0 <= self.drop_path < 1.0:
            raise ValueError(f"drop_path={self.drop_path} is not in [0, 1)")
        if len(self.depths) != len(self.heads) or not self.depths:
            raise ValueError(f"depths={self.depths} and heads={self.heads} name different stages")
        if min(*self.depths, *self.heads, self.width) < 1 or self.window < 2:
            raise ValueError("width, depths and heads must be at least 1, window at least 2")
        for width, heads in zip(self.widths, self.heads, strict=True):
            if width % heads:
                raise ValueError(f"{heads} heads do not divide the width {width}")

    @property
    def widths(self) -> tuple[int, ...]:
        """Channels of each stage."""
        return tuple(self.width << stage for stage in range(len(self.depths)))


C = TypeVar("C", bound=SwinConfig)

#: Fields that differ from Swin-B with windows of 12, by the name of the size.
PRESETS: Mapping[str, Mapping[str, Any]] = {
    "B": {},
    "L": {"width": 192, "heads": (6, 12, 24, 48)},
    "tiny": {"width": 16, "depths": (2, 2, 2), "heads": (1, 2, 4), "window": 4},
}


def swin_config(fields: Mapping[str, Any], kind: type[C] = SwinConfig) -> C:
    """A config from a mapping; `preset` (default `B`) gives the fields that the rest overrides.

    Args:
        fields: of `kind`, and `preset`.
        kind: the config's class.

    Raises:
        ValueError: an unknown preset or field (the nearest is named), or sizes that do not fit.
    """
    given = dict(fields)
    preset = given.pop("preset", "B")
    if preset not in PRESETS:
        raise ValueError(naming.unknown("preset of backbone 'swin'", preset, PRESETS))
    return naming.construct(kind, {**PRESETS[preset], **given}, what="backbone 'swin'")


class Swin(nnx.Module):
    """Patches of 4 x 4 pixels, then stages of window attention, each at half the resolution.

    Any height and width will do. Zeros are added below and on the right where the published
    backbones add them: pixels to whole patches after the normalisation, tokens to whole windows
    after a block's first norm, and tokens to whole 2 x 2 squares before two stages merge. This
    follows the backbone of Swin's object detection (so do LAVT, ReLA, and transformers'
    `SwinBackbone`): windows keep their size and every second block is shifted, however small the
    map. Swin's classifier (transformers' `SwinModel`) instead shrinks the window, and does not
    shift, where the map's shorter side is at most one window.

    What fuses language in between (`LanguageSwin`) drives the stages by itself:

        x = swin.embed(image)
        for stage, key in zip(swin.stages, keys):
            x = stage(x, key)                # before the downsampling
            ...                              # fuse, take features
            if stage.downsample is not None:
                x = stage.downsample(x)
    """

    def __init__(self, config: SwinConfig, *, rngs: nnx.Rngs):
        dtype = jnp.dtype(config.dtype)
        rates = np.linspace(0.0, config.drop_path, sum(config.depths))
        starts = np.cumsum((0, *config.depths))
        self.patch_embedding = Linear(PATCH * PATCH * 3, config.width, dtype=dtype, rngs=rngs)
        self.patch_norm = LayerNorm(config.width, dtype=dtype)
        self.stages = nnx.List(
            [
                SwinStage(
                    config,
                    stage,
                    drop_paths=tuple(map(float, rates[starts[stage] : starts[stage + 1]])),
                    rngs=rngs,
                )
                for stage in range(len(config.depths))
            ]
        )
        self.norms = nnx.List([LayerNorm(width, dtype=dtype) for width in config.widths])
        self.config = config

    def embed(self, image: jax.Array) -> jax.Array:
        """u8 `[B, H, W, 3]` to the first stage's input `[B, ceil(H / 4), ceil(W / 4), width]`."""
        pixels = _fill(normalise(image, *PIXELS[self.config.pixels]), PATCH)
        patches = cut(pixels, PATCH)
        return self.patch_norm(self.patch_embedding(patches.reshape(*patches.shape[:3], -1)))

    def __call__(self, image: jax.Array, key: jax.Array | None = None) -> tuple[jax.Array, ...]:
        """Features for dense prediction.

        Args:
            image: u8 `[B, H, W, 3]`.
            key: for stochastic depth; without it, it is inference.

        Returns:
            For each stage s its output before the downsampling, normed: `[B, h, w, width * 2^s]` at
            stride `4 * 2^s` (h and w rounded up).
        """
        x = self.embed(image)
        keys = split_key(key, len(self.stages))
        features = []
        for stage, norm, own in zip(self.stages, self.norms, keys, strict=True):
            x = stage(x, own)
            features.append(norm(x))
            if stage.downsample is not None:
                x = stage.downsample(x)
        return tuple(features)


class SwinStage(nnx.Module):
    """Blocks of one resolution, and the way to the next (`None` behind the last)."""

    def __init__(
        self, config: SwinConfig, stage: int, *, drop_paths: tuple[float, ...], rngs: nnx.Rngs
    ):
        width, heads = config.widths[stage], config.heads[stage]
        dtype = jnp.dtype(config.dtype)
        self.blocks = nnx.List(
            [
                SwinBlock(
                    width,
                    heads,
                    window=config.window,
                    shift=config.window // 2 if number % 2 else 0,
                    drop_path=rate,
                    dtype=dtype,
                    rngs=rngs,
                )
                for number, rate in enumerate(drop_paths)
            ]
        )
        last = stage + 1 == len(config.depths)
        self.downsample = None if last else PatchMerging(width, dtype=dtype, rngs=rngs)
        self.remat = config.remat

    def __call__(self, x: jax.Array, key: jax.Array | None = None) -> jax.Array:
        """`[B, h, w, width]` to the same shape, before the downsampling."""
        for block, own in zip(self.blocks, split_key(key, len(self.blocks)), strict=True):
            x = run_block(block, x, own, remat=self.remat)
        return x


class PatchMerging(nnx.Module):
    """Squares of 2 x 2 tokens to one of twice the channels: `reduction(norm(square))`.

    A square's tokens are concatenated column by column (upper left, lower left, upper right, lower
    right), in Microsoft's files and in Hugging Face's alike. mmdetection's own Swin unfolds channel
    by channel, so its files have another order; they are not read here.
    """

    def __init__(self, width: int, *, dtype: Any, rngs: nnx.Rngs):
        self.norm = LayerNorm(4 * width, dtype=dtype)
        self.reduction = Linear(
            4 * width,
            2 * width,
            dtype=dtype,
            rngs=rngs,
            use_bias=False,
            kernel_init=gaussian(STDDEV),
        )

    def __call__(self, x: jax.Array) -> jax.Array:
        """`[B, h, w, width]` to `[B, ceil(h / 2), ceil(w / 2), 2 * width]`."""
        squares = cut(_fill(x, 2), 2)
        columns = squares.swapaxes(3, 4)
        return self.reduction(self.norm(columns.reshape(*columns.shape[:3], -1)))


class SwinBlock(nnx.Module):
    """`x += window_attention(norm(x)); x += mlp(norm(x))`, the windows shifted or not.

    `relative_positions` f32 `[(2 * window - 1)^2, heads]` is what a query adds to the score of a
    key, by the distance in rows and columns between them.
    """

    def __init__(
        self,
        width: int,
        heads: int,
        *,
        window: int,
        shift: int,
        drop_path: float,
        dtype: Any,
        rngs: nnx.Rngs,
    ):
        init = gaussian(STDDEV)
        self.attention_norm = LayerNorm(width, dtype=dtype)
        self.attention = MultiHeadAttention(
            width, heads, dtype=dtype, rngs=rngs, kernel_init=init, output_init=init
        )
        self.relative_positions = nnx.Param(
            init(rngs.params(), ((2 * window - 1) ** 2, heads), jnp.float32)
        )
        self.mlp_norm = LayerNorm(width, dtype=dtype)
        self.mlp = Mlp(
            width,
            4 * width,
            activation=exact_gelu,
            up_init=init,
            down_init=init,
            dtype=dtype,
            rngs=rngs,
        )
        self.window = window
        self.shift = shift
        self.drop_path = drop_path

    def __call__(self, x: jax.Array, key: jax.Array | None = None) -> jax.Array:
        """`[B, h, w, width]` to the same shape; a key drops the branches of whole rows."""
        attention_key, mlp_key = split_key(key, 2)
        y = self._look_around(self.attention_norm(x))
        x = x + drop_path(y, self.drop_path, attention_key)
        return x + drop_path(self.mlp(self.mlp_norm(x)), self.drop_path, mlp_key)

    def _look_around(self, x: jax.Array) -> jax.Array:
        """Attention within (shifted) windows.

        A token that fills a window up is zero, so that its query, key and value are the biases:
        products are taken before windows are filled, biases added after. It is attended to like any
        other, and cut off before the output projection.
        """
        height, width = x.shape[1:3]
        tall, wide = height + -height % self.window, width + -width % self.window
        near = shift_mask(tall, wide, self.window, self.shift) if self.shift else None
        own = self.attention
        mixed = attention(
            self._project(own.query, x),
            self._project(own.key, x),
            self._project(own.value, x),
            visible=None if near is None else jnp.asarray(near),
            bias=self.relative_positions[...][relative_index(self.window)].transpose(2, 0, 1),
        )
        grid = (tall // self.window, wide // self.window)
        windows = mixed.reshape(-1, *grid, self.window, self.window, x.shape[-1])
        joined = windows.swapaxes(2, 3).reshape(-1, tall, wide, x.shape[-1])
        back = jnp.roll(joined, (self.shift, self.shift), (1, 2)) if self.shift else joined
        return own.out(back[:, :height, :width])

    def _project(self, linear: Linear, x: jax.Array) -> jax.Array:
        """`[B, h, w, width]` to the tokens of (shifted) windows `[B * windows, T, heads, D]`."""
        y = _fill(contract(x, linear.kernel[...], linear.dtype), self.window)
        assert linear.bias is not None
        y = y + linear.bias[...].astype(y.dtype)
        shifted = jnp.roll(y, (-self.shift, -self.shift), (1, 2)) if self.shift else y
        windows = cut(shifted, self.window)
        heads = self.attention.heads
        return windows.reshape(-1, self.window**2, heads, x.shape[-1] // heads)


def relative_index(window: int) -> np.ndarray:
    """i32 `[T, T]`: the row of the table for query t and key s, `T = window^2`, row by row.

    `(dy + window - 1) * (2 * window - 1) + dx + window - 1` with (dy, dx) = query - key.
    """
    y, x = np.divmod(np.arange(window * window), window)
    dy, dx = y[:, None] - y, x[:, None] - x
    return ((dy + window - 1) * (2 * window - 1) + dx + window - 1).astype(np.int32)


def shift_mask(height: int, width: int, window: int, shift: int) -> np.ndarray:
    """bool `[windows, T, T]`: which tokens of a shifted window were neighbours before the shift.

    Rolling by `shift` brings the first rows and columns behind the last ones, where a window must
    not mix the two. Height and width are multiples of the window.
    """

    def wrapped(length: int) -> np.ndarray:
        return (np.arange(length) >= length - shift).astype(np.int32)

    # Windows other than the last of an axis hold nothing that came around.
    region = 2 * wrapped(height)[:, None] + wrapped(width)
    squares = region.reshape(height // window, window, width // window, window)
    tokens = squares.swapaxes(1, 2).reshape(-1, window * window)
    return tokens[:, :, None] == tokens[:, None]


def _fill(x: jax.Array, size: int) -> jax.Array:
    """Zeros below and on the right of `[B, h, w, C]`, up to multiples of `size`."""
    down, right = -x.shape[1] % size, -x.shape[2] % size
    return jnp.pad(x, ((0, 0), (0, down), (0, right), (0, 0))) if down or right else x
