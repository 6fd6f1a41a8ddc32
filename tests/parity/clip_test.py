"""Our towers without group tokens against CLIP as transformers has it, and resized positions."""

from typing import Any

import jax
import numpy as np
import pytest
import torch
from flax import nnx
from torch.nn import functional as F
from transformers import CLIPConfig, CLIPModel

from refseg_jax.colours import CLIP_MEAN, CLIP_STD
from refseg_jax.encoders.clip_text import ClipText
from refseg_jax.encoders.clip_vision import ClipVision
from refseg_jax.models import UniRES, UniRESConfig
from refseg_jax.resize import resize_position_embedding
from refseg_jax.train_state import Forward

pytestmark = pytest.mark.parity

PATCH, GRID, EOS = 8, 4, 60
VISION: dict[str, Any] = {"width": 48, "heads": 3, "layers": 4, "output_width": 40}
TEXT: dict[str, Any] = {"width": 32, "heads": 4, "layers": 3, "output_width": 40}

#: Our names by those of transformers, within a transformer block.
BLOCK = {
    "self_attn.q_proj": "attention.query",
    "self_attn.k_proj": "attention.key",
    "self_attn.v_proj": "attention.value",
    "self_attn.out_proj": "attention.out",
    "layer_norm1": "attention_norm",
    "layer_norm2": "mlp_norm",
    "mlp.fc1": "mlp.up",
    "mlp.fc2": "mlp.down",
}


def their_sizes(sizes: dict[str, int]) -> dict[str, Any]:
    return {
        "hidden_size": sizes["width"],
        "intermediate_size": 4 * sizes["width"],
        "num_hidden_layers": sizes["layers"],
        "num_attention_heads": sizes["heads"],
    }


@pytest.fixture(scope="module")
def clip() -> CLIPModel:
    """A small CLIP with random weights, none of them zero or one."""
    torch.manual_seed(0)
    vision = {**their_sizes(VISION), "image_size": PATCH * GRID, "patch_size": PATCH}
    text = {**their_sizes(TEXT), "vocab_size": 64, "max_position_embeddings": 20}
    ids = {"bos_token_id": 1, "eos_token_id": EOS, "pad_token_id": 0}
    config = CLIPConfig(
        vision_config=vision, text_config={**text, **ids}, projection_dim=VISION["output_width"]
    )
    model = CLIPModel(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


def layer(theirs: dict[str, torch.Tensor], name: str, ours: str) -> dict[str, np.ndarray]:
    """A linear layer or a norm of transformers, by our paths."""
    weight = theirs[f"{name}.weight"].numpy()
    path = f"{ours}.kernel" if weight.ndim == 2 else f"{ours}.scale"
    leaves = {path: weight.T}
    if f"{name}.bias" in theirs:
        leaves[f"{ours}.bias"] = theirs[f"{name}.bias"].numpy()
    return leaves


def blocks(theirs: dict[str, torch.Tensor], tower: str, layers: int) -> dict[str, np.ndarray]:
    params = {}
    for number in range(layers):
        for name, ours in BLOCK.items():
            full = f"{tower}.encoder.layers.{number}.{name}"
            params |= layer(theirs, full, f"blocks.{number}.{ours}")
    return params


def vision_params(clip: CLIPModel, grid: int) -> dict[str, np.ndarray]:
    theirs = clip.state_dict()
    embeddings = "vision_model.embeddings"
    table = theirs[f"{embeddings}.position_embedding.weight"].numpy()
    return {
        "patch_embedding.kernel": theirs[f"{embeddings}.patch_embedding.weight"]
        .permute(2, 3, 1, 0)
        .numpy(),
        "class_token": theirs[f"{embeddings}.class_embedding"][None].numpy(),
        "position_embedding": np.asarray(resize_position_embedding(table, grid)),
        **layer(theirs, "vision_model.pre_layrnorm", "input_norm"),
        **layer(theirs, "vision_model.post_layernorm", "final_norm"),
        **layer(theirs, "visual_projection", "projection"),
        **blocks(theirs, "vision_model", VISION["layers"]),
    }


def text_params(clip: CLIPModel) -> dict[str, np.ndarray]:
    theirs = clip.state_dict()
    embeddings = "text_model.embeddings"
    return {
        "token_embedding.embedding": theirs[f"{embeddings}.token_embedding.weight"].numpy(),
        "position_embedding": theirs[f"{embeddings}.position_embedding.weight"].numpy(),
        **layer(theirs, "text_model.final_layer_norm", "final_norm"),
        **layer(theirs, "text_projection", "projection"),
        **blocks(theirs, "text_model", TEXT["layers"]),
    }


def our_model(grid: int, rngs: nnx.Rngs) -> UniRES:
    """The model whose towers have CLIP's sizes; nothing but the towers is looked at."""
    config = UniRESConfig(
        image_size=grid * PATCH,
        patch_size=PATCH,
        **{f"vision_{name}": VISION[name] for name in ("width", "heads", "layers")},
        **{f"text_{name}": TEXT[name] for name in ("width", "heads", "layers")},
        embedding_width=VISION["output_width"],
        vocab_size=64,
        text_positions=20,
        eos_id=EOS,
        low_tokens=0,
        high_tokens=0,
    )
    return UniRES(config, rngs=rngs)


@pytest.mark.parametrize("grid", [GRID, 7])
def test_image_tower_is_clips(clip, grid):
    # Another grid than CLIP was built for: they resize the positions as they run, we when loading.
    forward: Forward[ClipVision] = Forward(lambda rngs: our_model(grid, rngs).vision)
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (2, grid * PATCH, grid * PATCH, 3), np.uint8)
    normal = (image / 255.0 - CLIP_MEAN) / CLIP_STD
    pixels = torch.from_numpy(normal.astype(np.float32)).permute(0, 3, 1, 2)
    with torch.inference_mode():
        seen = clip.vision_model(pixels, interpolate_pos_encoding=True).last_hidden_state
        normed = clip.vision_model.post_layernorm(seen[:, 1:])
        expected = clip.visual_projection(normed)
    run = jax.jit(lambda params, image: forward.bind(params)(image))
    ours = run(vision_params(clip, grid), image)
    assert ours.low is None and ours.high is None
    np.testing.assert_allclose(ours.high_patches, seen[:, 1:], rtol=0, atol=1e-5)
    np.testing.assert_allclose(ours.patches, expected, rtol=0, atol=1e-5)


def test_text_tower_is_clips(clip):
    forward: Forward[ClipText] = Forward(lambda rngs: our_model(GRID, rngs).text)
    place, end = np.arange(12), np.array([[3], [7], [11]])
    rng = np.random.default_rng(0)
    ids = rng.integers(1, EOS, (3, 12))
    # Ids above the EOS stand before it: the sentence is at the EOS, not at the largest id.
    ids[:, 1] = EOS + 2
    ids = np.where(place < end, ids, np.where(place == end, EOS, 0))
    with torch.inference_mode():
        read = clip.text_model(torch.from_numpy(ids))
        sentence = clip.text_projection(read.pooler_output)
    run: Any = jax.jit(lambda params, ids: forward.bind(params)(ids))
    words, ours = run(text_params(clip), ids.astype(np.int32))
    np.testing.assert_allclose(words, read.last_hidden_state, rtol=0, atol=1e-5)
    np.testing.assert_allclose(ours, sentence, rtol=0, atol=1e-5)


@pytest.mark.parametrize(("old", "new"), [(7, 13), (14, 26), (14, 14), (16, 30), (14, 9), (7, 4)])
def test_positions_are_resized_as_torch_does(old, new):
    table = np.random.default_rng(0).standard_normal((1 + old * old, 5), np.float32)
    cells = torch.from_numpy(table[1:]).reshape(1, old, old, 5).permute(0, 3, 1, 2)
    resized = F.interpolate(cells, size=(new, new), mode="bicubic", align_corners=False)
    expected = resized.permute(0, 2, 3, 1).reshape(new * new, 5).numpy()
    ours = np.asarray(resize_position_embedding(table, new))
    np.testing.assert_array_equal(ours[:1], table[:1])
    np.testing.assert_allclose(ours[1:], expected, rtol=0, atol=1e-5)
