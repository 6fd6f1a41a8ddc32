"""Every table against the published sizes, without allocating one, and small CLIPs loaded."""

import dataclasses
import functools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from configs import mres_unires, refcoco_unires
from refseg_jax.cli.import_weights import main
from refseg_jax.errors import UserError
from refseg_jax.images.resize import resize_position_embedding
from refseg_jax.models import model_config
from refseg_jax.models.forward import Forward
from refseg_jax.models.unires import UniRES
from refseg_jax.models.unires_config import UniRESConfig, unires_config
from refseg_jax.sharding import MeshConfig, abstract_params, make_mesh
from refseg_jax.weights import clip
from refseg_jax.weights.clip_files import load_towers, open_clip
from tests.refseg_jax.weights.clip_sources import (
    PUBLISHED,
    SMALL,
    SMALL_MODEL,
    hf_folder,
    hf_shapes,
    openai_file,
    openai_shapes,
    openclip_folder,
    structs,
)

NAMES = {"openai_clip": openai_shapes, "openclip": openai_shapes, "hf_clip": hf_shapes}
SAVED: dict[str, tuple[Callable[[Path], Path], str]] = {
    "openai_clip": (openai_file, "quick_gelu"),
    "hf_clip": (hf_folder, "quick_gelu"),
    "openclip": (openclip_folder, "gelu"),
}


@functools.cache
def forward_of(config: UniRESConfig) -> Forward[UniRES]:
    return Forward(lambda rngs: UniRES(config, rngs=rngs))


@pytest.fixture(scope="module")
def forward() -> Forward[UniRES]:
    return forward_of(UniRESConfig(**SMALL_MODEL))


def loaded(forward: Forward[UniRES], source: Path, **changes: Any) -> dict[str, jax.Array]:
    target = abstract_params(forward.shapes, make_mesh(MeshConfig()))
    config = dataclasses.replace(forward.model.config, **changes)
    return load_towers(str(source), target, config)


def refusal(forward: Forward[UniRES], source: Path, **changes: Any) -> str:
    with pytest.raises(UserError) as caught:
        loaded(forward, source, **changes)
    assert "\n" not in str(caught.value) and str(source) in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("format", clip.FORMATS)
@pytest.mark.parametrize(
    ("name", "preset", "fields"),
    [
        ("B/32", "B/32", {}),
        ("B/16", "B/16", {}),
        ("B/16", "B/16", {"image_size": 224, "low_tokens": 0, "high_tokens": 0}),
        ("B/32", "B/32", {"presence_head": True, "mask_evidence": True}),
        ("L/14", "L/14", {}),
        ("L/14@336", "L/14", {}),
        ("L/14@336", "L/14", {"image_size": 336}),
    ],
)
def test_every_presets_plan_resolves_at_full_size(
    format: str, name: str, preset: str, fields: dict[str, Any]
):
    """By shapes alone: a quarter to half a billion parameters would not fit into the test."""
    config = unires_config({"preset": preset, **fields})
    target = forward_of(config).shapes
    source = structs(NAMES[format](PUBLISHED[name]), np.float16)
    plan = clip.plan_towers(clip.FORMATS[format], source, target, config, name="x")
    assert plan.unread.keys() == {"logit_scale"}
    towers = {path for path in target if path.startswith(("vision.", "text."))}
    tokens = {path for path in towers if path.endswith("_tokens")}
    assert plan.targets.keys() == towers - tokens
    assert all("new in UniRES" in reason for reason in plan.unwritten.values())
    assert plan.unwritten.keys() == target.keys() - (towers - tokens)


@pytest.mark.parametrize("preset", ["B/32", "B/16", "L/14"])
@pytest.mark.parametrize("experiment", [refcoco_unires, mres_unires])
def test_every_experiment_takes_the_clip_of_its_size(experiment: Any, preset: str):
    config = model_config(experiment.get_config(preset).model.to_dict())
    assert isinstance(config, UniRESConfig)
    source = structs(hf_shapes(PUBLISHED[preset]))
    clip.plan_towers(clip.HF, source, forward_of(config).shapes, config, name="x")
    heads = PUBLISHED[preset].vision // 64, PUBLISHED[preset].text // 64
    clip.check(clip.Facts("quick_gelu", *heads, eos_id=49407), config, name="x")


@pytest.mark.parametrize("format", clip.FORMATS)
@pytest.mark.parametrize("name", PUBLISHED)
def test_the_shapes_tell_the_sizes(format: str, name: str):
    found = clip.sizes(clip.FORMATS[format], structs(NAMES[format](PUBLISHED[name])))
    sizes = PUBLISHED[name]
    assert tuple(found.values()) == (
        *(sizes.image, sizes.patch, sizes.vision, sizes.vision_layers, sizes.output),
        *(sizes.text, sizes.text_layers, sizes.vocab, sizes.positions),
    )


def test_weights_of_another_size_are_refused_with_every_leaf_and_the_sizes():
    config = unires_config({"preset": "B/16"})
    source = structs(openai_shapes(PUBLISHED["L/14"]))
    with pytest.raises(UserError) as caught:
        clip.plan_towers(clip.OPENAI, source, forward_of(config).shapes, config, name="L.pt")
    message = str(caught.value)
    assert "visual.transformer.resblocks.{12-23}.mlp.c_fc.bias -> vision.blocks.{12-23}" in message
    assert "config.model.patch_size=14 (now 16), config.model.vision_width=1024" in message
    assert "\n" not in message and "image_size" not in message


@pytest.mark.parametrize("format", SAVED)
def test_towers_are_loaded_and_the_rest_is_left(
    forward: Forward[UniRES], format: str, tmp_path: Path
):
    save, activation = SAVED[format]
    params = loaded(forward, save(tmp_path / "source"), activation=activation)
    config = forward.model.config
    left = {path.split(".")[0] for path in forward.shapes.keys() - params.keys()}
    assert left == {
        *("low_filter", "high_filter", "decoder", "group_decoder", "head"),
        *("patch_adapter", "word_adapter", "vision"),
    }
    assert {leaf.dtype for leaf in params.values()} == {np.dtype(np.float32)}
    weights = open_clip(str(tmp_path / "source"), format=format).weights
    table = next(e for e, s in weights.shapes.items() if s.shape == (SMALL.table, SMALL.vision))
    np.testing.assert_array_equal(
        params["vision.position_embedding"],
        resize_position_embedding(weights.read(table), config.grid),
    )
    number = "text.blocks.1.mlp.down.kernel"
    entry = next(
        e for e in weights.shapes if e.endswith(("1.mlp.c_proj.weight", "1.mlp.fc2.weight"))
    )
    entry = entry.replace("visual.", "").replace("vision_model", "text_model")
    np.testing.assert_array_equal(params[number], weights.read(entry).T)


@pytest.mark.parametrize("format", SAVED)
def test_the_format_is_told_by_the_content(format: str, tmp_path: Path):
    found = open_clip(str(SAVED[format][0](tmp_path / "source")))
    assert found.format == format
    assert found.facts == clip.Facts(
        activation=SAVED[format][1], vision_heads=2, text_heads=1, eos_id=SMALL.vocab - 1
    )


@pytest.mark.parametrize(
    ("changes", "cure"),
    [
        ({"activation": "gelu"}, "set config.model.activation=quick_gelu (now gelu)"),
        ({"vision_heads": 4}, "set config.model.vision_heads=2 (now 4)"),
        ({"text_heads": 4}, "set config.model.text_heads=1 (now 4)"),
        ({"eos_id": 48}, "set config.model.eos_id=49 (now 48)"),
        ({"stem_width": 8}, "set config.model.stem_width=0 (now 8)"),
    ],
)
def test_what_the_arrays_do_not_tell_is_checked(
    forward: Forward[UniRES], changes: dict[str, Any], cure: str, tmp_path: Path
):
    assert cure in refusal(forward, hf_folder(tmp_path / "source"), **changes)


def test_another_epsilon_is_refused(forward: Forward[UniRES], tmp_path: Path):
    message = refusal(forward, hf_folder(tmp_path / "source", layer_norm_eps=1e-6))
    assert "its norms have epsilon 1e-06, the model's 1e-05" in message


def test_other_colours_are_refused(forward: Forward[UniRES], tmp_path: Path):
    """As of LAION's first ViT-L/14."""
    folder = openclip_folder(tmp_path / "source", quick_gelu=True)
    stored = json.loads((folder / "open_clip_config.json").read_text())
    stored["preprocess_cfg"] = {"mean": [0.5] * 3, "std": [0.5] * 3}
    (folder / "open_clip_config.json").write_text(json.dumps(stored))
    assert "trained on images of mean [0.5, 0.5, 0.5]" in refusal(forward, folder)
    (tmp_path / "hf").mkdir()
    folder = hf_folder(tmp_path / "hf")
    (folder / "preprocessor_config.json").write_text('{"image_mean": [0.5, 0.5, 0.5]}')
    assert "trained on images of mean [0.5, 0.5, 0.5]" in refusal(forward, folder)


@pytest.mark.parametrize("mean", [[float("nan")] * 3, [0.5] * 2, ["0.48145466"] * 4])
def test_colours_that_are_not_ours_are_refused(
    forward: Forward[UniRES], mean: list[Any], tmp_path: Path
):
    folder = hf_folder(tmp_path / "source")
    (folder / "preprocessor_config.json").write_text(json.dumps({"image_mean": mean}))
    assert "trained on images of mean" in refusal(forward, folder)


@pytest.mark.parametrize("stored", [{"image_mean": "abc"}, {"image_std": [None]}, [1], 7])
def test_colours_that_are_none_are_refused(forward: Forward[UniRES], stored: Any, tmp_path: Path):
    folder = hf_folder(tmp_path / "source")
    (folder / "preprocessor_config.json").write_text(json.dumps(stored))
    assert "do not describe a CLIP" in refusal(forward, folder)


def test_images_that_are_not_normalised_are_refused(forward: Forward[UniRES], tmp_path: Path):
    folder = hf_folder(tmp_path / "source")
    (folder / "preprocessor_config.json").write_text('{"do_normalize": false}')
    assert "preprocessor_config.json does not normalise images" in refusal(forward, folder)


def openclip_with(folder: Path, section: str, **fields: Any) -> Path:
    """A small CLIP of OpenCLIP's with more fields in its config."""
    openclip_folder(folder)
    file = folder / "open_clip_config.json"
    stored = json.loads(file.read_text())
    stored["model_cfg"][section].update(fields)
    file.write_text(json.dumps(stored))
    return folder


@pytest.mark.parametrize(
    ("section", "field", "value"),
    [
        ("vision_cfg", "norm_kwargs", {"eps": 1e-6}),
        ("text_cfg", "norm_kwargs", {"eps": 1e-6}),
        ("vision_cfg", "act_kwargs", {"approximate": "tanh"}),
        ("vision_cfg", "pool_type", "avg"),
        ("vision_cfg", "no_ln_pre", True),
        ("text_cfg", "no_causal_mask", True),
        ("text_cfg", "pool_type", "last"),
        ("text_cfg", "hf_tokenizer_name", "bert-base-uncased"),
        ("text_cfg", "tokenizer_kwargs", {"clean": "canonicalize"}),
        ("text_cfg", "of_next_year", 1),
    ],
)
def test_what_openclip_has_and_the_towers_do_not_is_refused(
    section: str, field: str, value: Any, tmp_path: Path
):
    folder = openclip_with(tmp_path / "source", section, **{field: value})
    with pytest.raises(UserError, match=rf"open_clip_config\.json: {section}\.{field}="):
        open_clip(str(folder))


def test_what_changes_nothing_in_openclip_is_no_reason_to_refuse(tmp_path: Path):
    openclip_with(tmp_path / "v", "vision_cfg", pool_type="tok", patch_dropout=0.5, layers=2)
    text = {"pool_type": "argmax", "no_causal_mask": False, "hf_tokenizer_name": None, "eos_id": 2}
    openclip_with(tmp_path / "t", "text_cfg", **text, norm_kwargs={}, context_length=20)
    for folder in "vt":
        assert open_clip(str(tmp_path / folder)).format == "openclip"


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"num_attention_heads": 3}, "3 heads do not divide the vision tower's width 128"),
        ({"num_attention_heads": 0}, "0 heads do not divide the vision tower's width 128"),
        ({"num_attention_heads": -2}, "-2 heads do not divide the vision tower's width 128"),
        ({"num_attention_heads": float("inf")}, "do not describe a CLIP"),
        ({"hidden_act": "gelu_new"}, "unknown activation 'gelu_new'"),
        ({"hidden_act": 5}, "unknown activation '5'"),
        ({"eos_token_id": 50}, "EOS id 50, but 50 words"),
    ],
)
def test_fields_that_no_clip_has_are_refused_by_the_file(
    forward: Forward[UniRES], fields: dict[str, Any], words: str, tmp_path: Path
):
    message = refusal(forward, hf_folder(tmp_path / "source", **fields))
    assert words in message and "take the folder as it was published" in message


def test_a_checkpoint_in_the_home_folder_is_found(
    forward: Forward[UniRES], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("HOME", str(tmp_path))
    flags = ["--format=hf_clip", f"--source={hf_folder(tmp_path / 'source')}"]
    assert main([*flags, f"--output={tmp_path / 'imported'}"]) == 0
    config = forward.model.config
    target = abstract_params(forward.shapes, make_mesh(MeshConfig()))
    assert load_towers("~/imported", target, config).keys() == (
        load_towers("~/source", target, config).keys()
    )


def test_openclips_names_without_its_config_are_not_guessed(
    forward: Forward[UniRES], tmp_path: Path
):
    folder = openclip_folder(tmp_path / "source")
    (folder / "open_clip_config.json").unlink()
    assert "differ in the activation" in refusal(forward, folder)


def test_weights_without_the_file_beside_them_are_refused(forward: Forward[UniRES], tmp_path: Path):
    folder = hf_folder(tmp_path / "source")
    (folder / "config.json").unlink()
    assert "it tells what the weights beside it do not" in refusal(forward, folder)


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"text_config": 1, "vision_config": {}}'])
def test_a_file_beside_them_that_is_damaged_is_refused(
    forward: Forward[UniRES], text: str, tmp_path: Path
):
    folder = hf_folder(tmp_path / "source")
    (folder / "config.json").write_text(text)
    assert "not JSON" in refusal(forward, folder) or "do not describe" in refusal(forward, folder)


def test_the_older_spelling_of_the_config_goes_before(tmp_path: Path):
    folder = hf_folder(tmp_path / "source")
    stored = json.loads((folder / "config.json").read_text())
    stored["text_config_dict"] = {**stored["text_config"], "eos_token_id": 7}
    (folder / "config.json").write_text(json.dumps(stored))
    assert open_clip(str(folder)).facts.eos_id == 7


def test_a_folder_without_or_with_too_many_weights_is_refused(
    forward: Forward[UniRES], tmp_path: Path
):
    assert "no weight file" in refusal(forward, tmp_path)
    for name in ("a.pt", "b.pt"):
        (tmp_path / name).touch()
    assert "2 weight files" in refusal(forward, tmp_path)


def test_a_name_is_no_path(forward: Forward[UniRES]):
    assert "no such file or folder" in refusal(forward, Path("/nowhere/at/all"))
