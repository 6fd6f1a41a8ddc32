"""CLIP's towers go out as they come in."""

import json
from pathlib import Path

import numpy as np
import pytest

from refseg_jax import sharding
from refseg_jax.checkpoints import manifest
from refseg_jax.exports.clip import backwards, towers
from refseg_jax.exports.exporter import export
from refseg_jax.models.graphs import forward_of
from refseg_jax.weights import clip
from refseg_jax.weights.clip_files import load_towers
from refseg_jax.weights.table import Rule, Table, rename, same
from tests.refseg_jax.exports.folders import tiny_params
from tests.refseg_jax.models.micro import FIELDS
from tests.refseg_jax.training.tiny_run import (
    UNIRES,
    one_device,
    random_params,
    save_unires,
    unires_run_config,
)


def test_the_towers_can_be_imported_again_bit_by_bit(tmp_path: Path) -> None:
    params = tiny_params()
    save_unires(tmp_path / "run", params)
    export(tmp_path / "run", "safetensors", tmp_path / "out", command=["x"])
    forward = forward_of(UNIRES)
    target = sharding.abstract_params(forward.shapes, one_device())
    found = load_towers(str(tmp_path / "out" / "clip"), target, forward.model.config)
    assert found.keys() == {
        path
        for path in params
        if path.startswith(("vision.", "text."))
        and not path.endswith(("low_tokens", "high_tokens"))
    }
    for path, value in found.items():
        np.testing.assert_array_equal(value, params[path], path)
    images = json.loads((tmp_path / "out" / "clip" / "preprocessor_config.json").read_text())
    assert images == {
        "image_processor_type": "CLIPImageProcessor",
        "size": {"shortest_edge": 32},
        "crop_size": {"height": 32, "width": 32},
        "image_mean": [0.48145466, 0.4578275, 0.40821073],
        "image_std": [0.26862954, 0.26130258, 0.27577711],
    }
    # They are CLIP's, so that the card says how to load them.
    assert "CLIPModel" in (tmp_path / "out" / "README.md").read_text()


def test_layouts_are_torchs() -> None:
    params = {path: np.asarray(value) for path, value in tiny_params().items()}
    entries = towers(params)
    kernel = params["text.blocks.0.mlp.up.kernel"]
    np.testing.assert_array_equal(entries["text_model.encoder.layers.0.mlp.fc1.weight"], kernel.T)
    patch = entries["vision_model.embeddings.patch_embedding.weight"]
    assert patch.shape == (UNIRES["vision_width"], 3, UNIRES["patch_size"], UNIRES["patch_size"])
    assert entries["vision_model.embeddings.class_embedding"].shape == (UNIRES["vision_width"],)
    assert entries["logit_scale"].shape == ()
    assert entries["logit_scale"] == np.float32(np.log(1 / 0.07))


def test_a_model_that_is_no_clip_says_so(tmp_path: Path) -> None:
    model = {**UNIRES, "head": "pixel_kernel", "stem_width": 8}
    config = {**unires_run_config(), "model": model}
    save_unires(tmp_path / "run", random_params(forward_of(model)), config=config)
    export(tmp_path / "run", "safetensors", tmp_path / "out", command=["x"])
    assert not (tmp_path / "out" / "clip").exists()
    assert "stem_width=8" in (tmp_path / "out" / "README.md").read_text()


def test_the_digests_cover_the_towers(tmp_path: Path) -> None:
    save_unires(tmp_path / "run", tiny_params())
    export(tmp_path / "run", "safetensors", tmp_path / "out", command=["x"])
    digests = manifest.read(tmp_path / "out")
    files = ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json")
    assert {"model.safetensors", *(f"clip/{name}" for name in files)} <= digests.keys()


def test_what_a_table_cannot_give_back_is_told() -> None:
    def of(*rules: Rule) -> Table:
        return Table(rules, {}, {})

    (found,) = backwards(of(rename(r"a\.(\d+)\.b", r"x.\1.y")), ["x.12.y"])
    assert found == ("x.12.y", ("a.12.b", same))
    with pytest.raises(ValueError, match=r"no rule writes 'x\.z'"):
        list(backwards(of(rename(r"a\.(\d+)\.b", r"x.\1.y")), ["x.z"]))
    with pytest.raises(ValueError, match="cannot be read backwards"):
        list(backwards(of(rename(r"a.*b", "x")), ["x"]))


def test_every_parameter_of_a_deep_tower_has_its_entry() -> None:
    """More than nine blocks, at full size, without allocating it."""
    shapes = forward_of({**FIELDS, "name": "unires", "vision_layers": 12}).shapes
    old = [p for p in shapes if p.startswith("vision.blocks.")]
    entries = dict(backwards(clip.HF, old))
    assert entries["vision.blocks.11.attention.query.kernel"][0] == (
        "vision_model.encoder.layers.11.self_attn.q_proj.weight"
    )
    assert len({entry for entry, _ in entries.values()}) == len(old) == 12 * 16
