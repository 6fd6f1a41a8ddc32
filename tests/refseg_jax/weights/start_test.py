"""A new run's published towers, as `config.init` names them."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict
from safetensors.numpy import save_file

from refseg_jax import sharding
from refseg_jax.cli import import_weights
from refseg_jax.errors import UserError
from refseg_jax.models import build_model
from refseg_jax.models.forward import Forward
from refseg_jax.weights.start import published_towers
from tests.refseg_jax.weights import clip_sources, tower_sources

NO_START = {"checkpoint": "", "clip": "", "clip_sha256": "", "swin": "", "bert": "", "lavt": ""}
SMALL = {
    "name": "rela",
    "preset": "tiny",
    "swin_width": 8,
    "swin_depths": (1, 2),
    "swin_heads": (1, 2),
    "window": 4,
    "vocab_size": 40,
    "text_positions": 12,
    "text_width": 64,
    "text_heads": 1,
    "text_layers": 2,
    "text_hidden": 24,
    "relationship": "paper",
    "region_level": 0,
}


@pytest.fixture(scope="module")
def forward() -> Forward[Any]:
    return Forward(lambda rngs: build_model(SMALL, rngs=rngs))


def arrays(shapes: dict[str, tuple[int, ...]]) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    return {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}


def folder(path: Path, entries: dict[str, np.ndarray], **config: Any) -> Path:
    path.mkdir()
    save_file(entries, path / "model.safetensors")
    (path / "config.json").write_text(json.dumps(config))
    return path


def start(forward: Forward[Any], **fields: str) -> dict[str, jax.Array] | None:
    target = sharding.abstract_params(
        forward.shapes, sharding.make_mesh(sharding.MeshConfig(), jax.devices()[:1])
    )
    return published_towers(ConfigDict({**NO_START, **fields}), forward.model, target)


@pytest.mark.parametrize("format", ["ms_swin", "hf_swin"])
def test_rela_starts_from_a_swin_and_a_bert(format: str, forward: Forward[Any], tmp_path: Path):
    sizes = (8, (1, 2), (1, 2), 4)
    swin = arrays(getattr(tower_sources, format)(*sizes, backbone=False))
    bert = arrays(tower_sources.hf_bert(64, 2, 24, 40, 12))
    swin_folder = folder(tmp_path / "swin", swin)
    bert_folder = folder(tmp_path / "bert", bert, num_attention_heads=1)
    params = start(forward, swin=str(swin_folder), bert=str(bert_folder))
    assert params is not None
    np.testing.assert_array_equal(
        params["text.word_embedding.embedding"], bert["bert.embeddings.word_embeddings.weight"]
    )
    name = {
        "ms_swin": "layers.1.blocks.1.mlp.fc1.weight",
        "hf_swin": "swin.encoder.layers.1.blocks.1.intermediate.dense.weight",
    }[format]
    np.testing.assert_array_equal(
        params["vision.swin.stages.1.blocks.1.mlp.up.kernel"], swin[name].T
    )
    filled = {path.split(".")[0] for path in params}
    assert filled == {"text", "vision"}
    missing = {path for path in forward.shapes if path.startswith(("text.", "vision.swin."))}
    # A classifier has no norms of the stages' outputs.
    assert {path.split(".")[2] for path in missing - params.keys()} == {"norms"}
    alone = start(forward, bert=str(bert_folder))
    assert alone is not None
    assert {path.split(".")[0] for path in alone} == {"text"}


def test_nothing_asked_is_nothing_given(forward: Forward[Any]):
    assert start(forward) is None
    assert start(forward, checkpoint="runs/a") is None


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"checkpoint": "a", "bert": "b"}, "config.init.checkpoint and config.init.bert are both"),
        ({"clip_sha256": "a"}, "config.init.clip_sha256 is set and config.init.clip is not"),
        ({"clip": "a"}, "no such tower; set config.init.swin or config.init.bert"),
    ],
)
def test_fields_that_do_not_fit(fields: dict[str, str], message: str, forward: Forward[Any]):
    with pytest.raises(UserError, match=message):
        start(forward, **fields)


def test_other_weights_are_named(forward: Forward[Any], tmp_path: Path):
    bert = folder(tmp_path / "bert", arrays(tower_sources.hf_bert(64, 2, 24, 40, 12)))
    with pytest.raises(UserError, match="bert: not the weights of any of hf_swin, ms_swin"):
        start(forward, swin=str(bert))
    small = folder(tmp_path / "small", arrays(tower_sources.hf_bert(64, 2, 24, 30, 12)))
    with pytest.raises(UserError, match=r"word_embeddings\.weight -> text\.word_embedding"):
        start(forward, bert=str(small))


#: A UniLSeg into whose text tower the small CLIP fits.
READER = {
    "name": "unilseg",
    "preset": "tiny",
    "swin_depths": (1, 1, 1),
    **{
        field: value
        for field, value in clip_sources.SMALL_MODEL.items()
        if field.startswith("text_") or field in ("vocab_size", "eos_id", "embedding_width")
    },
}


@pytest.fixture(scope="module")
def reader() -> Forward[Any]:
    return Forward(lambda rngs: build_model(READER, rngs=rngs))


@pytest.mark.parametrize("form", ["hf_clip", "openai_clip", "folder"])
def test_unilseg_takes_clips_words_and_sees_with_a_swin(
    form: str, reader: Forward[Any], tmp_path: Path
):
    if form == "openai_clip":
        source = clip_sources.openai_file(tmp_path / "clip")
    else:
        source = clip_sources.hf_folder(tmp_path / "clip")
    if form == "folder":
        # The folder holds both towers, for any model.
        command = [f"--source={source}", f"--output={tmp_path / 'imported'}"]
        assert import_weights.main(["--format=hf_clip", *command]) == 0
        source = tmp_path / "imported"
    swin = folder(
        tmp_path / "swin",
        arrays(tower_sources.ms_swin(32, (1, 1, 1), (1, 2, 4), 8, backbone=False)),
    )
    params = start(reader, clip=str(source), swin=str(swin))
    assert params is not None
    assert {path for path in params if path.startswith("text.")} == {
        path for path in reader.shapes if path.startswith("text.")
    }
    names = clip_sources.openai_shapes if form == "openai_clip" else clip_sources.hf_shapes
    table = clip_sources.arrays(names(clip_sources.SMALL))
    entry = {"openai_clip": ""}.get(form, "text_model.embeddings.") + "token_embedding.weight"
    np.testing.assert_array_equal(params["text.token_embedding.embedding"], table[entry])
    # Not CLIP's patches of 16 pixels, which have the same name.
    assert params["vision.patch_embedding.kernel"].shape == (48, 32)
    only = start(reader, clip=str(source))
    assert only is not None and {path.split(".")[0] for path in only} == {"text"}


def test_a_clip_of_another_size_names_the_fields_of_the_text_tower_alone(
    reader: Forward[Any], tmp_path: Path
):
    other = clip_sources.SMALL._replace(text=128, vision=64, output=16)
    source = clip_sources.hf_folder(tmp_path / "clip", other)
    with pytest.raises(UserError, match=r"set config\.model\.text_heads=2 \(now 1\)$"):
        start(reader, clip=str(source))
    wide = build_fields(text_heads=2)
    with pytest.raises(UserError) as error:
        start(wide, clip=str(source))
    told = str(error.value).split("the sizes of these weights: ")[1]
    assert told == "config.model.embedding_width=16 (now 24), config.model.text_width=128 (now 64)"


def build_fields(**fields: Any) -> Forward[Any]:
    return Forward(lambda rngs: build_model({**READER, **fields}, rngs=rngs))


def test_a_clip_is_for_models_that_have_one():
    model = SimpleNamespace(TOWERS={"clip": ""}, config=None)
    with pytest.raises(UserError, match=r"no such tower; set config\.init\.clip"):
        published_towers(ConfigDict({**NO_START, "swin": "a"}), model, {})
