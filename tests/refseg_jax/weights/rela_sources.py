"""Names and shapes of the released ReLA's state dict, and files with random values for them.

They are written from the modules of the public code (henghuiding/ReLA), name by name, and not from the
table that is tested.
"""

from pathlib import Path
from typing import NamedTuple

import numpy as np

from tests.refseg_jax.weights.torch_archive import torch_archive
from tests.refseg_jax.weights.tower_sources import Shapes, linear, ms_swin, norm

PIXELS, REGIONS = "sem_seg_head.pixel_decoder", "sem_seg_head.predictor"


class Sizes(NamedTuple):
    """Sizes of Swin, of BERT, and of the modules between them."""

    swin: int
    depths: tuple[int, ...]
    heads: tuple[int, ...]
    window: int
    vocab: int
    positions: int
    words: int
    text_layers: int
    text_hidden: int
    width: int
    pixel_layers: int
    points: int
    pixel_hidden: int
    regions: int
    layers: int
    hidden: int


#: Sizes of `configs/referring_swin_base.yaml` and `configs/referring_swin_tiny.yaml`.
BASE = Sizes(
    *(128, (2, 2, 18, 2), (4, 8, 16, 32), 12),
    *(30522, 512, 768, 12, 3072),
    *(256, 6, 4, 1024, 100, 9, 2048),
)
TINY = BASE._replace(swin=96, depths=(2, 2, 6, 2), heads=(3, 6, 12, 24), window=7)
#: Vocabulary and widths as small as 8 heads and 32 groups of channels allow.
SMALL = Sizes(
    *(4, (1, 2, 1, 1), (1, 1, 2, 2), 4),
    *(110, 24, 64, 2, 16),
    *(32, 2, 1, 24, 4, 2, 40),
)


def rela(sizes: Sizes) -> Shapes:
    """Name of every entry -> its shape, in no particular order."""
    return backbone(sizes) | bert(sizes) | pixel_decoder(sizes) | predictor(sizes)


def backbone(sizes: Sizes) -> Shapes:
    """A Swin for object detection, with a fusion after each stage and a gate between stages."""
    plain = ms_swin(sizes.swin, sizes.depths, sizes.heads, sizes.window, backbone=True)
    shapes: Shapes = {f"backbone.{name}": shape for name, shape in plain.items()}
    for stage in range(len(sizes.depths)):
        c = sizes.swin << stage
        layer = f"backbone.layers.{stage}"
        inputs = {
            "vis_project.0": c,
            "image_lang_att.f_key.0": sizes.words,
            "image_lang_att.f_query.0": c,
            "image_lang_att.f_value.0": sizes.words,
            "image_lang_att.W.0": c,
            "project_mm.0": c,
        }
        for name, width in inputs.items():
            shapes[f"{layer}.fusion.{name}.weight"] = (c, width, 1)
            shapes[f"{layer}.fusion.{name}.bias"] = (c,)
        if stage + 1 < len(sizes.depths):
            shapes[f"{layer}.res_gate.0.weight"] = (c, c)
            shapes[f"{layer}.res_gate.2.weight"] = (c, c)
    return shapes


def bert(sizes: Sizes) -> Shapes:
    """`BertModel` without its pooler, as transformers 4 stores it."""
    c, embeddings = sizes.words, "text_encoder.embeddings"
    shapes: Shapes = {
        f"{embeddings}.position_ids": (1, sizes.positions),
        f"{embeddings}.word_embeddings.weight": (sizes.vocab, c),
        f"{embeddings}.position_embeddings.weight": (sizes.positions, c),
        f"{embeddings}.token_type_embeddings.weight": (2, c),
    }
    shapes |= norm(f"{embeddings}.LayerNorm", c)
    for number in range(sizes.text_layers):
        layer = f"text_encoder.encoder.layer.{number}"
        for part in ("query", "key", "value"):
            shapes |= linear(f"{layer}.attention.self.{part}", c, c)
        shapes |= linear(f"{layer}.attention.output.dense", c, c)
        shapes |= norm(f"{layer}.attention.output.LayerNorm", c)
        shapes |= linear(f"{layer}.intermediate.dense", sizes.text_hidden, c)
        shapes |= linear(f"{layer}.output.dense", c, sizes.text_hidden)
        shapes |= norm(f"{layer}.output.LayerNorm", c)
    return shapes


def pixel_decoder(sizes: Sizes) -> Shapes:
    """`MSDeformAttnPixelDecoder`: projections begin with the coarsest map."""
    c, samples = sizes.width, 8 * 3 * sizes.points
    shapes: Shapes = {f"{PIXELS}.transformer.level_embed": (3, c)}
    for number in range(3):
        shapes[f"{PIXELS}.input_proj.{number}.0.weight"] = (c, sizes.swin << (3 - number), 1, 1)
        shapes[f"{PIXELS}.input_proj.{number}.0.bias"] = (c,)
        shapes |= norm(f"{PIXELS}.input_proj.{number}.1", c)
    for number in range(sizes.pixel_layers):
        layer = f"{PIXELS}.transformer.encoder.layers.{number}"
        shapes |= linear(f"{layer}.self_attn.sampling_offsets", 2 * samples, c)
        shapes |= linear(f"{layer}.self_attn.attention_weights", samples, c)
        shapes |= linear(f"{layer}.self_attn.value_proj", c, c)
        shapes |= linear(f"{layer}.self_attn.output_proj", c, c)
        shapes |= linear(f"{layer}.linear1", sizes.pixel_hidden, c)
        shapes |= linear(f"{layer}.linear2", c, sizes.pixel_hidden)
        shapes |= norm(f"{layer}.norm1", c) | norm(f"{layer}.norm2", c)
    shapes[f"{PIXELS}.mask_features.weight"] = (c, c, 1, 1)
    shapes[f"{PIXELS}.mask_features.bias"] = (c,)
    shapes[f"{PIXELS}.adapter_1.weight"] = (c, sizes.swin, 1, 1)
    shapes[f"{PIXELS}.layer_1.weight"] = (c, c, 3, 3)
    return shapes | norm(f"{PIXELS}.adapter_1.norm", c) | norm(f"{PIXELS}.layer_1.norm", c)


def predictor(sizes: Sizes) -> Shapes:
    """`MultiScaleMaskedReferringDecoder`; its `input_proj` is empty."""
    c = sizes.width
    shapes: Shapes = {
        f"{REGIONS}.query_feat.weight": (sizes.regions, c),
        f"{REGIONS}.query_embed.weight": (sizes.regions, c),
        f"{REGIONS}.level_embed.weight": (3, c),
        f"{REGIONS}.lang_proj.weight": (c, sizes.words),
        f"{REGIONS}.lang_weight": (),
    }
    attentions = {"RLA_lang_att": "multihead_attn"}
    for number in range(sizes.layers):
        attentions[f"RLA_vision.{number}"] = "self_attn"
        attentions[f"RIA_layers.{number}"] = "multihead_attn"
        layer = f"{REGIONS}.transformer_ffn_layers.{number}"
        shapes |= linear(f"{layer}.linear1", sizes.hidden, c)
        shapes |= linear(f"{layer}.linear2", c, sizes.hidden) | norm(f"{layer}.norm", c)
    for layer, name in attentions.items():
        shapes[f"{REGIONS}.{layer}.{name}.in_proj_weight"] = (3 * c, c)
        shapes[f"{REGIONS}.{layer}.{name}.in_proj_bias"] = (3 * c,)
        shapes |= linear(f"{REGIONS}.{layer}.{name}.out_proj", c, c)
        shapes |= norm(f"{REGIONS}.{layer}.norm", c)
    shapes |= norm(f"{REGIONS}.decoder_norm", c) | linear(f"{REGIONS}.minimap_embed", 2, c)
    shapes |= linear(f"{REGIONS}.nt_embed.layers.0", c, c)
    shapes |= linear(f"{REGIONS}.nt_embed.layers.1", 2, c)
    for number in range(3):
        shapes |= linear(f"{REGIONS}.mask_embed.layers.{number}", c, c)
    return shapes


def _attention(name: str, kind: str, c: int) -> Shapes:
    """A layer of torch's MultiheadAttention and the norm behind it."""
    return {
        f"{name}.{kind}.in_proj_weight": (3 * c, c),
        f"{name}.{kind}.in_proj_bias": (3 * c,),
        **linear(f"{name}.{kind}.out_proj", c, c),
        **norm(f"{name}.norm", c),
    }


def original(sizes: Sizes) -> dict[str, Shapes]:
    """Decoders that the description of the branch `original` allows: form -> name and shape of entries.

    That branch keeps two features apart, RIA's for the masks and RLA's for minimap and presence. RLA
    acts at the last layer only, through a projection that begins at zero and a gate. The layers before
    are Mask2Former's. No file of the branch was at hand: its names are not known for certain.
    """
    c, plain = sizes.width, predictor(sizes)
    shared = ("query_feat", "query_embed", "level_embed", "decoder_norm", "minimap_embed")
    shared += ("nt_embed", "mask_embed", "transformer_ffn_layers")
    heads = {n: x for n, x in plain.items() if n.split(".")[2] in shared}
    rla = {
        f"{REGIONS}.lang_proj.weight": (c, sizes.words),
        f"{REGIONS}.lang_weight": (),
        **_attention(f"{REGIONS}.RLA_lang_att", "multihead_attn", c),
    }
    layers = {}
    for number in range(sizes.layers):
        before = f"{REGIONS}.transformer"
        layers |= _attention(f"{before}_cross_attention_layers.{number}", "multihead_attn", c)
        layers |= _attention(f"{before}_self_attention_layers.{number}", "self_attn", c)
    ria = {n: x for n, x in plain.items() if n.split(".")[2] == "RIA_layers"}
    once, last = f"{REGIONS}.RLA_vision", sizes.layers - 1
    return {
        "Mask2Former's layers": heads | rla | layers | _attention(once, "self_attn", c),
        "RLA once": heads | rla | ria | _attention(once, "self_attn", c),
        "RLA at the last layer": heads | rla | ria | _attention(f"{once}.{last}", "self_attn", c),
        "main's layers and a gate": {**plain, f"{REGIONS}.RLA_gate": ()},
        "main's layers and a projection": {**plain, **linear(f"{REGIONS}.RLA_proj", c, c)},
    }


def is_index(name: str) -> bool:
    return name.endswith(("position_index", "position_ids"))


def arrays(shapes: Shapes, *, live: bool) -> dict[str, np.ndarray]:
    """Random values for which activations neither vanish nor explode.

    With `live`, gates are random as well, as after training; else they are zero.
    """
    rng = np.random.default_rng(0)

    def draw(name: str, shape: tuple[int, ...]) -> np.ndarray:
        if is_index(name):
            return np.zeros(shape, np.int64)
        noise = rng.standard_normal(shape).astype(np.float32)
        if "res_gate" in name and not live:
            return np.zeros_like(noise)
        if "norm" in name.lower() and name.endswith("weight"):
            return 1.0 + 0.2 * noise
        if len(shape) < 2:
            return 0.1 * noise
        tables = ("_bias_table", "query_feat.weight", "query_embed.weight", "level_embed.weight")
        fan_in = 1 if name.endswith(tables) else np.prod(shape[1:])
        return noise * np.float32(fan_in**-0.5)

    return {name: np.asarray(draw(name, shape)) for name, shape in shapes.items()}


def checkpoint(path: Path, values: dict[str, np.ndarray]) -> Path:
    """Writes a file as detectron2 does: the state dict is one of several entries."""
    rest = {"iteration": 149_999, "scheduler": {"last_epoch": 150_000, "base_lrs": [1e-5]}}
    return torch_archive(path, values, wrap=lambda state: {"model": state, **rest})
