"""ReLA of the public code as plain torch functions of its state dict, in float64 or another type.

It is written from the formulas, with maps as `[B, h, w, C]`. Weights are read by the names of the public
code, with which the import table must agree. The text encoder is BERT of transformers.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import BertConfig, BertModel

from refseg_jax.images.colours import IMAGENET_MEAN, IMAGENET_STD
from tests.parity.torch_swin import Colours, TorchSwin, first, last, sine_positions
from tests.refseg_jax.weights.rela_sources import PIXELS, REGIONS, Sizes

HEADS = 8


class TorchReLA(TorchSwin):
    """Inference on square images whose side is a multiple of 32."""

    def __init__(self, state: Mapping[str, Any], sizes: Sizes, dtype: torch.dtype = torch.float64):
        super().__init__(state, sizes.window, dtype)
        self.sizes = sizes
        # Gates of zeros block the words, so the fusion need not be computed.
        self.live = any(x.any() for name, x in self.state.items() if ".res_gate." in name)
        self.bert = self._bert()

    @torch.no_grad()
    def __call__(self, image: Tensor, ids: Tensor, valid: Tensor) -> dict[str, Tensor]:
        """As `forward`."""
        return self.forward(image, ids, valid)

    def forward(self, image: Tensor, ids: Tensor, valid: Tensor) -> dict[str, Tensor]:
        """Maps u8 `[B, S, S, 3]`, integers `[B, L]` and bool `[B, L]` to the outputs of the public code.

        They are `ref_seg` `[B, 2, S, S]` before its sigmoid, `nt_label` `[B, 2]` and `minimap`
        `[B, regions, 2]`.
        """
        words = self.bert(ids, attention_mask=valid.long())[0]
        maps = self._backbone(image, words, valid)
        masks, levels = self._pixel_decoder(maps)
        found = self._predictor(levels, masks, words)
        side = image.shape[1]
        found["ref_seg"] = F.interpolate(
            found["ref_seg"], (side, side), mode="bilinear", align_corners=False
        )
        return found

    def _bert(self) -> nn.Module:
        s = self.sizes
        config = BertConfig(
            vocab_size=s.vocab,
            hidden_size=s.words,
            num_hidden_layers=s.text_layers,
            num_attention_heads=s.words // 64,
            intermediate_size=s.text_hidden,
            max_position_embeddings=s.positions,
        )
        model: Any = BertModel(config, add_pooling_layer=False)
        model = model.to(self.dtype).eval()
        own = {name.removeprefix("text_encoder."): x for name, x in self.state.items()}
        model.load_state_dict({name: own[name] for name in model.state_dict()})
        return model

    def _group_norm(self, x: Tensor, name: str) -> Tensor:
        weight, bias = self.state[f"{name}.weight"], self.state[f"{name}.bias"]
        return last(F.group_norm(first(x), 32, weight, bias))

    # The backbone.

    def _backbone(self, image: Tensor, words: Tensor, valid: Tensor) -> list[Tensor]:
        colours = Colours(IMAGENET_MEAN, IMAGENET_STD)
        x, maps = self._patches(image, "backbone.patch_embed", colours), []
        for number, depth in enumerate(self.sizes.depths):
            layer = f"backbone.layers.{number}"
            for block in range(depth):
                x = self._block(x, f"{layer}.blocks.{block}", self.sizes.heads[number], block % 2)
            fused = self._fusion(x, words, valid, f"{layer}.fusion")
            maps.append(self._norm(fused, f"backbone.norm{number}"))
            if number + 1 == len(self.sizes.depths):
                return maps
            if self.live:
                opened = F.relu(self._linear(fused, f"{layer}.res_gate.0"))
                x = x + torch.tanh(self._linear(opened, f"{layer}.res_gate.2")) * fused
            x = self._downsample(x, f"{layer}.downsample")
        raise ValueError("no stages")

    def _fusion(self, x: Tensor, words: Tensor, valid: Tensor, name: str) -> Tensor:
        pixels, attention = x.flatten(1, 2), f"{name}.image_lang_att"
        query = instance_norm(self._linear(pixels, f"{attention}.f_query.0"))
        key = self._linear(words, f"{attention}.f_key.0")
        value = self._linear(words, f"{attention}.f_value.0")
        scores = query @ key.transpose(1, 2) * x.shape[-1] ** -0.5
        found = scores.masked_fill(~valid[:, None], -torch.inf).softmax(-1) @ value
        language = instance_norm(self._linear(found, f"{attention}.W.0"))
        seen = F.gelu(self._linear(pixels, f"{name}.vis_project.0"))
        return F.gelu(self._linear(seen * language, f"{name}.project_mm.0")).reshape(x.shape)

    # The pixel decoder.

    def _pixel_decoder(self, maps: Sequence[Tensor]) -> tuple[Tensor, list[Tensor]]:
        """Mask features, and the levels from the coarsest on."""
        encoder = f"{PIXELS}.transformer"
        projected, places = [], []
        for number, x in enumerate(maps[:0:-1]):
            y = self._linear(x, f"{PIXELS}.input_proj.{number}.0")
            projected.append(self._group_norm(y, f"{PIXELS}.input_proj.{number}.1"))
            sines = sine_positions(y.shape[1], y.shape[2], y.shape[3]).to(self.dtype)
            places.append((sines + self.state[f"{encoder}.level_embed"][number]).flatten(0, 1))
        shapes = [(y.shape[1], y.shape[2]) for y in projected]
        tokens = torch.cat([y.flatten(1, 2) for y in projected], 1)
        for number in range(self.sizes.pixel_layers):
            layer = f"{encoder}.encoder.layers.{number}"
            mixed = self._deformable(tokens, torch.cat(places), shapes, f"{layer}.self_attn")
            tokens = self._norm(tokens + mixed, f"{layer}.norm1")
            hidden = F.relu(self._linear(tokens, f"{layer}.linear1"))
            tokens = self._norm(tokens + self._linear(hidden, f"{layer}.linear2"), f"{layer}.norm2")
        parts = tokens.split([h * w for h, w in shapes], 1)
        levels = [x.unflatten(1, shape) for x, shape in zip(parts, shapes, strict=True)]
        finest = self._group_norm(
            self._linear(maps[0], f"{PIXELS}.adapter_1"), f"{PIXELS}.adapter_1.norm"
        )
        coarse = F.interpolate(
            first(levels[-1]), finest.shape[1:3], mode="bilinear", align_corners=False
        )
        smooth = F.conv2d(first(finest) + coarse, self.state[f"{PIXELS}.layer_1.weight"], padding=1)
        smooth = F.relu(self._group_norm(last(smooth), f"{PIXELS}.layer_1.norm"))
        return self._linear(smooth, f"{PIXELS}.mask_features"), levels

    def _deformable(
        self, tokens: Tensor, places: Tensor, shapes: Sequence[tuple[int, int]], name: str
    ) -> Tensor:
        rows, count, _ = tokens.shape
        split_as = (rows, count, HEADS, len(shapes), self.sizes.points)
        query = tokens + places
        offsets = self._linear(query, f"{name}.sampling_offsets").reshape(*split_as, 2)
        shares = self._linear(query, f"{name}.attention_weights").reshape(*split_as[:3], -1)
        shares = shares.softmax(-1).reshape(split_as)
        values = self._linear(tokens, f"{name}.value_proj").unflatten(-1, (HEADS, -1))
        centres = []
        for height, width in shapes:
            y, x = (torch.arange(n).to(self.dtype).add(0.5) / n for n in (height, width))
            y, x = torch.meshgrid(y, x, indexing="ij")
            centres.append(torch.stack([x, y], -1).flatten(0, 1))
        own = torch.cat(centres)[:, None, None]
        total = torch.zeros(())
        for level, (height, width) in enumerate(shapes):
            start = sum(h * w for h, w in shapes[:level])
            image = values[:, start : start + height * width].permute(0, 2, 3, 1)
            image = image.flatten(0, 1).unflatten(-1, (height, width))
            where = own + offsets[:, :, :, level] / torch.tensor([width, height])
            grid = (2 * where - 1).transpose(1, 2).flatten(0, 1)
            read = F.grid_sample(image, grid, "bilinear", "zeros", False)
            read = read.unflatten(0, (rows, HEADS)).permute(0, 3, 1, 4, 2)
            total = total + (shares[:, :, :, level, :, None] * read).sum(-2)
        return self._linear(total.flatten(2), f"{name}.output_proj")

    # The relationship block.

    def _predictor(
        self, levels: Sequence[Tensor], masks: Tensor, words: Tensor
    ) -> dict[str, Tensor]:
        rows = words.shape[0]
        repeat = lambda name: self.state[f"{REGIONS}.{name}.weight"].expand(rows, -1, -1)  # noqa: E731
        x, places = repeat("query_feat"), repeat("query_embed")
        for number in range(self.sizes.layers):
            level = levels[number % 3]
            tokens = level.flatten(1, 2) + self.state[f"{REGIONS}.level_embed.weight"][number % 3]
            sines = sine_positions(*level.shape[1:]).flatten(0, 1).to(self.dtype)
            hidden = self._hidden(x, masks, (level.shape[1], level.shape[2]))
            layer = f"{REGIONS}.RIA_layers.{number}"
            y = self._attend(
                x + places,
                tokens + sines,
                tokens,
                f"{layer}.multihead_attn",
                heads=HEADS,
                hidden=hidden,
            )
            x = self._norm(x + y, f"{layer}.norm")
            if number == 0:
                x = x + 0.1 * self._look_at_words(x, words)
            layer = f"{REGIONS}.RLA_vision.{number}"
            y = self._attend(x + places, x + places, x, f"{layer}.self_attn", heads=HEADS)
            x = self._norm(x + y, f"{layer}.norm")
            layer = f"{REGIONS}.transformer_ffn_layers.{number}"
            y = self._linear(F.relu(self._linear(x, f"{layer}.linear1")), f"{layer}.linear2")
            x = self._norm(x + y, f"{layer}.norm")
        x = self._norm(x, f"{REGIONS}.decoder_norm")
        minimap = self._linear(x, f"{REGIONS}.minimap_embed")
        weighted = minimap.transpose(1, 2) @ self._perceptron(x, "mask_embed", 3)
        return {
            "ref_seg": torch.einsum("bac,bhwc->bahw", weighted, masks),
            "nt_label": self._perceptron(x, "nt_embed", 2).mean(1),
            "minimap": minimap,
        }

    @torch.no_grad()
    def _hidden(self, x: Tensor, masks: Tensor, size: tuple[int, int]) -> Tensor:
        """bool `[B * heads, regions, tokens]`, true for tokens that a region does not attend to."""
        filters = self._perceptron(self._norm(x, f"{REGIONS}.decoder_norm"), "mask_embed", 3)
        every = torch.einsum("bqc,bhwc->bqhw", filters, masks)
        small = F.interpolate(every, size, mode="bilinear", align_corners=False)
        hidden = small.flatten(2).sigmoid() < 0.5
        hidden = hidden & ~hidden.all(-1, keepdim=True)
        return hidden.repeat_interleave(HEADS, 0)

    def _look_at_words(self, x: Tensor, words: Tensor) -> Tensor:
        memory, layer = self._linear(words, f"{REGIONS}.lang_proj"), f"{REGIONS}.RLA_lang_att"
        y = self._attend(x, memory, memory, f"{layer}.multihead_attn", heads=HEADS)
        return self._norm(x + y, f"{layer}.norm") * self.state[f"{REGIONS}.lang_weight"].sigmoid()

    def _perceptron(self, x: Tensor, name: str, count: int) -> Tensor:
        for number in range(count):
            x = self._linear(x, f"{REGIONS}.{name}.layers.{number}")
            x = F.relu(x) if number + 1 < count else x
        return x


def instance_norm(x: Tensor) -> Tensor:
    """Normalises `[B, T, C]` over T."""
    return F.instance_norm(x.transpose(1, 2)).transpose(1, 2)
