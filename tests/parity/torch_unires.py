"""UniRES written plainly with torch's own modules, with which the JAX model is compared.

It shares only the config and the paths of parameters with the JAX model. Where that is optimised (taps
before upsampling, a folded 1x1 convolution, image tokens repeated late, attention in pieces), this one
follows the papers. Each row has one image and K expressions.
"""

import math
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from refseg_jax.models.unires_config import UniRESConfig

MEAN = (0.48145466, 0.4578275, 0.40821073)
STD = (0.26862954, 0.26130258, 0.27577711)


class Attention(nn.MultiheadAttention):
    """torch's attention, returning no weights; `blocked` is true for keys that must not be seen."""

    def __init__(self, width: int, heads: int):
        super().__init__(width, heads, batch_first=True)

    def forward(  # pyright: ignore[reportIncompatibleMethodOverride]
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        blocked: torch.Tensor | None = None,
        blocked_pairs: torch.Tensor | None = None,
    ) -> torch.Tensor:
        return super().forward(
            query,
            key,
            value,
            key_padding_mask=blocked,
            attn_mask=blocked_pairs,
            need_weights=False,
        )[0]


class QuickGeluMlp(nn.Module):
    def __init__(self, width: int):
        super().__init__()
        self.up = nn.Linear(width, 4 * width)
        self.down = nn.Linear(4 * width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.up(x)
        return self.down(x * torch.sigmoid(1.702 * x))


class ClipBlock(nn.Module):
    def __init__(self, width: int, heads: int):
        super().__init__()
        self.attention_norm = nn.LayerNorm(width)
        self.attention = Attention(width, heads)
        self.mlp_norm = nn.LayerNorm(width)
        self.mlp = QuickGeluMlp(width)

    def forward(self, x: torch.Tensor, blocked: torch.Tensor | None = None) -> torch.Tensor:
        y = self.attention_norm(x)
        x = x + self.attention(y, y, y, blocked_pairs=blocked)
        return x + self.mlp(self.mlp_norm(x))


class PatchEmbedding(nn.Conv2d):
    def __init__(self, patch_size: int, width: int):
        super().__init__(3, width, patch_size, patch_size, bias=False)

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """Maps u8 `[B, H, W, 3]` to `[B, P, width]`."""
        mean, std = input.new_tensor(MEAN, dtype=torch.float32), torch.tensor(STD)
        normal = (input.float() / 255.0 - mean) / std
        return super().forward(normal.permute(0, 3, 1, 2)).flatten(2).transpose(1, 2)


class ClipVision(nn.Module):
    def __init__(self, config: UniRESConfig):
        super().__init__()
        width = config.vision_width

        def table(count: int) -> nn.Parameter:
            return nn.Parameter(torch.zeros(count, width))

        self.patch_embedding = PatchEmbedding(config.patch_size, width)
        self.class_token = table(1)
        self.position_embedding = table(1 + config.grid**2)
        self.low_tokens = table(config.low_tokens) if config.low_tokens else None
        self.high_tokens = table(config.high_tokens) if config.high_tokens else None
        self.input_norm = nn.LayerNorm(width)
        self.blocks = nn.ModuleList(
            ClipBlock(width, config.vision_heads) for _ in range(config.vision_layers)
        )
        self.final_norm = nn.LayerNorm(width)
        self.projection = nn.Linear(width, config.embedding_width, bias=False)

    def forward(
        self, image: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor | None]:
        """Maps u8 `[B, H, W, 3]` to patches `[B, P, embedding]` and group tokens `[B, T, width]`."""
        patches = self.patch_embedding(image)
        x = torch.cat([self.class_token.expand(len(image), 1, -1), patches], 1)
        x = self.input_norm(x + self.position_embedding)
        half = len(self.blocks) // 2
        x, low = _cross(x, self.low_tokens, self.blocks[:half])
        x, high = _cross(x, self.high_tokens, self.blocks[half:])
        return self.projection(self.final_norm(x[:, 1:])), low, high


def _cross(
    x: torch.Tensor, tokens: nn.Parameter | None, blocks: Any
) -> tuple[torch.Tensor, torch.Tensor | None]:
    count = x.shape[1]
    if tokens is not None:
        x = torch.cat([x, tokens.expand(len(x), -1, -1)], 1)
    for block in blocks:
        x = block(x)
    return x[:, :count], None if tokens is None else x[:, count:]


class ClipText(nn.Module):
    def __init__(self, config: UniRESConfig):
        super().__init__()
        width = config.text_width
        self.token_embedding = nn.Embedding(config.vocab_size, width)
        self.position_embedding = nn.Parameter(torch.zeros(config.text_positions, width))
        self.blocks = nn.ModuleList(
            ClipBlock(width, config.text_heads) for _ in range(config.text_layers)
        )
        self.final_norm = nn.LayerNorm(width)
        self.projection = nn.Linear(width, config.embedding_width, bias=False)
        self.eos_id = config.eos_id

    def forward(self, ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Maps ids `[B, L]` to words `[B, L, width]` and sentences `[B, embedding]`."""
        length = ids.shape[1]
        x = self.token_embedding(ids) + self.position_embedding[:length]
        future = torch.ones(length, length, dtype=torch.bool).triu(1)
        for block in self.blocks:
            x = block(x, future)
        words = self.final_norm(x)
        end = (ids == self.eos_id).int().argmax(1)
        return words, self.projection(words[torch.arange(len(ids)), end])


class RegionFilter(nn.Module):
    def __init__(self, config: UniRESConfig):
        super().__init__()
        width = config.decoder_width
        self.input_norm = nn.LayerNorm(config.vision_width) if config.filter_norm else nn.Identity()
        self.input = nn.Linear(config.vision_width, width)
        self.attention = Attention(width, config.decoder_heads)
        self.up = nn.Linear(width, config.decoder_hidden)
        self.down = nn.Linear(config.decoder_hidden, width)

    def forward(
        self, tokens: torch.Tensor, words: torch.Tensor, blocked: torch.Tensor
    ) -> torch.Tensor:
        x = self.input(self.input_norm(tokens))
        x = x + self.attention(x, words, words, blocked)
        return x + self.down(F.relu(self.up(x)))


class DecoderMlp(nn.Module):
    def __init__(self, width: int, hidden: int, dropout: float):
        super().__init__()
        self.up = nn.Linear(width, hidden)
        self.drop = nn.Dropout(dropout)
        self.norm = nn.LayerNorm(hidden)
        self.down = nn.Linear(hidden, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.down(self.norm(self.drop(F.relu(self.up(x)))))


class DecoderLayer(nn.Module):
    """CRIS's layer."""

    def __init__(self, config: UniRESConfig):
        super().__init__()
        width, heads = config.decoder_width, config.decoder_heads
        self.self_attention_norm = nn.LayerNorm(width)
        self.self_attention = Attention(width, heads)
        self.self_attention_output_norm = nn.LayerNorm(width)
        self.cross_attention_norm = nn.LayerNorm(width)
        self.cross_attention = Attention(width, heads)
        self.cross_attention_output_norm = nn.LayerNorm(width)
        self.mlp_norm = nn.LayerNorm(width)
        self.mlp = DecoderMlp(width, config.decoder_hidden, config.dropout)
        self.drop = nn.Dropout(config.dropout)

    def forward(
        self,
        x: torch.Tensor,
        positions: torch.Tensor,
        memory_key: torch.Tensor,
        memory: torch.Tensor,
        blocked: torch.Tensor | None,
    ) -> torch.Tensor:
        value = self.self_attention_norm(x)
        query = value + positions
        y = self.self_attention(query, query, value)
        x = x + self.drop(self.self_attention_output_norm(y))
        query = self.cross_attention_norm(x) + positions
        y = self.cross_attention(query, memory_key, memory, blocked)
        x = x + self.drop(self.cross_attention_output_norm(y))
        return x + self.drop(self.mlp(self.mlp_norm(x)))


class Decoder(nn.Module):
    def __init__(self, config: UniRESConfig, layers: int):
        super().__init__()
        self.layers = nn.ModuleList(DecoderLayer(config) for _ in range(layers))
        self.final_norm = nn.LayerNorm(config.decoder_width)

    def forward(
        self,
        x: torch.Tensor,
        positions: torch.Tensor,
        memory_key: torch.Tensor,
        memory: torch.Tensor,
        blocked: torch.Tensor | None = None,
    ) -> torch.Tensor:
        for layer in self.layers:
            x = layer(x, positions, memory_key, memory, blocked)
        return self.final_norm(x)


class ProjectorHead(nn.Module):
    """CRIS's projector, with GroupNorm for BatchNorm."""

    def __init__(self, config: UniRESConfig):
        super().__init__()
        stages = int(math.log2(config.patch_size // config.mask_stride))
        widths = [config.decoder_width] * stages + [config.decoder_width // 2]
        self.convolutions = nn.ModuleList(
            nn.Conv2d(widths[i], widths[i + 1], 3, padding=1, bias=False) for i in range(stages)
        )
        self.norms = nn.ModuleList(nn.GroupNorm(math.gcd(32, w), w) for w in widths[1:])
        self.projection = nn.Conv2d(widths[-1], widths[-1], 1)
        self.text = nn.Linear(config.embedding_width, 9 * widths[-1] + 1)

    def forward(self, x: torch.Tensor, sentence: torch.Tensor) -> torch.Tensor:
        for convolution, norm in zip(self.convolutions, self.norms, strict=True):
            x = F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False)
            x = F.relu(norm(convolution(x)))
        x = self.projection(x)
        rows, channels, height, width = x.shape
        written = self.text(sentence)
        kernel, bias = written[:, :-1].reshape(rows, channels, 3, 3), written[:, -1]
        x = x.reshape(1, rows * channels, height, width)
        return F.conv2d(x, kernel, bias, padding=1, groups=rows)[0]


class LinearHead(nn.Module):
    def __init__(self, config: UniRESConfig):
        super().__init__()
        self.projection = nn.Conv2d(config.decoder_width, 1, 1)
        self.factor = config.patch_size // config.mask_stride

    def forward(self, x: torch.Tensor, sentence: torch.Tensor) -> torch.Tensor:
        del sentence
        x = self.projection(x)
        return F.interpolate(
            x, scale_factor=self.factor, mode="bilinear", align_corners=False
        ).squeeze(1)


class PixelShuffleHead(nn.Module):
    def __init__(self, config: UniRESConfig):
        super().__init__()
        self.factor = config.patch_size // config.mask_stride
        self.projection = nn.Conv2d(config.decoder_width, self.factor**2, 1)

    def forward(self, x: torch.Tensor, sentence: torch.Tensor) -> torch.Tensor:
        del sentence
        return F.pixel_shuffle(self.projection(x), self.factor).squeeze(1)


HEADS = {"projector": ProjectorHead, "pixel_shuffle": PixelShuffleHead, "linear": LinearHead}


class TorchUniRES(nn.Module):
    """The twin of `refseg_jax.models.unires.UniRES`; attributes have the names of its paths."""

    def __init__(self, config: UniRESConfig):
        super().__init__()
        width = config.decoder_width
        self.config = config
        self.vision = ClipVision(config)
        self.text = ClipText(config)
        if config.embedding_width != width:
            self.patch_adapter = nn.Linear(config.embedding_width, width)
        if config.text_width != width:
            self.word_adapter = nn.Linear(config.text_width, width)
        self.low_filter = RegionFilter(config) if config.low_tokens else None
        self.high_filter = RegionFilter(config) if config.high_tokens else None
        self.decoder = Decoder(config, config.decoder_layers)
        groups = config.low_tokens + config.high_tokens
        self.group_decoder = Decoder(config, 1) if groups else None
        self.head = HEADS[config.head](config)

    def forward(self, image: torch.Tensor, text: torch.Tensor, valid: torch.Tensor) -> torch.Tensor:
        """Maps u8 `[B, H, W, 3]`, ids `[B, K, L]` and bool `[B, K, L]` to logits `[B, K, h, w]`."""
        rows, expressions, length = text.shape
        patches, *groups = self.vision(image)
        words, sentence = self.text(text.flatten(0, 1))
        patches = self.patch_adapter(patches) if hasattr(self, "patch_adapter") else patches
        words = self.word_adapter(words) if hasattr(self, "word_adapter") else words
        blocked = ~valid.flatten(0, 1)

        x = patches.repeat_interleave(expressions, 0)
        side, width = self.config.grid, self.config.decoder_width
        positions = sine_positions_2d(side, width)
        word_key = words + sine_positions_1d(length, width)
        x = self.decoder(x, positions, word_key, words, blocked)
        if self.group_decoder is not None:
            regions = self.filter(groups, words, blocked)
            x = self.group_decoder(x, positions, regions, regions)
        x = x.transpose(1, 2).reshape(-1, width, side, side)
        logits = self.head(x, sentence)
        return logits.reshape(rows, expressions, *logits.shape[1:])

    def filter(
        self, groups: list[torch.Tensor | None], words: torch.Tensor, blocked: torch.Tensor
    ) -> torch.Tensor:
        """Group tokens of both levels after their filters, `[B * K, T, width]`."""
        levels = []
        for level, tokens in zip((self.low_filter, self.high_filter), groups, strict=True):
            if level is not None and tokens is not None:
                tokens = tokens.repeat_interleave(len(words) // len(tokens), 0)
                levels.append(level(tokens, words, blocked))
        return torch.cat(levels, 1)


def sine_positions_1d(length: int, width: int) -> torch.Tensor:
    """`[length, width]`: alternating sin and cos of `p / 10000^(2i/width)`."""
    place = torch.arange(length, dtype=torch.float64)[:, None]
    angle = place / 10000.0 ** (torch.arange(0, width, 2, dtype=torch.float64) / width)
    table = torch.empty(length, width)
    table[:, 0::2], table[:, 1::2] = angle.sin(), angle.cos()
    return table


def sine_positions_2d(side: int, width: int) -> torch.Tensor:
    """`[side * side, width]`: the first half of the channels encodes x, the second y."""
    axis = sine_positions_1d(side, width // 2)
    return torch.cat([axis.repeat(side, 1), axis.repeat_interleave(side, 0)], 1)


def mask_loss(
    logits: torch.Tensor, mask: torch.Tensor, *, cross_entropy: float = 1.0, dice: float = 0.0
) -> torch.Tensor:
    """The loss of `MaskObjective` for logits and u8 masks `[B, K, h, w]`."""
    target = mask.float() / 255.0
    share = torch.sigmoid(logits)
    overlap, total = (share * target).sum((-2, -1)), (share + target).sum((-2, -1))
    per_pair = 1.0 - (2.0 * overlap + 1.0) / (total + 1.0)
    cells = F.binary_cross_entropy_with_logits(logits, target)
    return cross_entropy * cells + dice * per_pair.mean()
