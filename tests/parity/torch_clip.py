"""CLIP in plain torch with OpenAI's names of modules; it returns the output of every layer."""

from typing import NamedTuple

import torch
from torch import nn
from torch.nn import functional as F


class Sizes(NamedTuple):
    width: int
    layers: int


class Block(nn.Module):
    def __init__(self, width: int, activation: str):
        super().__init__()
        self.attn = nn.MultiheadAttention(width, width // 64)
        self.ln_1 = nn.LayerNorm(width)
        self.mlp = nn.Sequential()
        self.mlp.add_module("c_fc", nn.Linear(width, 4 * width))
        self.mlp.add_module("gelu", QuickGelu() if activation == "quick_gelu" else nn.GELU())
        self.mlp.add_module("c_proj", nn.Linear(4 * width, width))
        self.ln_2 = nn.LayerNorm(width)

    def forward(self, x: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
        """`[T, B, width]`."""
        normed = self.ln_1(x)
        x = x + self.attn(normed, normed, normed, need_weights=False, attn_mask=mask)[0]
        return x + self.mlp(self.ln_2(x))


class QuickGelu(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * torch.sigmoid(1.702 * x)


class Transformer(nn.Module):
    def __init__(self, sizes: Sizes, activation: str):
        super().__init__()
        self.resblocks = nn.ModuleList(
            [Block(sizes.width, activation) for _ in range(sizes.layers)]
        )

    def forward(self, x: torch.Tensor, mask: torch.Tensor | None) -> list[torch.Tensor]:
        """`[B, T, width]`; before the first block, and after each."""
        seen = [x]
        for block in self.resblocks:
            seen.append(block(seen[-1].transpose(0, 1), mask).transpose(0, 1))
        return seen


class Visual(nn.Module):
    def __init__(self, grid: int, patch: int, sizes: Sizes, output: int, activation: str):
        super().__init__()
        width = sizes.width
        self.grid = grid
        self.conv1 = nn.Conv2d(3, width, patch, patch, bias=False)
        self.class_embedding = nn.Parameter(torch.randn(width))
        self.positional_embedding = nn.Parameter(torch.randn(1 + grid * grid, width))
        self.ln_pre = nn.LayerNorm(width)
        self.transformer = Transformer(sizes, activation)
        self.ln_post = nn.LayerNorm(width)
        self.proj = nn.Parameter(torch.randn(width, output))

    def forward(self, pixels: torch.Tensor) -> list[torch.Tensor]:
        """Outputs of all layers, then the projected patches."""
        patches = self.conv1(pixels)
        side, old = int(patches.shape[-1]), self.grid
        table = self.positional_embedding[1:].T.reshape(1, -1, old, old)
        if side != old:
            table = F.interpolate(table, (side, side), mode="bicubic", align_corners=False)
        x = (patches + table).flatten(2).transpose(1, 2)
        first = (self.class_embedding + self.positional_embedding[0]).expand(len(x), 1, -1)
        seen = self.transformer(self.ln_pre(torch.cat([first, x], 1)), None)
        return [*seen, self.ln_post(seen[-1][:, 1:]) @ self.proj]


class TorchClip(nn.Module):
    """CLIP with random weights, none of them zero or one."""

    def __init__(
        self,
        *,
        grid: int,
        patch: int,
        vision: Sizes,
        text: Sizes,
        output: int,
        vocab: int,
        positions: int,
        activation: str = "quick_gelu",
    ):
        super().__init__()
        self.visual = Visual(grid, patch, vision, output, activation)
        self.transformer = Transformer(text, activation)
        self.token_embedding = nn.Embedding(vocab, text.width)
        self.positional_embedding = nn.Parameter(torch.randn(positions, text.width))
        self.ln_final = nn.LayerNorm(text.width)
        self.text_projection = nn.Parameter(torch.randn(text.width, output))
        self.logit_scale = nn.Parameter(torch.tensor(4.6))
        with torch.no_grad():
            for name, parameter in self.named_parameters():
                noise = torch.randn_like(parameter)
                parameter.copy_(scattered(name, parameter, noise))

    def read(self, ids: torch.Tensor) -> list[torch.Tensor]:
        """Outputs of all layers, the words, and the projected sentences at the largest id."""
        count = ids.shape[1]
        mask = torch.full((count, count), float("-inf")).triu_(1)
        seen = self.transformer(self.token_embedding(ids) + self.positional_embedding[:count], mask)
        words = self.ln_final(seen[-1])
        return [*seen, words, words[range(len(ids)), ids.argmax(1)] @ self.text_projection]

    def forward(self, pixels: torch.Tensor, ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return self.visual(pixels)[-1], self.read(ids)[-1]


def scattered(name: str, old: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
    """Random weights with which every mistake of a port shows.

    Inputs of the towers are small, so that the epsilon of a norm matters; norms are not the identity;
    attention is sharp.
    """
    if name.endswith(("norm.weight", "norm1.weight", "norm2.weight")) or ".ln_" in f".{name}":
        return 0.2 * noise + float(name.endswith("weight"))
    if "norm" in name or noise.ndim < 2:
        return 0.1 * noise
    if "conv1" in name or "patch_embedding" in name:
        return 0.002 * noise
    if "embedding" in name:
        return 0.05 * noise
    fan_in = old.shape[1] if name.endswith("weight") else old.shape[0]
    return 1.5 * fan_in**-0.5 * noise
