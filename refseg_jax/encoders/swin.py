"""Swin Transformer (Liu et al. 2021) as a backbone for dense prediction."""

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

#: Side of a patch in pixels, as in every published Swin.
PATCH = 4

#: Standard deviation of initial kernels and relative positions. The published code truncates at +-2,
#: a hundred deviations, which has no effect.
STDDEV = 0.02

#: Mean and standard deviation of RGB by their name in configs.
PIXELS = {"imagenet": (IMAGENET_MEAN, IMAGENET_STD), "clip": (CLIP_MEAN, CLIP_STD)}


@dataclasses.dataclass(frozen=True)
class SwinConfig:
    """Sizes and choices; the defaults are Swin-B with windows of 12 (LAVT, ReLA).

    Attributes:
        width: channels of the first stage; each later stage doubles them.
        depths: number of blocks of each stage.
        heads: attention heads of each stage.
        window: side of a window in tokens, 7 or 12 in the published weights.
        pixels: `imagenet` | `clip`, the mean and deviation that normalise the input (CLIP's in
            UniLSeg, ImageNet's in all other systems).
        drop_path: rate of stochastic depth in training. It grows linearly over the blocks, from 0 to
            this value (0.3 in LAVT and ReLA, 0.2 in UniLSeg).
        dtype: compute type, `float32` or `bfloat16`; sums, norms and softmax are in f32.
        remat: recompute activations inside the blocks in the backward pass instead of storing them.
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
        """Checks the fields.

        Raises:
            ValueError: the sizes do not fit together, or a name is unknown.
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

#: Preset -> the fields that differ from Swin-B with windows of 12.
PRESETS: Mapping[str, Mapping[str, Any]] = {
    "B": {},
    "L": {"width": 192, "heads": (6, 12, 24, 48)},
    "tiny": {"width": 16, "depths": (2, 2, 2), "heads": (1, 2, 4), "window": 4},
}


def swin_config(fields: Mapping[str, Any], kind: type[C] = SwinConfig) -> C:
    """Builds a config from a `preset` (default `B`) and the fields that override it.

    Args:
        fields: fields of `kind`, and optionally `preset`.
        kind: class of the config.

    Raises:
        ValueError: a preset or field is unknown (the message names the nearest), or the sizes do not
            fit together.
    """
    given = dict(fields)
    preset = given.pop("preset", "B")
    if preset not in PRESETS:
        raise ValueError(naming.unknown("preset of backbone 'swin'", preset, PRESETS))
    return naming.construct(kind, {**PRESETS[preset], **given}, what="backbone 'swin'")


class Swin(nnx.Module):
    """Patches of 4 x 4 pixels, then stages of window attention, each at half the resolution.

    Images may have any height and width. Zeros are added below and on the right where the published
    backbones add them: pixels up to whole patches after the normalisation, tokens up to whole windows
    after the first norm of a block, and tokens up to whole 2 x 2 squares before the downsampling.

    This is the backbone of Swin's object detection, which LAVT, ReLA and transformers' `SwinBackbone`
    follow: windows keep their size, and every second block is shifted, even if the map is smaller than
    a window. Swin's classifier (transformers' `SwinModel`) differs if the shorter side of the map is at
    most one window: it then shrinks the window and does not shift it.

    `LanguageSwin`, which fuses language between the stages, runs them itself:

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
        """Computes features for dense prediction.

        Args:
            image: u8 `[B, H, W, 3]`.
            key: random key for stochastic depth; `None` means inference.

        Returns:
            For each stage s = 0, 1, ... its normalised output before the downsampling,
            `[B, h, w, width * 2^s]` at stride `4 * 2^s`, with h and w rounded up.
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
    """The blocks of one resolution, and the downsampling to the next (`None` for the last stage)."""

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
    """Merges squares of 2 x 2 tokens into one token of twice the channels: `reduction(norm(square))`.

    The tokens of a square are concatenated column by column (upper left, lower left, upper right,
    lower right), as in Microsoft's and Hugging Face's files. mmdetection's own Swin unfolds channel by
    channel; its files, of another order, are not supported.
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
    """A block of window attention: `x += window_attention(norm(x)); x += mlp(norm(x))`.

    Every second block of a stage shifts its windows. `relative_positions`, f32
    `[(2 * window - 1)^2, heads]`, is the bias of the score of query and key for each distance in rows
    and columns between them.
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
        """`[B, h, w, width]` to the same shape; with a key, residual branches of rows are dropped."""
        attention_key, mlp_key = split_key(key, 2)
        y = self._window_attention(self.attention_norm(x))
        x = x + drop_path(y, self.drop_path, attention_key)
        return x + drop_path(self.mlp(self.mlp_norm(x)), self.drop_path, mlp_key)

    def _window_attention(self, x: jax.Array) -> jax.Array:
        """Window attention (W-MSA in Swin's paper; SW-MSA where the windows are shifted).

        Tokens that fill up a window are zero, so their query, key and value are the biases: products
        are computed before the filling, biases are added after it. Other tokens attend to them, as in
        the published code; they are cut off before the output projection.
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
    """The row of the table of relative positions for each query and key of a window, i32 `[T, T]`.

    The `T = window^2` tokens are ordered row by row. The row is
    `(dy + window - 1) * (2 * window - 1) + dx + window - 1` with (dy, dx) = query - key.
    """
    y, x = np.divmod(np.arange(window * window), window)
    dy, dx = y[:, None] - y, x[:, None] - x
    return ((dy + window - 1) * (2 * window - 1) + dx + window - 1).astype(np.int32)


def shift_mask(height: int, width: int, window: int, shift: int) -> np.ndarray:
    """The pairs of tokens of a shifted window that may attend to each other, bool `[windows, T, T]`.

    Rolling the map by `shift` puts the first rows and columns after the last ones. Windows there hold
    both, and must not mix them. Height and width are multiples of the window.
    """

    def wrapped(length: int) -> np.ndarray:
        return (np.arange(length) >= length - shift).astype(np.int32)

    # Only the last windows of an axis hold rows or columns that wrapped around.
    region = 2 * wrapped(height)[:, None] + wrapped(width)
    squares = region.reshape(height // window, window, width // window, window)
    tokens = squares.swapaxes(1, 2).reshape(-1, window * window)
    return tokens[:, :, None] == tokens[:, None]


def _fill(x: jax.Array, size: int) -> jax.Array:
    """Pads `[B, h, w, C]` with zeros below and on the right, up to multiples of `size`."""
    down, right = -x.shape[1] % size, -x.shape[2] % size
    return jnp.pad(x, ((0, 0), (0, down), (0, right), (0, 0))) if down or right else x
