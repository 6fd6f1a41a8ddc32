"""The pixel decoder of Swin-B at 480 in f32 on this CPU, compared with transformers' Mask2Former.

It times forward and backward pass, with gradients of parameters and maps. Both sides take turns. The
ratio is (torch's time / ours), above 1 if ours is faster.
"""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from transformers.models.mask2former.modeling_mask2former import multi_scale_deformable_attention

from refseg_jax.decoders.pixel_decoder import PixelDecoderConfig
from refseg_jax.layers.deformable_attention import own_places, sample_levels
from tests.benchmarks.turns import clocked, cpu_seconds, ratios, spread, take_turns
from tests.parity import mask2former

ROUNDS = 5
CONFIG = PixelDecoderConfig()
WIDTHS = (128, 256, 512, 1024)
SIDES = (120, 60, 30, 15)

Run = Callable[[], Any]


@pytest.mark.bench
@pytest.mark.parametrize("rows", [1, 2])
def test_pixel_decoder_at_480(rows: int, tmp_path: Path):
    report(f"pixel decoder, {rows} image(s) of 480", *whole(rows, tmp_path))


@pytest.mark.bench
def test_sampling_at_480():
    report("its sampling alone, one layer, 1 image of 480", *sampling())


def report(name: str, ours: Run, theirs: Run) -> None:
    """Prints wall-clock and CPU time; other work on the machine disturbs only the first."""
    for run in (ours, theirs) * 2:
        run()
    print(f"\n{name}, {torch.get_num_threads()} threads")
    for kind, clock in (("wall", clocked), ("CPU", cpu_seconds)):
        works = {"JAX": partial(clock, ours), "torch": partial(clock, theirs)}
        seconds = take_turns(works, ROUNDS)
        print(
            f"{kind:5} JAX {median(seconds['JAX']):.3f} s, torch {median(seconds['torch']):.3f} s, "
            f"ratio {spread(ratios(seconds['torch'], seconds['JAX']), '.2f')}"
        )


def whole(rows: int, folder: Path) -> tuple[Run, Run]:
    theirs = mask2former.their_pixel_decoder(CONFIG, WIDTHS)
    forward = mask2former.our_pixel_decoder(CONFIG, WIDTHS)
    params = mask2former.copied(theirs, mask2former.pixel_decoder_table, forward, folder)
    rng = np.random.default_rng(0)
    maps = [
        rng.standard_normal((rows, side, side, width), np.float32)
        for side, width in zip(SIDES, WIDTHS, strict=True)
    ]

    def backward(params: Any, maps: Any) -> Any:
        outputs, pull = jax.vjp(lambda p, m: forward.bind(p)(m), params, maps)
        return outputs, pull(jax.tree.map(jnp.ones_like, outputs))

    compiled, arrays = jax.jit(backward), jax.device_put((params, maps))
    tensors = [torch.from_numpy(x).permute(0, 3, 1, 2).contiguous().requires_grad_() for x in maps]

    def run() -> None:
        theirs.zero_grad()
        for tensor in tensors:
            tensor.grad = None
        result = theirs(tensors, output_hidden_states=False, output_attentions=False)
        outputs = [result.mask_features, *result.multi_scale_features]
        torch.autograd.backward(outputs, [torch.ones_like(x) for x in outputs])

    return lambda: jax.block_until_ready(compiled(*arrays)), run


def sampling() -> tuple[Run, Run]:
    shapes = [(side, side) for side in SIDES[:0:-1]]
    places = own_places(shapes)[None, :, None, :, None]
    split = (1, places.shape[1], CONFIG.heads, len(shapes), CONFIG.points)
    rng = np.random.default_rng(0)
    # About the range of offsets at initialisation.
    places = (places + 2.0 * rng.standard_normal((*split, 2))).astype(np.float32)
    weights = rng.random(split, np.float32)
    value = rng.standard_normal((*split[:3], CONFIG.width // CONFIG.heads), np.float32)

    def backward(*inputs: jax.Array) -> Any:
        mixed, pull = jax.vjp(lambda v, p, w: sample_levels(v, p, w, shapes), *inputs)
        return mixed, pull(jnp.ones_like(mixed))

    compiled, arrays = jax.jit(backward), jax.device_put((value, places, weights))
    sizes = np.array([(width, height) for height, width in shapes], np.float32)[:, None]
    tensors = [torch.from_numpy(x) for x in (value, (places + 0.5) / sizes, weights)]
    value_t, places_t, weights_t = (x.requires_grad_() for x in tensors)

    def run() -> None:
        for tensor in tensors:
            tensor.grad = None
        mixed = multi_scale_deformable_attention(value_t, shapes, places_t, weights_t)
        mixed.backward(torch.ones_like(mixed))

    return lambda: jax.block_until_ready(compiled(*arrays)), run
