"""The whole released ReLA through the import table, against its formulas in torch by its own names."""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
import torch
from flax import nnx

from refseg_jax.batch import Batch, SegOutput
from refseg_jax.models import ReLA
from refseg_jax.models.forward import Forward
from refseg_jax.weights.loader import load
from refseg_jax.weights.rela import open_rela
from tests.parity.torch_rela import TorchReLA
from tests.refseg_jax.weights import rela_sources
from tests.refseg_jax.weights.rela_sources import PIXELS, REGIONS

pytestmark = pytest.mark.parity

#: Four layers of regions, so that levels come round; windows that no map is a multiple of.
SIZES = rela_sources.SMALL._replace(
    swin=16, depths=(2, 2, 1, 1), heads=(1, 2, 2, 4), window=5, pixel_layers=1, points=2, layers=4
)
SIDE, LENGTH = 128, 9

#: Relative, of a whole output: ours is f32, theirs f64.
BAR = 1e-5

Values = dict[str, np.ndarray]


@functools.cache
def values(live: bool) -> Values:
    return rela_sources.arrays(rela_sources.rela(SIZES), live=live)


@functools.cache
def inputs() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(1)
    image = rng.integers(0, 256, (2, SIDE, SIDE, 3), np.uint8)
    valid = np.arange(LENGTH) < np.array([[LENGTH], [5]])
    return image, np.where(valid, rng.integers(1, SIZES.vocab, valid.shape), 0), valid


@functools.cache
def theirs(live: bool) -> list[np.ndarray]:
    """Of two classes each: the score of a target less that of none."""
    found = TorchReLA(values(live), SIZES)(*(torch.from_numpy(x) for x in inputs()))
    masks, regions, nothing = found["ref_seg"], found["minimap"], found["nt_label"]
    both = (
        masks[:, 1] - masks[:, 0],
        regions[..., 1] - regions[..., 0],
        nothing[:, 0] - nothing[:, 1],
    )
    return [x.numpy() for x in both]


@nnx.jit
def run(model: ReLA, given: Batch) -> SegOutput:
    return model(given)


def ours(folder: Path, given: Values) -> list[np.ndarray]:
    found = open_rela(str(rela_sources.checkpoint(folder / "gres.pth", given)))
    config = dataclasses.replace(found.config, image_size=SIDE)
    forward = Forward(lambda rngs: ReLA(config, rngs=rngs))
    here = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    params = load(found.plan(forward.shapes), found.weights, dict.fromkeys(forward.shapes, here))
    image, ids, valid = inputs()
    blank = np.zeros(1)
    batch = Batch(image[:, None], ids[:, None].astype(np.int32), valid[:, None], *[blank] * 5)
    out = run(forward.bind(params), batch)
    parts: list[Any] = [out.mask_logits, out.aux["minimap_logits"], out.present_logits]
    return [np.asarray(x, np.float64) for x in parts]


def errors(folder: Path, given: Values, live: bool) -> list[float]:
    """Relative, of masks, minimap and presence."""
    pairs = zip(ours(folder, given), theirs(live), strict=True)
    return [float(np.linalg.norm(a.ravel() - b.ravel()) / np.linalg.norm(b)) for a, b in pairs]


@pytest.mark.parametrize("live", [False, True])
def test_everything_that_comes_out_is_the_public_codes(tmp_path: Path, live: bool):
    found = errors(tmp_path, values(live), live)
    print(f"live={live}: " + " ".join(f"{e:.1e}" for e in found))
    assert max(found) <= BAR, found


LAYER, BERT = "backbone.layers.1", "text_encoder.encoder.layer.0"
WORDS, ENCODER = f"{LAYER}.fusion.image_lang_att", f"{PIXELS}.transformer.encoder.layers.0"

#: Entries of one shape: nothing but numbers tells that a table takes one for the other.
ALIKE = [
    (f"{WORDS}.f_key.0.weight", f"{WORDS}.f_value.0.weight"),
    (f"{WORDS}.f_query.0.weight", f"{WORDS}.W.0.weight"),
    (f"{LAYER}.fusion.vis_project.0.weight", f"{LAYER}.fusion.project_mm.0.weight"),
    (f"{LAYER}.res_gate.0.weight", f"{LAYER}.res_gate.2.weight"),
    (f"{LAYER}.blocks.0.norm1.weight", f"{LAYER}.blocks.0.norm2.weight"),
    (f"{LAYER}.blocks.0.attn.qkv.weight", f"{LAYER}.blocks.1.attn.qkv.weight"),
    (f"{BERT}.attention.self.query.weight", f"{BERT}.attention.self.value.weight"),
    (f"{PIXELS}.input_proj.0.1.weight", f"{PIXELS}.input_proj.1.1.weight"),
    (f"{ENCODER}.self_attn.value_proj.weight", f"{ENCODER}.self_attn.output_proj.weight"),
    (f"{ENCODER}.norm1.weight", f"{ENCODER}.norm2.weight"),
    (f"{PIXELS}.adapter_1.norm.weight", f"{PIXELS}.layer_1.norm.weight"),
    (f"{PIXELS}.transformer.level_embed", f"{REGIONS}.level_embed.weight"),
    (f"{REGIONS}.query_feat.weight", f"{REGIONS}.query_embed.weight"),
    (f"{REGIONS}.RIA_layers.1.norm.weight", f"{REGIONS}.RLA_vision.1.norm.weight"),
    (
        f"{REGIONS}.RIA_layers.0.multihead_attn.in_proj_weight",
        f"{REGIONS}.RLA_vision.0.self_attn.in_proj_weight",
    ),
    (f"{REGIONS}.RLA_lang_att.norm.weight", f"{REGIONS}.decoder_norm.weight"),
    (f"{REGIONS}.mask_embed.layers.0.weight", f"{REGIONS}.mask_embed.layers.1.weight"),
    (f"{REGIONS}.nt_embed.layers.0.weight", f"{REGIONS}.mask_embed.layers.2.weight"),
    (f"{REGIONS}.nt_embed.layers.1.weight", f"{REGIONS}.minimap_embed.weight"),
]


@pytest.mark.parametrize(("one", "other"), ALIKE)
def test_one_entry_for_another_shows(tmp_path: Path, one: str, other: str):
    given = values(True)
    found = errors(tmp_path, {**given, one: given[other], other: given[one]}, True)
    print(f"{one}: {max(found):.1e}")
    assert max(found) > 100 * BAR, found


def thirds(value: np.ndarray, order: tuple[int, int, int]) -> np.ndarray:
    parts = np.split(value, 3)
    return np.concatenate([parts[number] for number in order])


FAULTS: dict[str, Callable[[Values], Mapping[str, Any]]] = {
    "key before query": lambda v: {
        k: thirds(x, (1, 0, 2)) for k, x in v.items() if k.endswith("in_proj_weight")
    },
    "levels from the finest on": lambda v: {
        k: v[k][::-1].copy() for k in (f"{REGIONS}.level_embed.weight",)
    },
    "rows for columns of a 3x3 kernel": lambda v: {
        k: v[k].transpose(0, 1, 3, 2).copy() for k in (f"{PIXELS}.layer_1.weight",)
    },
    "rows for columns of a patch": lambda v: {
        k: v[k].transpose(0, 1, 3, 2).copy() for k in ("backbone.patch_embed.proj.weight",)
    },
    "no gate for the words": lambda v: {f"{REGIONS}.lang_weight": np.float32(9.0).reshape(())},
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_shows(tmp_path: Path, fault: str):
    given = values(True)
    found = errors(tmp_path, {**given, **FAULTS[fault](given)}, True)
    print(f"{fault}: {max(found):.1e}")
    assert max(found) > 100 * BAR, found
