"""The pixel decoder with the weights of transformers' Mask2Former, and faults that must show."""

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from refseg_jax.decoders import pixel_decoder
from refseg_jax.decoders.pixel_decoder import PixelDecoderConfig, PixelFeatures
from refseg_jax.layers import deformable_attention
from refseg_jax.layers.positions import sine_positions_2d
from tests.parity.mask2former import (
    copied,
    our_pixel_decoder,
    pixel_decoder_table,
    their_pixel_decoder,
)
from tests.parity.towers import BAR, errors

pytestmark = pytest.mark.parity

CONFIG = PixelDecoderConfig(width=64, mask_width=48, layers=2, heads=4, hidden=96)
WIDTHS = (16, 24, 32, 40)

#: Maps of an image whose sides no stride divides, and of one that all divide.
SIZES = {
    "odd": ((25, 33), (13, 17), (7, 9), (4, 5)),
    "even": ((32, 24), (16, 12), (8, 6), (4, 3)),
}

#: Of the issue: relative, of every gradient.
GRADIENT_BAR = 1e-4

Patch = pytest.MonkeyPatch


@functools.cache
def theirs() -> Any:
    return their_pixel_decoder(CONFIG, WIDTHS)


@functools.cache
def maps(name: str) -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    return [
        rng.standard_normal((2, *size, width), np.float32)
        for size, width in zip(SIZES[name], WIDTHS, strict=True)
    ]


@functools.cache
def cotangents(name: str) -> list[np.ndarray]:
    """By which the outputs are multiplied (masks first) to make a scalar."""
    rng = np.random.default_rng(1)
    widths = (CONFIG.mask_width, *[CONFIG.width] * 3)
    sizes = (SIZES[name][0], *SIZES[name][:0:-1])
    return [
        rng.standard_normal((2, *size, width), np.float32)
        for size, width in zip(sizes, widths, strict=True)
    ]


def channels_first(x: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(x).permute(0, 3, 1, 2).contiguous().requires_grad_()


def flat(features: PixelFeatures) -> list[jax.Array]:
    return [features.masks, *features.levels]


@functools.cache
def expected(name: str) -> tuple[list[torch.Tensor], list[torch.Tensor], dict[str, torch.Tensor]]:
    """Outputs, gradients of the maps, and of the parameters by their names."""
    module, inputs = theirs(), [channels_first(x) for x in maps(name)]
    module.zero_grad()
    result = module(inputs, output_hidden_states=False, output_attentions=False)
    outputs = [result.mask_features, *result.multi_scale_features]
    outputs = [x.permute(0, 2, 3, 1) for x in outputs]
    value = sum(
        (y * torch.from_numpy(c)).sum() for y, c in zip(outputs, cotangents(name), strict=True)
    )
    value.backward()  # pyright: ignore
    gradients = [x.grad.permute(0, 2, 3, 1) for x in inputs]  # pyright: ignore
    named = {path: p.grad.clone() for path, p in module.named_parameters()}
    return [x.detach().contiguous() for x in outputs], gradients, named


def params_of(folder: Path) -> dict[str, Any]:
    return copied(theirs(), pixel_decoder_table, our_pixel_decoder(CONFIG, WIDTHS), folder)


def compare(folder: Path, name: str) -> list[float]:
    forward, params = our_pixel_decoder(CONFIG, WIDTHS), params_of(folder)
    run = jax.jit(lambda maps: flat(forward.bind(params)(maps)))
    return errors(run(maps(name)), expected(name)[0])


@pytest.mark.parametrize("name", SIZES)
def test_every_map_is_mask2formers(tmp_path: Path, name: str):
    found = compare(tmp_path, name)
    assert len(found) == 4
    print(f"{name}: " + " ".join(f"{e:.1e}" for e in found))
    assert max(found) <= BAR, found


class Gradients(torch.nn.Module):
    """Their parameters' gradients under their parameters' names, to be read by the same table."""

    def __init__(self, named: dict[str, torch.Tensor]):
        super().__init__()
        self.named = named

    def state_dict(self, *_: Any, **__: Any) -> Any:
        return self.named


@pytest.mark.parametrize(("name", "remat"), [("odd", False), ("even", True)])
def test_every_gradient_is_mask2formers(tmp_path: Path, name: str, remat: bool):
    config = PixelDecoderConfig(**{**vars(CONFIG), "remat": remat})
    forward, params = our_pixel_decoder(config, WIDTHS), params_of(tmp_path)

    def value(params: Any, maps: Any) -> jax.Array:
        outputs = flat(forward.bind(params)(maps))
        return sum(
            (jnp.vdot(y, c) for y, c in zip(outputs, cotangents(name), strict=True)), jnp.zeros(())
        )

    ours, of_maps = jax.jit(jax.grad(value, argnums=(0, 1)))(params, maps(name))
    _, maps_expected, named = expected(name)
    named_expected = copied(Gradients(named), pixel_decoder_table, forward, tmp_path)
    pairs = [(a, b.numpy()) for a, b in zip(of_maps, maps_expected, strict=True)]
    pairs += [(ours[path], named_expected[path]) for path in forward.shapes]
    found = [float(np.linalg.norm(a - b) / np.linalg.norm(b)) for a, b in pairs]
    print(f"{name}, remat={remat}: worst {max(found):.1e} of {len(found)}")
    assert len(found) == len(forward.shapes) + 4
    assert max(found) <= GRADIENT_BAR, max(found)


def no_half_cell(patch: Patch) -> None:
    plain = deformable_attention.own_places
    patch.setattr(deformable_attention, "own_places", lambda shapes: plain(shapes) + 0.5)


def rows_before_columns(patch: Patch) -> None:
    plain = deformable_attention.own_places
    patch.setattr(deformable_attention, "own_places", lambda shapes: plain(shapes)[..., ::-1])


def clamped_to_the_border(patch: Patch) -> None:
    plain = deformable_attention._corners

    def clamped(places: jax.Array, weights: jax.Array, shapes: Any) -> Any:
        most = np.array([(w - 1, h - 1) for h, w in shapes], np.float32)[:, None]
        return plain(jnp.clip(places, 0.0, most), weights, shapes)

    patch.setattr(deformable_attention, "_corners", clamped)


def softmax_of_each_level(patch: Patch) -> None:
    plain = jax.nn.softmax

    def softmax(x: jax.Array, axis: int = -1) -> jax.Array:
        return plain(x.reshape(*x.shape[:-1], 3, -1), axis).reshape(x.shape) / 3.0

    patch.setattr(deformable_attention.jax.nn, "softmax", softmax)


def positions_of_cris(patch: Patch) -> None:
    patch.setattr(pixel_decoder, "sine_positions_relative", sine_positions_2d)


def nearest_upsampling(patch: Patch) -> None:
    def nearest(x: jax.Array, size: tuple[int, int]) -> jax.Array:
        return jax.image.resize(x, (x.shape[0], *size, x.shape[3]), "nearest")

    patch.setattr(pixel_decoder, "resize_bilinear", nearest)


def groups_of_a_layer_norm(patch: Patch) -> None:
    plain = pixel_decoder.GroupNorm
    patch.setattr(
        pixel_decoder, "GroupNorm", lambda width, groups, dtype: plain(width, groups=1, dtype=dtype)
    )


@pytest.mark.parametrize(
    "fault",
    [
        no_half_cell,
        rows_before_columns,
        clamped_to_the_border,
        softmax_of_each_level,
        positions_of_cris,
        nearest_upsampling,
        groups_of_a_layer_norm,
    ],
)
def test_a_fault_shows(tmp_path: Path, monkeypatch: Patch, fault: Callable[[Patch], None]):
    expected("odd")
    fault(monkeypatch)
    found = compare(tmp_path, "odd")
    print(f"{fault.__name__}: {max(found):.1e}")
    assert max(found) > 100 * BAR, found
