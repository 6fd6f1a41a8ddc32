"""The plans of Swin and BERT at full size by shapes alone, and small files through the importer."""

import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import save_file

from refseg_jax.checkpoints.params import load_params
from refseg_jax.cli.import_weights import main
from refseg_jax.encoders.bert import Bert, BertConfig, bert_config
from refseg_jax.encoders.swin import Swin, swin_config
from refseg_jax.errors import UserError
from refseg_jax.images.resize import resize_relative_positions
from refseg_jax.models.forward import Forward
from refseg_jax.weights import towers
from refseg_jax.weights.loader import plan
from tests.refseg_jax.weights import tower_sources
from tests.refseg_jax.weights.torch_archive import torch_archive
from tests.refseg_jax.weights.tower_sources import Shapes

SIZES = {"B": (128, (4, 8, 16, 32)), "L": (192, (6, 12, 24, 48))}
SMALL: Any = (8, (2, 1), (1, 2), 4)


def structs(shapes: Shapes) -> dict[str, jax.ShapeDtypeStruct]:
    integer = ("relative_position_index",)
    return {
        name: jax.ShapeDtypeStruct(shape, jnp.int32 if name.endswith(integer) else jnp.float32)
        for name, shape in shapes.items()
    }


@pytest.mark.parametrize("ours", [7, 12])
@pytest.mark.parametrize("window", [7, 12])
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("format", ["hf_swin", "ms_swin"])
def test_swin_plans_resolve_at_full_size(format: str, size: str, window: int, ours: int):
    width, heads = SIZES[size]
    target = Forward(
        lambda rngs: Swin(swin_config({"preset": size, "window": ours}), rngs=rngs)
    ).shapes
    norms = {path for path in target if path.startswith("norms.")}
    for backbone in (True, False):
        make = getattr(tower_sources, format)
        source = structs(make(width, (2, 2, 18, 2), heads, window, backbone=backbone))
        table = towers.FORMATS[format](source)
        found = plan(table, source, target, name="swin")
        assert set(found.unwritten) == (set() if backbone else norms)
        assert found.targets.keys() | found.unwritten.keys() == target.keys()
        assert found.reads.keys() | found.unread.keys() == source.keys()
        assert towers.swin_sizes(table, source, {}) == swin_config(
            {"preset": size, "window": window}
        )


def test_berts_plan_resolves_at_full_size():
    source = structs(tower_sources.hf_bert(768, 12, 3072, 30522, 512))
    table = towers.FORMATS["hf_bert"](source)
    target = Forward(lambda rngs: Bert(bert_config({}), rngs=rngs)).shapes
    found = plan(table, source, target, name="bert")
    assert found.targets.keys() == target.keys() and not found.unwritten
    assert towers.bert_sizes(table, source, {}) == BertConfig()


def test_a_prefix_puts_a_tower_into_a_model():
    config = swin_config({"preset": "tiny", "depths": (2, 1), "heads": (1, 2), "width": 8})
    shapes = Forward(lambda rngs: Swin(config, rngs=rngs)).shapes
    target = {f"backbone.{path}": leaf for path, leaf in shapes.items()}
    source = structs(tower_sources.hf_swin(*SMALL, backbone=False))
    table = towers.FORMATS["hf_swin"](source, "backbone.")
    found = plan(table, source, target, name="swin")
    assert all(path.startswith("backbone.norms.") for path in found.unwritten)
    assert found.targets.keys() | found.unwritten.keys() == target.keys()


def arrays(shapes: Shapes) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    return {
        name: np.zeros(shape, np.int64)
        if name.endswith("_index")
        else rng.standard_normal(shape).astype(np.float32)
        for name, shape in shapes.items()
    }


@pytest.mark.parametrize("format", ["hf_swin", "ms_swin", "hf_bert"])
def test_the_command_line_writes_a_tower(
    format: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    if format == "hf_bert":
        shapes = tower_sources.hf_bert(128, 1, 32, 50, 20)
    else:
        shapes = getattr(tower_sources, format)(*SMALL, backbone=False)
    values = arrays(shapes)
    save_file(values, tmp_path / "model.safetensors")
    output = tmp_path / "out"
    assert main([f"--format={format}", f"--source={tmp_path}", f"--output={output}"]) == 0
    told = capsys.readouterr().out
    assert "entries read into" in told and "config.init" not in told
    params, record = load_params(output)
    found = towers.open_tower(str(tmp_path), format=format)
    assert record["tower"]["format"] == format
    assert params.keys() == found.plan(found.forward.shapes).targets.keys()
    if format == "hf_bert":
        name, path = "bert.encoder.layer.0.intermediate.dense.weight", "layers.0.mlp.up.kernel"
    elif format == "hf_swin":
        name = "swin.encoder.layers.0.downsample.reduction.weight"
        path = "stages.0.downsample.reduction.kernel"
    else:
        name, path = "layers.0.blocks.1.attn.qkv.weight", "stages.0.blocks.1.attention.key.kernel"
        values[name] = values[name][8:16]
    np.testing.assert_array_equal(params[path], values[name].T)


def test_patches_are_flat_in_rows_columns_and_colours(tmp_path: Path):
    values = arrays(tower_sources.ms_swin(*SMALL, backbone=True))
    save_file(values, tmp_path / "swin.safetensors")
    output = tmp_path / "out"
    source = tmp_path / "swin.safetensors"
    assert main(["--format=ms_swin", f"--source={source}", f"--output={output}"]) == 0
    params, _ = load_params(output)
    convolution = values["patch_embed.proj.weight"]
    kernel = np.asarray(params["patch_embedding.kernel"]).reshape(4, 4, 3, 8)
    np.testing.assert_array_equal(kernel[1, 2, 0], convolution[:, 0, 1, 2])


def drop(shapes: Shapes, name: str) -> Shapes:
    return {entry: shape for entry, shape in shapes.items() if entry != name}


@pytest.mark.parametrize(
    ("shapes", "words"),
    [
        (
            drop(tower_sources.hf_swin(*SMALL, backbone=True), "hidden_states_norms.stage2.bias"),
            r"nothing fills: norms\.1\.bias",
        ),
        (
            drop(
                tower_sources.hf_swin(*SMALL, backbone=False),
                "swin.encoder.layers.0.blocks.1.attention.self.key.bias",
            ),
            r"nothing fills: stages\.0\.blocks\.1\.attention\.key\.bias",
        ),
        (
            {
                **tower_sources.hf_swin(*SMALL, backbone=False),
                "swin.embeddings.position_embeddings": (1, 9, 8),
            },
            r"no rule reads: swin\.embeddings\.position_embeddings",
        ),
        (
            {
                **tower_sources.hf_swin(*SMALL, backbone=False),
                "swin.encoder.layers.0.downsample.reduction.weight": (16, 33),
            },
            r"shapes: .*reduction",
        ),
    ],
)
def test_a_file_that_does_not_fit_is_refused(shapes: Shapes, words: str, tmp_path: Path):
    save_file(arrays(shapes), tmp_path / "model.safetensors")
    found = towers.open_tower(str(tmp_path), format="hf_swin")
    with pytest.raises(UserError, match=words):
        found.plan(found.forward.shapes)


@pytest.mark.parametrize(
    ("format", "stored", "words"),
    [
        ("hf_swin", {"hidden_act": "gelu_new"}, "hidden_act='gelu_new'"),
        ("hf_swin", {"layer_norm_eps": 1e-12}, "layer_norm_eps=1e-12"),
        ("hf_swin", {"hidden_act": "gelu", "layer_norm_eps": 1e-5}, ""),
        ("hf_bert", {}, "not the weights of hf_bert"),
        ("ms_swin", {}, "not the weights of ms_swin"),
        ("hf_swim", {}, "did you mean 'hf_swin'"),
    ],
)
def test_what_is_another_model_is_one_line(
    format: str, stored: dict[str, Any], words: str, tmp_path: Path
):
    save_file(arrays(tower_sources.hf_swin(*SMALL, backbone=False)), tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps(stored))
    if not words:
        towers.open_tower(str(tmp_path), format=format)
        return
    with pytest.raises(UserError, match=words) as error:
        towers.open_tower(str(tmp_path), format=format)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["swin.pth", "swin.pt", "swin.bin", "swin.safetensors"])
def test_the_only_weight_file_of_a_folder_is_found_by_any_ending(name: str, tmp_path: Path):
    values = arrays(tower_sources.ms_swin(*SMALL, backbone=True))
    if name.endswith(".safetensors"):
        save_file(values, tmp_path / name)
    else:
        torch_archive(tmp_path / name, values)
    assert towers.open_tower(str(tmp_path), format="ms_swin").weights.name == str(tmp_path / name)


@pytest.mark.parametrize("stage", [300_000_000, 1])
def test_a_stage_without_those_before_it_is_refused(stage: int, tmp_path: Path):
    """Nothing counts to the number in a name."""
    shapes = {
        f"encoder.layers.{stage}.blocks.0.attention.self.relative_position_bias_table": (49, 4),
        "embeddings.patch_embeddings.projection.weight": (4, 3, 4, 4),
    }
    save_file(arrays(shapes), tmp_path / "model.safetensors")
    with pytest.raises(UserError, match=rf"stages \[{stage}\] of 1 blocks"):
        towers.open_tower(str(tmp_path), format="hf_swin")


def test_a_preset_is_refused_for_a_tower(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    flags = ["--format=hf_swin", f"--source={tmp_path}", f"--output={tmp_path / 'out'}"]
    assert main([*flags, "--preset=B/16"]) == 1
    assert "only of CLIP's formats" in capsys.readouterr().err
    assert not (tmp_path / "out" / "checkpoints").exists()


@pytest.mark.parametrize("rows", [168, 144])
def test_relative_tables_of_no_window_are_refused(rows: int):
    with pytest.raises(ValueError, match=f"{rows} rows"):
        resize_relative_positions(np.zeros((rows, 3), np.float32), 7)
