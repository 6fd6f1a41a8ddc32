"""Microsoft's Swin and torch's attention as plain torch functions of a state dict.

Weights are read by their public names; maps are `[B, h, w, C]`. The twins of whole systems build on it.
"""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F


class Colours(NamedTuple):
    """Mean and deviation of RGB in 0..1."""

    mean: tuple[float, float, float]
    deviation: tuple[float, float, float]


class TorchSwin:
    """A state dict, and the modules that several systems share.

    Attributes:
        state: name of an entry -> tensor of `dtype`.
        window: side of a window of the Swin in tokens.
    """

    def __init__(self, state: Mapping[str, Any], window: int, dtype: torch.dtype):
        self.state = {name: torch.as_tensor(value).to(dtype) for name, value in state.items()}
        self.window = window
        self.dtype = dtype

    def _linear(self, x: Tensor, name: str) -> Tensor:
        weight = self.state[f"{name}.weight"]
        return F.linear(x, weight.reshape(weight.shape[:2]), self.state.get(f"{name}.bias"))

    def _norm(self, x: Tensor, name: str) -> Tensor:
        weight, bias = self.state[f"{name}.weight"], self.state[f"{name}.bias"]
        return F.layer_norm(x, (x.shape[-1],), weight, bias)

    def _patches(self, image: Tensor, name: str, colours: Colours) -> Tensor:
        """u8 `[B, H, W, 3]` to the input of the first stage."""
        mean, deviation = (torch.tensor(x).to(self.dtype) for x in colours)
        pixels = first((image.to(self.dtype) / 255 - mean) / deviation)
        weight, bias = self.state[f"{name}.proj.weight"], self.state[f"{name}.proj.bias"]
        return self._norm(last(F.conv2d(pixels, weight, bias, stride=4)), f"{name}.norm")

    def _downsample(self, x: Tensor, name: str) -> Tensor:
        x = F.pad(x, (0, 0, 0, x.shape[2] % 2, 0, x.shape[1] % 2))
        x = torch.cat([x[:, r::2, c::2] for c in (0, 1) for r in (0, 1)], -1)
        return self._linear(self._norm(x, f"{name}.norm"), f"{name}.reduction")

    def _block(self, x: Tensor, name: str, heads: int, odd: int) -> Tensor:
        y = self._windows(self._norm(x, f"{name}.norm1"), f"{name}.attn", heads, odd)
        x = x + y
        hidden = F.gelu(self._linear(self._norm(x, f"{name}.norm2"), f"{name}.mlp.fc1"))
        return x + self._linear(hidden, f"{name}.mlp.fc2")

    def _windows(self, x: Tensor, name: str, heads: int, odd: int) -> Tensor:
        window, (rows, height, width, channels) = self.window, x.shape
        x = F.pad(x, (0, 0, 0, -width % window, 0, -height % window))
        full = x.shape[1], x.shape[2]
        shift = window // 2 if odd else 0
        cut = lambda y: (  # noqa: E731
            y.unflatten(2, (-1, window)).unflatten(1, (-1, window)).transpose(2, 3).flatten(3, 4)
        )
        x = cut(torch.roll(x, (-shift, -shift), (1, 2)))
        parts = self._linear(x, f"{name}.qkv").unflatten(-1, (3, heads, -1))
        query, key, value = split(parts)
        scores = query @ key.transpose(-1, -2) * (channels // heads) ** -0.5
        scores = scores + self._position_bias(name)
        if shift:
            labels = cut(torch.roll(borders(full, window, shift), (-shift, -shift), (1, 2)))[..., 0]
            other = labels[..., :, None] != labels[..., None, :]
            scores = scores.masked_fill(other[:, :, :, None], -torch.inf)
        y = (scores.softmax(-1) @ value).transpose(-2, -3).flatten(-2)
        y = self._linear(y, f"{name}.proj").unflatten(3, (window, window)).transpose(2, 3)
        y = torch.roll(y.reshape(rows, *full, channels), (shift, shift), (1, 2))
        return y[:, :height, :width]

    def _position_bias(self, name: str) -> Tensor:
        window = self.window
        table = self.state[f"{name}.relative_position_bias_table"]
        place = torch.arange(window)
        apart = place[:, None] - place + window - 1
        rows = apart[:, None, :, None] * (2 * window - 1) + apart[None, :, None, :]
        return table[rows.reshape(window**2, window**2)].permute(2, 0, 1)

    def _attend(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        name: str,
        *,
        heads: int,
        hidden: Tensor | None = None,
        padding: Tensor | None = None,
    ) -> Tensor:
        """torch's MultiheadAttention of `[B, T, C]`.

        `hidden` (bool `[T, S]` or `[B * heads, T, S]`) and `padding` (bool `[B, S]`) are true for what
        is not attended to.
        """
        names = ("in_proj_weight", "in_proj_bias", "out_proj.weight", "out_proj.bias")
        into, into_bias, out, out_bias = (self.state[f"{name}.{part}"] for part in names)
        attended, _ = F.multi_head_attention_forward(
            *(x.transpose(0, 1) for x in (query, key, value)),
            embed_dim_to_check=query.shape[-1],
            num_heads=heads,
            in_proj_weight=into,
            in_proj_bias=into_bias,
            bias_k=None,
            bias_v=None,
            add_zero_attn=False,
            dropout_p=0.0,
            out_proj_weight=out,
            out_proj_bias=out_bias,
            training=False,
            key_padding_mask=padding,
            attn_mask=hidden,
            need_weights=False,
        )
        return attended.transpose(0, 1)


def first(x: Tensor) -> Tensor:
    """Moves the channels before height and width."""
    return x.permute(0, 3, 1, 2)


def last(x: Tensor) -> Tensor:
    """Moves the channels after height and width."""
    return x.permute(0, 2, 3, 1)


def split(parts: Tensor) -> tuple[Tensor, ...]:
    """Splits `[..., T, 3, heads, D]` into query, key and value `[..., heads, T, D]`."""
    return tuple(x.transpose(-2, -3) for x in parts.unbind(-3))


def borders(size: tuple[int, int], window: int, shift: int) -> Tensor:
    """`[1, h, w, 1]`: different numbers for pixels that a shift brings together from opposite ends."""
    label = lambda n: (torch.arange(n) < shift).long()  # noqa: E731
    return (2 * label(size[0])[:, None] + label(size[1]))[None, :, :, None]


def sine_positions(height: int, width: int, channels: int, offset: float = 0.0) -> Tensor:
    """DETR's positions `[h, w, channels]`: y in the first half; angles scaled to one full turn.

    `offset` is added to the numbers 1, 2, ... of rows and columns.
    """
    half = channels // 2
    period = 10000.0 ** (2 * (torch.arange(half).double() // 2) / half)

    def along(length: int) -> Tensor:
        angle = (torch.arange(1, length + 1).double() + offset) / (length + 1e-6) * 2 * math.pi
        angle = angle[:, None] / period
        return torch.stack([angle[:, 0::2].sin(), angle[:, 1::2].cos()], -1).flatten(1)

    y = along(height)[:, None].expand(height, width, half)
    return torch.cat([y, along(width)[None].expand(height, width, half)], -1)
