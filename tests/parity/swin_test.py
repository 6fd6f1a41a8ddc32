"""Swin, loaded by the tables, against transformers, block by block; and faults that must show."""

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from torch.nn import functional as F
from transformers import SwinBackbone, SwinModel
from transformers import SwinConfig as TheirConfig

from refseg_jax.encoders import swin
from refseg_jax.encoders.swin import Swin, SwinConfig
from refseg_jax.images.colours import CLIP_MEAN, CLIP_STD, IMAGENET_MEAN, IMAGENET_STD
from refseg_jax.images.resize import resize_relative_positions
from refseg_jax.layers import norm
from refseg_jax.models.forward import Forward
from refseg_jax.weights import swin as tables
from tests.parity.towers import BAR, errors, loaded, scatter

pytestmark = pytest.mark.parity

DEPTHS, HEADS, WIDTH = (2, 2, 2), (1, 2, 4), 16

#: No side fits patches, windows or squares; windows of 12 are larger than the last map.
SIZES = {7: (66, 90), 12: (101, 122)}

Patch = pytest.MonkeyPatch


def their_config(window: int, **fields: Any) -> TheirConfig:
    return TheirConfig(
        embed_dim=WIDTH, depths=DEPTHS, num_heads=HEADS, window_size=window, image_size=64, **fields
    )


def our_tower(window: int) -> Forward[Swin]:
    config = SwinConfig(width=WIDTH, depths=DEPTHS, heads=HEADS, window=window)
    return Forward(lambda rngs: Swin(config, rngs=rngs))


def image_of(height: int, width: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (2, height, width, 3), np.uint8)


def pixels_of(image: np.ndarray) -> torch.Tensor:
    normal = (image / 255.0 - IMAGENET_MEAN) / IMAGENET_STD
    return torch.from_numpy(normal.astype(np.float32)).permute(0, 3, 1, 2)


def states(tower: Swin, image: np.ndarray) -> list[jax.Array]:
    """The first tokens, what each block gives, and each stage's normed output."""

    def run(image: jax.Array) -> list[jax.Array]:
        x = tower.embed(image)
        seen, normed = [x], []
        for stage, stage_norm in zip(tower.stages, tower.norms, strict=True):
            for block in stage.blocks:
                x = block(x)
                seen.append(x)
            normed.append(stage_norm(x))
            x = x if stage.downsample is None else stage.downsample(x)
        return seen + normed

    return jax.jit(run)(jnp.asarray(image))


def their_states(model: Any, image: np.ndarray) -> list[torch.Tensor]:
    """The same of transformers; a backbone's normed outputs at the end."""
    whole = getattr(model, "swin", model)
    seen: list[torch.Tensor] = []
    keep = lambda *call: seen.append(call[2][0])  # noqa: E731
    blocks = [block for stage in whole.encoder.layers for block in stage.blocks]
    hooks = [m.register_forward_hook(keep) for m in (whole.embeddings, *blocks)]
    with torch.inference_mode():
        result = model(pixels_of(image))
    for hook in hooks:
        hook.remove()
    maps = getattr(result, "feature_maps", ())
    return seen + [x.permute(0, 2, 3, 1).contiguous() for x in maps]


@functools.cache
def backbone(window: int) -> SwinBackbone:
    torch.manual_seed(0)
    names = [f"stage{n + 1}" for n in range(len(DEPTHS))]
    model = SwinBackbone(their_config(window, out_features=names)).eval()
    scatter(model)
    return model


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("swin")
    for window in SIZES:
        backbone(window).save_pretrained(path / str(window))
    return path


def file_of(folder: Path, window: int) -> Path:
    return folder / str(window) / "model.safetensors"


def compare(folder: Path, window: int) -> list[float]:
    forward = our_tower(window)
    params, _ = loaded(file_of(folder, window), tables.hf_swin, forward)
    image = image_of(*SIZES[window])
    return errors(states(forward.bind(params), image), expected(window))


@functools.cache
def expected(window: int) -> list[torch.Tensor]:
    return their_states(backbone(window), image_of(*SIZES[window]))


@pytest.mark.parametrize("window", SIZES)
def test_every_block_is_the_backbones_of_transformers(folder: Path, window: int):
    found = compare(folder, window)
    assert len(found) == 1 + sum(DEPTHS) + len(DEPTHS)
    print(f"window {window}: " + " ".join(f"{e:.1e}" for e in found))
    assert max(found) <= BAR, found


def test_a_classifiers_file_fills_all_but_the_norms_of_stages(tmp_path: Path):
    torch.manual_seed(1)
    model = SwinModel(their_config(4)).eval()
    scatter(model)
    model.save_pretrained(tmp_path)
    forward = our_tower(4)
    params, plan = loaded(tmp_path / "model.safetensors", tables.hf_swin, forward)
    assert set(plan.unwritten) == {p for p in forward.shapes if p.startswith("norms.")}
    # All maps are larger than a window, where a classifier and a backbone are the same.
    image = image_of(96, 80)
    ours = states(forward.bind(params), image)[: -len(DEPTHS)]
    found = errors(ours, their_states(model, image))
    assert len(found) == 1 + sum(DEPTHS) and max(found) <= BAR, found


def microsoft(theirs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Weights of transformers' module under Microsoft's names, with packed query, key and value."""
    packed: dict[str, torch.Tensor] = {}
    names = {
        "embeddings.patch_embeddings.projection": "patch_embed.proj",
        "embeddings.norm": "patch_embed.norm",
        "encoder.layers": "layers",
        "layernorm_before": "norm1",
        "layernorm_after": "norm2",
        "attention.o_proj": "attn.proj",
        "attention.relative_position_bias.": "attn.",
        "hidden_states_norms.stage1": "norm0",
        "hidden_states_norms.stage2": "norm1",
        "hidden_states_norms.stage3": "norm2",
    }
    for entry, value in theirs.items():
        entry = entry.removeprefix("swin.")
        if ".q_proj." in entry:
            three = [theirs[f"swin.{entry}".replace(".q_", f".{x}_")] for x in "qkv"]
            entry = entry.replace("attention.q_proj", "attn.qkv")
            value = torch.cat(three)
        if entry.startswith("layernorm.") or ".k_proj." in entry or ".v_proj." in entry:
            continue
        for theirs_name, name in names.items():
            entry = entry.replace(theirs_name, name)
        packed[entry] = value
    return packed


@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize("window", SIZES)
def test_microsofts_names_give_the_same_parameters(
    folder: Path, tmp_path: Path, window: int, nested: bool
):
    entries = microsoft(backbone(window).state_dict())
    # What a classifier of theirs has besides.
    entries["layers.0.blocks.0.attn.relative_position_index"] = torch.zeros(4, 4, dtype=torch.int64)
    entries["layers.0.blocks.1.attn_mask"] = torch.zeros(4, 4, 4)
    entries |= {"norm.weight": torch.ones(64), "norm.bias": torch.ones(64)}
    entries |= {"head.weight": torch.ones(3, 64), "head.bias": torch.ones(3)}
    torch.save({"model": entries, "epoch": 3} if nested else entries, tmp_path / "swin.pth")
    forward = our_tower(window)
    ours, plan = loaded(tmp_path / "swin.pth", tables.ms_swin, forward)
    same, _ = loaded(file_of(folder, window), tables.hf_swin, forward)
    assert len(plan.unread) == 6 and not plan.unwritten
    assert ours.keys() == same.keys() == forward.shapes.keys()
    for path, value in ours.items():
        np.testing.assert_array_equal(value, same[path], err_msg=path)


@pytest.mark.parametrize(("old", "new"), [(7, 12), (12, 7), (7, 7), (4, 5)])
def test_relative_positions_are_resized_as_torch_does(old: int, new: int):
    before, after = 2 * old - 1, 2 * new - 1
    table = torch.randn(before * before, 3)
    cells = table.T.reshape(1, 3, before, before)
    resized = F.interpolate(cells, size=(after, after), mode="bicubic")
    ours = np.asarray(resize_relative_positions(table.numpy(), new))
    np.testing.assert_allclose(ours, resized.reshape(3, -1).T, rtol=0, atol=1e-5)


def test_a_file_of_another_window_is_resized_while_loading(folder: Path):
    params, _ = loaded(file_of(folder, 7), tables.hf_swin, our_tower(12))
    table = backbone(7).state_dict()[
        "swin.encoder.layers.1.blocks.1.attention.relative_position_bias.relative_position_bias_table"
    ]
    ours = params["stages.1.blocks.1.relative_positions"]
    np.testing.assert_allclose(
        ours, resize_relative_positions(table.numpy(), 12), rtol=0, atol=1e-6
    )


def other_epsilon(patch: Patch) -> None:
    plain = norm._normalise
    patch.setattr(norm, "_normalise", lambda *given: plain(*given[:4], 1e-6, given[5]))


def tanh_gelu(patch: Patch) -> None:
    patch.setattr(swin, "exact_gelu", functools.partial(jax.nn.gelu, approximate=True))


def no_shift_mask(patch: Patch) -> None:
    plain = swin.shift_mask
    patch.setattr(swin, "shift_mask", lambda *sizes: np.ones_like(plain(*sizes)))


def shifted_the_other_way(patch: Patch) -> None:
    plain = jnp.roll
    patch.setattr(jnp, "roll", lambda x, shift, axes: plain(x, (-shift[0], -shift[1]), axes))


def key_minus_query(patch: Patch) -> None:
    plain = swin.relative_index
    patch.setattr(swin, "relative_index", lambda window: plain(window).T)


def columns_before_rows(patch: Patch) -> None:
    plain = swin.relative_index

    def swapped(window: int) -> np.ndarray:
        dy, dx = np.divmod(plain(window), 2 * window - 1)
        return dx * (2 * window - 1) + dy

    patch.setattr(swin, "relative_index", swapped)


def merged_row_by_row(patch: Patch) -> None:
    plain = swin.cut

    def cut(x: jax.Array, size: int) -> jax.Array:
        return plain(x, size).swapaxes(3, 4) if size == 2 else plain(x, size)

    patch.setattr(swin, "cut", cut)


def filled_with_edges(patch: Patch) -> None:
    plain = jnp.pad
    patch.setattr(jnp, "pad", lambda x, padding: plain(x, padding, mode="edge"))


def permuted_qkv(patch: Patch) -> None:
    plain = tables.linear

    def swapped(source: str, target: str) -> Any:
        names = {"attention.query": "attention.key", "attention.key": "attention.query"}
        for ours, other in names.items():
            if target.endswith(ours):
                return plain(source, target.replace(ours, other))
        return plain(source, target)

    patch.setattr(tables, "linear", swapped)


def pixels_of_clip(patch: Patch) -> None:
    patch.setitem(swin.PIXELS, "imagenet", (CLIP_MEAN, CLIP_STD))


@pytest.mark.parametrize(
    "fault",
    [
        other_epsilon,
        tanh_gelu,
        no_shift_mask,
        shifted_the_other_way,
        key_minus_query,
        columns_before_rows,
        merged_row_by_row,
        filled_with_edges,
        permuted_qkv,
        pixels_of_clip,
    ],
)
def test_a_fault_shows(folder: Path, monkeypatch: Patch, fault: Callable[[Patch], None]):
    expected(7)
    fault(monkeypatch)
    found = compare(folder, 7)
    print(f"{fault.__name__}: {max(found):.1e}")
    assert max(found) > 2 * BAR, found


@pytest.mark.parametrize("order", [(1, 0, 2), (2, 1, 0)])
def test_permuted_packing_of_microsofts_shows(
    folder: Path, tmp_path: Path, monkeypatch: Patch, order: tuple[int, int, int]
):
    torch.save(microsoft(backbone(7).state_dict()), tmp_path / "swin.pth")
    plain = tables.packed
    monkeypatch.setattr(
        tables,
        "packed",
        lambda source, three, *rest: plain(source, tuple(three[n] for n in order), *rest),
    )
    ours, _ = loaded(tmp_path / "swin.pth", tables.ms_swin, our_tower(7))
    same, _ = loaded(file_of(folder, 7), tables.hf_swin, our_tower(7))
    different = {path for path, value in ours.items() if not np.array_equal(value, same[path])}
    assert different and all(".attention." in path for path in different)
