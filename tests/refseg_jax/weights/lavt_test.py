"""The released LAVT as the start of an encoder: its plan at full size, and small files."""

import argparse
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from refseg_jax import sharding
from refseg_jax.errors import UserError
from refseg_jax.models import build_model
from refseg_jax.models.forward import Forward
from refseg_jax.weights import lavt
from refseg_jax.weights.loader import plan
from refseg_jax.weights.start import published_towers
from tests.refseg_jax.weights.rela_sources import BASE, Sizes, backbone, bert
from tests.refseg_jax.weights.torch_archive import torch_archive
from tests.refseg_jax.weights.tower_sources import Shapes, linear

SMALL = BASE._replace(
    **{"swin": 8, "depths": (1, 2), "heads": (1, 2), "window": 4, "vocab": 40, "positions": 12},
    **{"words": 64, "text_layers": 1, "text_hidden": 24},
)
MODEL: dict[str, Any] = {
    **{"name": "grser", "preset": "tiny", "swin_width": 8, "swin_depths": (1, 2)},
    **{"swin_heads": (1, 2), "window": 4, "vocab_size": 40, "text_positions": 12},
    **{"text_width": 64, "text_heads": 1, "text_layers": 1, "text_hidden": 24, "eos_id": 39},
}
INTEGERS = ("relative_position_index", "num_batches_tracked", "position_ids")


def image_model(sizes: Sizes) -> Shapes:
    """Name of every entry of LAVT but for BERT's -> its shape."""
    shapes, last = backbone(sizes), len(sizes.depths) - 1
    width = sizes.swin << last
    for part in (0, 2):
        shapes[f"backbone.layers.{last}.res_gate.{part}.weight"] = (width, width)
    inner = 4 * sizes.swin
    for level in range(2, len(sizes.depths) + 1):
        above = 2 * inner if level == len(sizes.depths) else inner
        for number, inputs in ((1, above + (sizes.swin << (level - 2))), (2, inner)):
            shapes[f"classifier.conv{number}_{level}.weight"] = (inner, inputs, 3, 3)
            norm = f"classifier.bn{number}_{level}"
            for name in ("weight", "bias", "running_mean", "running_var"):
                shapes[f"{norm}.{name}"] = (inner,)
            shapes[f"{norm}.num_batches_tracked"] = ()
    return shapes | {
        name: (*shape, 1, 1) if name.endswith("weight") else shape
        for name, shape in linear("classifier.conv1_1", 2, inner).items()
    }


def words(sizes: Sizes, prefix: str) -> Shapes:
    """BERT's entries; newer versions of transformers do not store `position_ids`."""
    return {
        name.replace("text_encoder.", prefix): shape
        for name, shape in bert(sizes).items()
        if not name.endswith("position_ids")
    }


def arrays(shapes: Shapes) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    return {
        name: np.full(shape, 7, np.int64)
        if name.endswith(INTEGERS)
        else rng.normal(size=shape).astype(np.float32)
        for name, shape in shapes.items()
    }


def start(source: Path, **fields: str) -> dict[str, jax.Array]:
    forward = Forward(lambda rngs: build_model(MODEL, rngs=rngs))
    mesh = sharding.make_mesh(sharding.MeshConfig(), jax.devices()[:1])
    init = {"checkpoint": "", "clip": "", "clip_sha256": "", "swin": "", "bert": ""}
    found = published_towers(
        ConfigDict({**init, "lavt": str(source), **fields}),
        forward.model,
        sharding.abstract_params(forward.shapes, mesh),
    )
    assert found is not None
    return found


def parts(path: Path) -> Path:
    """A file as LAVT's training writes it: two models, an optimiser, and what it was called with."""
    image, text = arrays(image_model(SMALL)), arrays(words(SMALL, ""))

    def wrap(state: Any) -> Any:
        inner = {name.removeprefix("bert_model."): state[name] for name in state if "bert_" in name}
        model = {name: state[name] for name in state if "bert_" not in name}
        called = argparse.Namespace(lr=5e-5, ids=[1], model="lavt")
        optimizer = {"state": {0: {"step": 7}}, "param_groups": [{"lr": 0.1}]}
        return {
            "model": model,
            "bert_model": inner,
            "optimizer": optimizer,
            "epoch": 39,
            "args": called,
        }

    both = image | {f"bert_model.{name}": array for name, array in text.items()}
    return torch_archive(path, both, wrap=wrap)


@pytest.mark.parametrize(("listed", "prefix"), [("lavt", ""), ("lavt_one", "text_encoder.")])
def test_names_and_shapes_are_those_of_the_public_model(
    listed: str, prefix: str, shared_data: Path
) -> None:
    """The lists were made by building the public models."""
    lines = (shared_data.parent / f"reference/state_dicts/{listed}.tsv").read_text().splitlines()
    table = dict(line.split("\t") for line in lines)
    shapes = {
        name: () if shape == "scalar" else tuple(map(int, shape.split("x")))
        for name, shape in table.items()
    }
    assert image_model(BASE) | (words(BASE, prefix) if prefix else {}) == shapes


@pytest.mark.parametrize("prefix", ["text_encoder.", "bert_model.", ""])
def test_every_parameter_of_the_encoder_is_written_at_full_size(prefix: str) -> None:
    shapes = image_model(BASE) | (words(BASE, prefix) if prefix else {})
    kind = lambda name: jnp.int32 if name.endswith(INTEGERS) else jnp.float32  # noqa: E731
    source = {name: jax.ShapeDtypeStruct(shape, kind(name)) for name, shape in shapes.items()}
    forward = Forward(lambda rngs: build_model({"name": "grser"}, rngs=rngs))
    own = {p: x for p, x in forward.shapes.items() if p.startswith(("vision.", "text."))}
    found = plan(lavt.table(source), source, own, name="lavt")
    filled = {path for path in own if prefix or path.startswith("vision.")}
    assert found.targets.keys() == filled
    assert all("BERT" in why for why in found.unwritten.values())
    assert {name.split(".")[0] for name in found.unread} == {"backbone", "classifier"}
    gates = {name for name in found.unread if "res_gate" in name}
    assert gates == {f"backbone.layers.3.res_gate.{part}.weight" for part in (0, 2)}


def test_grser_starts_from_both_models_of_a_file(tmp_path: Path) -> None:
    params = start(parts(tmp_path / "lavt.pth"))
    image, text = arrays(image_model(SMALL)), arrays(words(SMALL, ""))
    assert {path.split(".")[0] for path in params} == {"vision", "text"}
    for path, entry in (
        ("vision.swin.stages.1.blocks.1.mlp.up.kernel", "layers.1.blocks.1.mlp.fc1.weight"),
        ("vision.gates.0.up.kernel", "layers.0.res_gate.0.weight"),
        ("vision.gates.0.down.kernel", "layers.0.res_gate.2.weight"),
        ("vision.fusions.1.key.kernel", "layers.1.fusion.image_lang_att.f_key.0.weight"),
        ("vision.fusions.0.join.kernel", "layers.0.fusion.project_mm.0.weight"),
    ):
        expected = np.squeeze(image[f"backbone.{entry}"]).T
        np.testing.assert_array_equal(params[path], expected)
    np.testing.assert_array_equal(
        params["text.word_embedding.embedding"], text["embeddings.word_embeddings.weight"]
    )
    norms = params["vision.swin.norms.1.scale"]
    np.testing.assert_array_equal(norms, image["backbone.norm1.weight"])


def test_lavt_one_has_bert_inside(tmp_path: Path) -> None:
    shapes = image_model(SMALL) | words(SMALL, "text_encoder.")
    file = torch_archive(tmp_path / "one.pth", arrays(shapes), wrap=lambda state: {"model": state})
    params = start(file)
    layer = "text_encoder.encoder.layer.0.attention.self.query.weight"
    np.testing.assert_array_equal(
        params["text.layers.0.attention.query.kernel"], arrays(shapes)[layer].T
    )


def test_what_does_not_fit_is_told(tmp_path: Path) -> None:
    file = parts(tmp_path / "lavt.pth")
    with pytest.raises(UserError, match=r"config\.init\.lavt and config\.init\.swin are both set"):
        start(file, swin="a")
    plain = {name: x for name, x in image_model(SMALL).items() if "fusion" not in name}
    other = torch_archive(tmp_path / "plain.pth", arrays(plain))
    with pytest.raises(UserError, match=r"a plain Swin is for config\.init\.swin"):
        start(other)
