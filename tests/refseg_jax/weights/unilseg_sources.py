"""Names and shapes of the released UniLSeg's state dict, and files with random values for them.

They are written from the list of names and shapes of the public model (yongliu20/UniLSeg), and not from
the table that is tested.
"""

from pathlib import Path
from typing import NamedTuple

import numpy as np

from tests.refseg_jax.weights.clip_sources import Clip, openai_shapes
from tests.refseg_jax.weights.torch_archive import torch_archive
from tests.refseg_jax.weights.tower_sources import Shapes, linear, ms_swin, norm


class Sizes(NamedTuple):
    """Sizes of Swin, of the whole CLIP, and of the decoder."""

    swin: int
    depths: tuple[int, int, int, int]
    heads: tuple[int, ...]
    window: int
    clip: Clip
    width: int
    masks: int
    hidden: int
    layers: int


#: Sizes of the released file.
BASE = Sizes(
    *(128, (2, 2, 18, 2), (4, 8, 16, 32), 7, Clip(224, 16, 768, 12, 512, 512, 12)),
    *(512, 256, 2048, 6),
)
#: Widths as small as 8 heads allow; the words have the width of the vision path, as in the public code.
SMALL = Sizes(
    *(8, (1, 2, 1, 1), (1, 1, 2, 2), 4, Clip(32, 16, 16, 1, 24, 64, 2, vocab=60, positions=12)),
    *(64, 32, 40, 2),
)


def unilseg(sizes: Sizes) -> Shapes:
    """Name of every entry -> its shape, in no particular order."""
    swin = ms_swin(sizes.swin, sizes.depths, sizes.heads, sizes.window, backbone=True)
    return {
        **{f"backbone.{name}": shape for name, shape in openai_shapes(sizes.clip).items()},
        **{f"backbone_visual.{name}": shape for name, shape in swin.items()},
        **pre_fusion(sizes),
        **pixel_decoder(sizes),
        **query_decoder(sizes),
    }


def pre_fusion(sizes: Sizes) -> Shapes:
    """Three scales in lists; the coarsest has names of its own."""
    modules = {f"all_fusion_module.{n}": f"all_fusion_proj.{n}" for n in range(3)}
    modules["fusion"] = "fusion_proj"
    shapes: Shapes = {}
    for stage, (module, projection) in enumerate(modules.items()):
        c = sizes.swin << stage
        shapes |= linear(projection, c, sizes.clip.text) | attention(f"{module}.multihead_attn", c)
    return shapes


def pixel_decoder(sizes: Sizes) -> Shapes:
    c, shapes = sizes.width, {}
    for level in range(4):
        adapter, layer = f"pixel_decoder.adapter_{level + 1}", f"pixel_decoder.layer_{level + 1}"
        shapes |= {f"{adapter}.0.weight": (c, sizes.swin << level, 1, 1), **bn(f"{adapter}.1", c)}
        shapes |= {f"{layer}.0.weight": (c, c, 3, 3), **bn(f"{layer}.1", c)}
        shapes |= decoder_layer(f"pixel_decoder.cross_attn_{level + 1}", c, sizes.hidden)
    masks = "pixel_decoder.mask_features"
    return {
        **shapes,
        f"{masks}.0.weight": (sizes.masks, c, 3, 3),
        **bn(f"{masks}.1", sizes.masks),
    }


def query_decoder(sizes: Sizes) -> Shapes:
    c, visual, text = sizes.masks, "query_decoder.visual_proj", "query_decoder.text_proj"
    decoder = "query_decoder.query_transformer.decoder"
    shapes: Shapes = {
        f"{visual}.0.weight": (c, sizes.swin << 3, 3, 3),
        f"{text}.0.weight": (c, sizes.clip.output),
        **bn(f"{visual}.1", c),
        **bn(f"{text}.1", c),
        **norm(f"{decoder}.norm", c),
    }
    for number in range(sizes.layers):
        shapes |= decoder_layer(f"{decoder}.layers.{number}", c, sizes.hidden)
    return shapes


def decoder_layer(name: str, c: int, hidden: int) -> Shapes:
    return {
        **attention(f"{name}.self_attn", c),
        **attention(f"{name}.multihead_attn", c),
        **linear(f"{name}.linear1", hidden, c),
        **linear(f"{name}.linear2", c, hidden),
        **norm(f"{name}.norm1", c),
        **norm(f"{name}.norm2", c),
        **norm(f"{name}.norm3", c),
    }


def attention(name: str, c: int) -> Shapes:
    """torch's MultiheadAttention."""
    return {
        f"{name}.in_proj_weight": (3 * c, c),
        f"{name}.in_proj_bias": (3 * c,),
        **linear(f"{name}.out_proj", c, c),
    }


def bn(name: str, c: int) -> Shapes:
    """torch's BatchNorm."""
    return {
        **norm(name, c),
        f"{name}.running_mean": (c,),
        f"{name}.running_var": (c,),
        f"{name}.num_batches_tracked": (),
    }


def is_integer(name: str) -> bool:
    return name.endswith(("position_index", "num_batches_tracked"))


def arrays(shapes: Shapes) -> dict[str, np.ndarray]:
    """Random values for which activations neither vanish nor explode."""
    rng = np.random.default_rng(0)

    def draw(name: str, shape: tuple[int, ...]) -> np.ndarray:
        if is_integer(name):
            return np.full(shape, 7, np.int64)
        noise = rng.standard_normal(shape).astype(np.float32)
        scale = name.endswith("weight") and len(shape) == 1
        if scale or name.endswith("running_var"):
            return np.maximum(1.0 + 0.2 * noise, 0.3).astype(np.float32)
        if len(shape) < 2:
            return 0.1 * noise
        tables = ("_bias_table", "embedding.weight", "positional_embedding")
        if name.endswith(tables):
            return noise if "bias" in name else 0.3 * noise
        matrices = ("text_projection", "proj")
        fan_in = shape[0] if name.endswith(matrices) else np.prod(shape[1:])
        return noise * np.float32(fan_in**-0.5)

    return {name: np.asarray(draw(name, shape)) for name, shape in shapes.items()}


def checkpoint(path: Path, values: dict[str, np.ndarray]) -> Path:
    """Writes a file as CRIS's training code does: below `state_dict`, with DataParallel's prefix."""
    parallel = {f"module.{name}": value for name, value in values.items()}
    rest = {"epoch": 15, "best_iou": 0.5}
    return torch_archive(path, parallel, wrap=lambda state: {**rest, "state_dict": state})
