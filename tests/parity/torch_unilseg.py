"""UniLSeg's public form as plain torch functions of its state dict, in float64 or another type.

It is written from the formulas, with maps as `[B, h, w, C]`. A row is one image and one expression: an
image is encoded anew for each. Weights are read by the names of the public code, with which the import
table must agree. It covers inference, and training without dropout.
"""

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from refseg_jax.images.colours import CLIP_MEAN, CLIP_STD
from tests.parity.torch_swin import Colours, TorchSwin, first, last, sine_positions
from tests.refseg_jax.weights.unilseg_sources import Sizes

HEADS = 8

#: Share of the newest batch in the running averages, torch's default.
MOMENTUM = 0.1

PIXELS, QUERIES = "pixel_decoder", "query_decoder"
DETR = f"{QUERIES}.query_transformer.decoder"


class TorchUniLSeg(TorchSwin):
    """The model on square images whose side is a multiple of 32.

    Attributes:
        training: whether BatchNorm uses the statistics of the batch; it then moves the running averages
            in `state`.
    """

    def __init__(self, state: Mapping[str, Any], sizes: Sizes, dtype: torch.dtype = torch.float64):
        super().__init__(state, sizes.window, dtype)
        self.sizes = sizes
        self.training = False

    def __call__(self, image: Tensor, ids: Tensor, valid: Tensor) -> Tensor:
        """u8 `[B, S, S, 3]`, integers `[B, L]`, bool `[B, L]` to logits `[layers, B, S / 4, S / 4]`."""
        maps = self._backbone(image)
        words, sentence = self._text(ids)
        maps = [self._pre_fusion(x, words, ~valid, stage) for stage, x in enumerate(maps)]
        features = self._pyramid(maps, words, ~valid)
        queries = self._queries(maps[-1], sentence)
        return torch.einsum("bhwc,lbc->lbhw", features, queries)

    # The towers.

    def _backbone(self, image: Tensor) -> list[Tensor]:
        tower, maps = "backbone_visual", []
        x = self._patches(image, f"{tower}.patch_embed", Colours(CLIP_MEAN, CLIP_STD))
        for stage, depth in enumerate(self.sizes.depths):
            if stage:
                x = self._downsample(x, f"{tower}.layers.{stage - 1}.downsample")
            for block in range(depth):
                name = f"{tower}.layers.{stage}.blocks.{block}"
                x = self._block(x, name, self.sizes.heads[stage], block % 2)
            maps.append(self._norm(x, f"{tower}.norm{stage}"))
        return maps

    def _text(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        """Words `[B, L, C]` after the last norm, and projected sentences at the largest id."""
        tower, length = "backbone", ids.shape[1]
        x = self.state[f"{tower}.token_embedding.weight"][ids]
        x = x + self.state[f"{tower}.positional_embedding"][:length]
        future = torch.ones(length, length, dtype=torch.bool).triu(1)
        for number in range(self.sizes.clip.text_layers):
            name = f"{tower}.transformer.resblocks.{number}"
            y = self._norm(x, f"{name}.ln_1")
            heads = self.sizes.clip.text // 64
            x = x + self._attend(y, y, y, f"{name}.attn", heads=heads, hidden=future)
            hidden = self._linear(self._norm(x, f"{name}.ln_2"), f"{name}.mlp.c_fc")
            x = x + self._linear(hidden * (1.702 * hidden).sigmoid(), f"{name}.mlp.c_proj")
        words = self._norm(x, f"{tower}.ln_final")
        ends = words[torch.arange(len(ids)), ids.argmax(1)]
        return words, ends @ self.state[f"{tower}.text_projection"]

    # The decoder.

    def _pre_fusion(self, x: Tensor, words: Tensor, padding: Tensor, stage: int) -> Tensor:
        coarsest = stage == 3
        linear = "fusion_proj" if coarsest else f"all_fusion_proj.{stage}"
        module = "fusion" if coarsest else f"all_fusion_module.{stage}"
        memory = self._linear(words, linear)
        query = (x + self._centres(x)).flatten(1, 2)
        name = f"{module}.multihead_attn"
        y = self._attend(query, memory, memory, name, heads=HEADS, padding=padding)
        return x + y.reshape(x.shape)

    def _pyramid(self, maps: list[Tensor], words: Tensor, padding: Tensor) -> Tensor:
        coarser = None
        for number in (4, 3, 2, 1):
            x = self._unit(maps[number - 1], f"{PIXELS}.adapter_{number}")
            x = self._vision_layer(x, words, padding, f"{PIXELS}.cross_attn_{number}")
            if coarser is not None:
                x = x + resized(coarser, (x.shape[1], x.shape[2]))
            coarser = self._unit(x, f"{PIXELS}.layer_{number}")
        assert coarser is not None
        return self._unit(coarser, f"{PIXELS}.mask_features")

    def _vision_layer(self, x: Tensor, words: Tensor, padding: Tensor, name: str) -> Tensor:
        rows, height, width, channels = x.shape
        level = int(name[-1])
        small = (height // 2 ** (4 - level), width // 2 ** (4 - level))
        positions = self._centres(x)
        cells = small[0] * small[1]
        placed = torch.cat([resized(x + positions, small).flatten(1, 2), words], 1)
        plain = torch.cat([resized(x, small).flatten(1, 2), words], 1)
        seen = torch.cat([torch.zeros(rows, cells, dtype=torch.bool), padding], 1)
        y = self._attend(placed, placed, plain, f"{name}.self_attn", heads=HEADS, padding=seen)
        y = resized(y[:, :cells].unflatten(1, small), (height, width))
        x = self._norm(x + y, f"{name}.norm1")
        length = words.shape[1]
        turn = 2 * math.pi * torch.arange(1, length + 1, dtype=torch.float64) / (length + 1e-6)
        channel = torch.arange(channels)
        angle = turn[:, None] / 10000.0 ** (2 * (channel // 2) / channels)
        place = torch.where(channel % 2 == 0, angle.sin(), angle.cos()).to(self.dtype)
        query = (x + positions).flatten(1, 2)
        y = self._attend(
            query, words + place, words, f"{name}.multihead_attn", heads=HEADS, padding=padding
        )
        x = self._norm(x + y.reshape(x.shape), f"{name}.norm2")
        return self._mlp(x, name)

    def _queries(self, seen: Tensor, sentence: Tensor) -> Tensor:
        """`[layers, B, C]`."""
        visual = self._unit(seen, f"{QUERIES}.visual_proj")
        place = self._unit(sentence, f"{QUERIES}.text_proj")[:, None]
        memory = visual.flatten(1, 2)
        placed = (visual + self._centres(visual)).flatten(1, 2)
        x, found = torch.zeros_like(place), []
        for number in range(self.sizes.layers):
            name = f"{DETR}.layers.{number}"
            y = self._attend(x + place, x + place, x, f"{name}.self_attn", heads=HEADS)
            x = self._norm(x + y, f"{name}.norm1")
            y = self._attend(x + place, placed, memory, f"{name}.multihead_attn", heads=HEADS)
            x = self._norm(x + y, f"{name}.norm2")
            x = self._mlp(x, name)
            found.append(self._norm(x, f"{DETR}.norm")[:, 0])
        return torch.stack(found)

    def _mlp(self, x: Tensor, name: str) -> Tensor:
        hidden = F.relu(self._linear(x, f"{name}.linear1"))
        return self._norm(x + self._linear(hidden, f"{name}.linear2"), f"{name}.norm3")

    def _unit(self, x: Tensor, name: str) -> Tensor:
        """A product without bias, BatchNorm and ReLU, of maps or vectors."""
        weight = self.state[f"{name}.0.weight"]
        if x.ndim == 2:
            return F.relu(self._batch_norm(x @ weight.T, f"{name}.1"))
        convolved = F.conv2d(first(x), weight, padding=weight.shape[-1] // 2)
        return F.relu(last(self._batch_norm(convolved, f"{name}.1")))

    def _batch_norm(self, x: Tensor, name: str) -> Tensor:
        names = ("running_mean", "running_var", "weight", "bias")
        mean, variance, weight, bias = (self.state[f"{name}.{part}"] for part in names)
        return F.batch_norm(x, mean, variance, weight, bias, self.training, MOMENTUM)

    def _centres(self, x: Tensor) -> Tensor:
        return sine_positions(*x.shape[1:], offset=-0.5).to(self.dtype)


def resized(x: Tensor, size: tuple[int, int]) -> Tensor:
    """`[B, h, w, C]` to `[B, *size, C]`, bilinear."""
    return last(F.interpolate(first(x), size, mode="bilinear", align_corners=False))
