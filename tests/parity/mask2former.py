"""transformers' Mask2Former modules with random weights, and our modules with the same weights."""

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch
from flax import nnx
from safetensors.torch import save_file
from torch import nn
from transformers import Mask2FormerConfig
from transformers.models.mask2former.modeling_mask2former import (
    Mask2FormerMaskedAttentionDecoderLayer,
    Mask2FormerPixelDecoder,
)

from refseg_jax.decoders.pixel_decoder import PixelDecoder, PixelDecoderConfig
from refseg_jax.models.forward import Forward
from refseg_jax.weights.table import Table, convolution, linear, norm, packed, rename
from tests.parity.towers import loaded, scatter

M = TypeVar("M", bound=nnx.Module)


def flat_convolution(value: Any, shape: tuple[int, ...]) -> Any:
    """The weight of torch's 1x1 convolution as a kernel `[inputs, outputs]`."""
    return convolution(value, shape).reshape(shape)


def scattered(module: nn.Module) -> nn.Module:
    """Sets random weights with which every mistake of a port shows; returns the module."""
    torch.manual_seed(0)
    scatter(module)
    for name, part in module.named_modules():
        if isinstance(part, nn.GroupNorm):
            part.weight.data = 1.0 + 0.2 * torch.randn_like(part.weight.data)
        if name.endswith("sampling_offsets"):
            # About the range of offsets at initialisation, so that some points lie outside the map.
            part.bias.data = 2.0 * torch.randn_like(part.bias)
    return module.eval()


def their_pixel_decoder(config: PixelDecoderConfig, widths: Sequence[int]) -> nn.Module:
    """transformers' pixel decoder of four maps: it always mixes the three coarsest."""
    theirs = Mask2FormerConfig(
        feature_size=config.width,
        mask_feature_size=config.mask_width,
        encoder_layers=config.layers,
        num_attention_heads=config.heads,
        encoder_feedforward_dim=config.hidden,
        dropout=0.0,
    )
    return scattered(Mask2FormerPixelDecoder(theirs, list(widths)))


def their_layer(width: int, heads: int, hidden: int) -> nn.Module:
    theirs = Mask2FormerConfig(
        hidden_dim=width, num_attention_heads=heads, dim_feedforward=hidden, dropout=0.0
    )
    return scattered(Mask2FormerMaskedAttentionDecoderLayer(theirs))


def pixel_decoder_table(entries: Iterable[str]) -> Table:
    del entries
    layer, ours = r"encoder\.layers\.(\d+)", r"layers.\1"
    attention = rf"{layer}\.self_attn"
    flat = lambda source, target: (  # noqa: E731
        rename(rf"{source}\.weight", f"{target}.kernel", flat_convolution),
        rename(rf"{source}\.bias", f"{target}.bias"),
    )
    rules = (
        *flat(r"input_projections\.(\d+)\.0", r"projections.\1.linear"),
        *norm(r"input_projections\.(\d+)\.1", r"projections.\1.norm"),
        rename("level_embed", "level_embedding"),
        *linear(rf"{attention}\.sampling_offsets", f"{ours}.attention.offsets"),
        *linear(rf"{attention}\.attention_weights", f"{ours}.attention.shares"),
        *linear(rf"{attention}\.value_proj", f"{ours}.attention.value"),
        *linear(rf"{attention}\.output_proj", f"{ours}.attention.out"),
        *norm(rf"{layer}\.self_attn_layer_norm", f"{ours}.attention_norm"),
        *linear(rf"{layer}\.fc1", f"{ours}.mlp.up"),
        *linear(rf"{layer}\.fc2", f"{ours}.mlp.down"),
        *norm(rf"{layer}\.final_layer_norm", f"{ours}.mlp_norm"),
        *flat(r"adapter_1\.0", "lateral.linear"),
        *norm(r"adapter_1\.1", "lateral.norm"),
        rename(r"layer_1\.0\.weight", "convolution.kernel", convolution),
        *norm(r"layer_1\.1", "convolution_norm"),
        *flat("mask_projection", "mask_projection"),
    )
    return Table(rules, {}, {})


def layer_table(entries: Iterable[str]) -> Table:
    del entries
    three = ("cross_attention.query", "cross_attention.key", "cross_attention.value")
    rules = (
        *packed(r"cross_attn", three, "in_proj_weight", "in_proj_bias"),
        *linear(r"cross_attn\.out_proj", "cross_attention.out"),
        *norm("cross_attn_layer_norm", "cross_attention_norm"),
        *linear(r"self_attn\.q_proj", "self_attention.query"),
        *linear(r"self_attn\.k_proj", "self_attention.key"),
        *linear(r"self_attn\.v_proj", "self_attention.value"),
        *linear(r"self_attn\.out_proj", "self_attention.out"),
        *norm("self_attn_layer_norm", "self_attention_norm"),
        *linear("fc1", "mlp.up"),
        *linear("fc2", "mlp.down"),
        *norm("final_layer_norm", "mlp_norm"),
    )
    return Table(rules, {}, {})


def copied(
    module: nn.Module,
    table: Callable[[Iterable[str]], Table],
    forward: Forward[M],
    folder: Path,
) -> dict[str, Any]:
    """Our parameters with their values; checks that every entry is read and every parameter written."""
    path = folder / "weights.safetensors"
    save_file({k: v.contiguous() for k, v in module.state_dict().items()}, path)
    params, plan = loaded(path, table, forward)
    assert not plan.unread and not plan.unwritten
    return params


def our_pixel_decoder(config: PixelDecoderConfig, widths: Sequence[int]) -> Forward[PixelDecoder]:
    return Forward(lambda rngs: PixelDecoder(config, widths, rngs=rngs))
