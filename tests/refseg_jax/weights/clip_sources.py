"""Names and shapes of published CLIPs from their sizes, and files of small CLIPs, without torch."""

import json
import math
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from safetensors.numpy import save_file

from tests.refseg_jax.weights.torch_archive import torch_archive

Shapes = dict[str, tuple[int, ...]]


class Clip(NamedTuple):
    """Sizes of a CLIP."""

    image: int
    patch: int
    vision: int
    vision_layers: int
    output: int
    text: int
    text_layers: int
    vocab: int = 49408
    positions: int = 77

    @property
    def table(self) -> int:
        """Number of rows of the table of image positions."""
        return 1 + (self.image // self.patch) ** 2


#: Sizes of published CLIPs. `SMALL` is not published; it is for tests.
PUBLISHED = {
    "B/32": Clip(224, 32, 768, 12, 512, 512, 12),
    "B/16": Clip(224, 16, 768, 12, 512, 512, 12),
    "L/14": Clip(224, 14, 1024, 24, 768, 768, 12),
    "L/14@336": Clip(336, 14, 1024, 24, 768, 768, 12),
}
SMALL = Clip(32, 16, 128, 2, 24, 64, 2, vocab=50, positions=20)


def _linear(name: str, inputs: int, outputs: int) -> Shapes:
    return {f"{name}.weight": (outputs, inputs), f"{name}.bias": (outputs,)}


def _norms(width: int, *names: str) -> Shapes:
    return {f"{name}.{leaf}": (width,) for name in names for leaf in ("weight", "bias")}


def _openai_blocks(prefix: str, width: int, layers: int) -> Shapes:
    shapes: Shapes = {}
    for number in range(layers):
        block = f"{prefix}.resblocks.{number}"
        shapes |= {
            f"{block}.attn.in_proj_weight": (3 * width, width),
            f"{block}.attn.in_proj_bias": (3 * width,),
            **_linear(f"{block}.attn.out_proj", width, width),
            **_norms(width, f"{block}.ln_1", f"{block}.ln_2"),
            **_linear(f"{block}.mlp.c_fc", width, 4 * width),
            **_linear(f"{block}.mlp.c_proj", 4 * width, width),
        }
    return shapes


def openai_shapes(clip: Clip) -> Shapes:
    return {
        "logit_scale": (),
        "positional_embedding": (clip.positions, clip.text),
        "text_projection": (clip.text, clip.output),
        "token_embedding.weight": (clip.vocab, clip.text),
        "visual.class_embedding": (clip.vision,),
        "visual.conv1.weight": (clip.vision, 3, clip.patch, clip.patch),
        "visual.positional_embedding": (clip.table, clip.vision),
        "visual.proj": (clip.vision, clip.output),
        **_norms(clip.vision, "visual.ln_pre", "visual.ln_post"),
        **_norms(clip.text, "ln_final"),
        **_openai_blocks("visual.transformer", clip.vision, clip.vision_layers),
        **_openai_blocks("transformer", clip.text, clip.text_layers),
    }


def _hf_blocks(prefix: str, width: int, layers: int) -> Shapes:
    shapes: Shapes = {}
    for number in range(layers):
        block = f"{prefix}.encoder.layers.{number}"
        for part in "qkv":
            shapes |= _linear(f"{block}.self_attn.{part}_proj", width, width)
        shapes |= {
            **_linear(f"{block}.self_attn.out_proj", width, width),
            **_norms(width, f"{block}.layer_norm1", f"{block}.layer_norm2"),
            **_linear(f"{block}.mlp.fc1", width, 4 * width),
            **_linear(f"{block}.mlp.fc2", 4 * width, width),
        }
    return shapes


def hf_shapes(clip: Clip) -> Shapes:
    vision, text = "vision_model.embeddings", "text_model.embeddings"
    return {
        "logit_scale": (),
        f"{text}.position_embedding.weight": (clip.positions, clip.text),
        f"{text}.token_embedding.weight": (clip.vocab, clip.text),
        f"{vision}.class_embedding": (clip.vision,),
        f"{vision}.patch_embedding.weight": (clip.vision, 3, clip.patch, clip.patch),
        f"{vision}.position_embedding.weight": (clip.table, clip.vision),
        "visual_projection.weight": (clip.output, clip.vision),
        "text_projection.weight": (clip.output, clip.text),
        **_norms(clip.vision, "vision_model.pre_layrnorm", "vision_model.post_layernorm"),
        **_norms(clip.text, "text_model.final_layer_norm"),
        **_hf_blocks("vision_model", clip.vision, clip.vision_layers),
        **_hf_blocks("text_model", clip.text, clip.text_layers),
    }


def structs(shapes: Shapes, dtype: Any = np.float32) -> dict[str, jax.ShapeDtypeStruct]:
    return {entry: jax.ShapeDtypeStruct(shape, dtype) for entry, shape in shapes.items()}


def arrays(shapes: Shapes) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)

    def draw(shape: tuple[int, ...]) -> np.ndarray:
        return np.asarray(rng.standard_normal(shape) / math.prod(shape[1:]) ** 0.5, np.float32)

    return {entry: draw(shape) for entry, shape in shapes.items()}


def hf_folder(folder: Path, clip: Clip = SMALL, **changes: Any) -> Path:
    """Writes a small CLIP as transformers saves it; `changes` are fields of both towers."""
    folder.mkdir(exist_ok=True)
    save_file(arrays(hf_shapes(clip)), folder / "model.safetensors")
    vision = {"num_attention_heads": clip.vision // 64, **changes}
    # As in OpenAI's models on the hub, the EOS id is wrong, and stands for the largest id.
    text = {"num_attention_heads": clip.text // 64, "eos_token_id": 2, **changes}
    config = {"vision_config": vision, "text_config": text}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def openclip_folder(folder: Path, **changes: Any) -> Path:
    """Writes a small CLIP as OpenCLIP publishes it; `changes` are fields of `model_cfg`."""
    folder.mkdir(exist_ok=True)
    save_file(arrays(openai_shapes(SMALL)), folder / "open_clip_model.safetensors")
    towers = {"vision_cfg": {"width": SMALL.vision}, "text_cfg": {"heads": SMALL.text // 64}}
    config = {"model_cfg": {**towers, **changes}}
    (folder / "open_clip_config.json").write_text(json.dumps(config))
    return folder


def openai_file(folder: Path) -> Path:
    """Writes a small CLIP as OpenAI's state dict, with the entries of sizes that only they have."""
    folder.mkdir(exist_ok=True)
    sizes = {"input_resolution": np.full((), SMALL.image), "vocab_size": np.full((), SMALL.vocab)}
    return torch_archive(folder / "ViT.pt", {**arrays(openai_shapes(SMALL)), **sizes})


#: Fields of a model into which the small CLIP fits.
SMALL_MODEL: dict[str, Any] = {
    "image_size": 48,
    "patch_size": SMALL.patch,
    "vision_width": SMALL.vision,
    "vision_layers": SMALL.vision_layers,
    "vision_heads": SMALL.vision // 64,
    "embedding_width": SMALL.output,
    "text_width": SMALL.text,
    "text_layers": SMALL.text_layers,
    "text_heads": SMALL.text // 64,
    "vocab_size": SMALL.vocab,
    "text_positions": SMALL.positions,
    "eos_id": SMALL.vocab - 1,
    "low_tokens": 4,
    "high_tokens": 2,
    "decoder_width": 32,
    "decoder_heads": 2,
    "decoder_hidden": 32,
    "decoder_layers": 1,
}
