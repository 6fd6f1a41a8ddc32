"""The forward pass of CLIP's ViT-B/16 in f32 on this CPU, compared with that of transformers.

Both have the same weights and take turns. The ratio is ours / torch's and must be at most 1.1. Shares
are relative to each library's own rate in a large matrix product, measured in the same turns.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

from refseg_jax.exports.clip import towers
from refseg_jax.images.colours import CLIP_MEAN, CLIP_STD
from tests.benchmarks import vit
from tests.benchmarks.turns import clocked, ratios, spread, take_turns

ROUNDS, SIDE = 11, 2048


@pytest.mark.bench
@pytest.mark.parametrize("size", [224, 480])
def test_forward_pass_of_vit_b16(size):
    forward = vit.tower(size, "float32")
    params = vit.random_parameters(forward)
    images = vit.random_images(size, 1)
    pixels = (images / 255.0 - CLIP_MEAN) / CLIP_STD
    theirs = torch.from_numpy(np.moveaxis(pixels, 3, 1).astype(np.float32))
    twin = make_twin(size, params)
    on_device = jax.device_put(params)
    run = jax.jit(partial(vit.see, forward))
    np.testing.assert_allclose(run(on_device, images), see(twin, theirs), rtol=0, atol=1e-4)

    square = np.random.default_rng(0).standard_normal((SIDE, SIDE), np.float32)
    ours, tensor = jnp.asarray(square), torch.from_numpy(square)
    multiply = jax.jit(jnp.matmul)
    works = {
        "jax": lambda: run(on_device, images).block_until_ready(),
        "torch": lambda: see(twin, theirs),
        "jax matmul": lambda: multiply(ours, ours).block_until_ready(),
        "torch matmul": lambda: tensor @ tensor,
    }
    for work in works.values():
        work()
    seconds = take_turns({name: partial(clocked, work) for name, work in works.items()}, ROUNDS)
    work = vit.count_flops(forward, images)
    print(f"\nViT-B/16, f32, 1 image of {size}, {work / 1e9:.0f} GFLOP")
    for name in ("jax", "torch"):
        peaks = [2 * SIDE**3 / s for s in seconds[f"{name} matmul"]]
        reached = [100 * work / s / p for s, p in zip(seconds[name], peaks, strict=True)]
        print(
            f"{name:6} {spread((1e3 * s for s in seconds[name]), '.0f')} ms, "
            f"share of the matmul peak {spread(reached, '.0f')} %"
        )
    print(f"jax / torch (bar: 1.1) {spread(ratios(seconds['jax'], seconds['torch']), '.2f')}")


def make_twin(size: int, params: dict[str, np.ndarray]) -> CLIPVisionModelWithProjection:
    """transformers' tower, with parameters read by the names that an export writes."""
    entries = towers({f"vision.{path}": leaf for path, leaf in params.items()})
    del entries["logit_scale"]
    config = CLIPVisionConfig(
        hidden_size=768,
        intermediate_size=3072,
        num_hidden_layers=12,
        num_attention_heads=12,
        projection_dim=512,
        image_size=size,
        patch_size=vit.PATCH,
    )
    twin = CLIPVisionModelWithProjection(config).eval()
    state: dict[str, Any] = {n: torch.from_numpy(np.array(leaf)) for n, leaf in entries.items()}
    missing, unexpected = twin.load_state_dict(state, strict=False)
    assert not unexpected
    assert all(name.endswith("position_ids") for name in missing), missing
    return twin


def see(twin: CLIPVisionModelWithProjection, pixels: torch.Tensor) -> torch.Tensor:
    """The projected patches, as in our tower; CLIP itself projects only the class token."""
    with torch.inference_mode():
        seen = twin.vision_model(pixels).last_hidden_state[:, 1:]
        return twin.visual_projection(twin.vision_model.post_layernorm(seen))[0:1]
