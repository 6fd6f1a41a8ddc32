"""The released UniLSeg: its plan at full size by shapes alone, and a small file that is imported."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from refseg_jax.checkpoints.params import load_params
from refseg_jax.cli.import_weights import main
from refseg_jax.errors import UserError
from refseg_jax.models import UniLSeg, model_config
from refseg_jax.models.forward import Forward
from refseg_jax.models.unilseg_config import UniLSegConfig
from refseg_jax.weights import unilseg
from refseg_jax.weights.loader import plan
from tests.refseg_jax.weights import unilseg_sources
from tests.refseg_jax.weights.torch_archive import torch_archive
from tests.refseg_jax.weights.tower_sources import Shapes
from tests.refseg_jax.weights.unilseg_sources import BASE, SMALL

Values = dict[str, np.ndarray]


def structs(shapes: Shapes) -> dict[str, jax.ShapeDtypeStruct]:
    kind = lambda name: jnp.int32 if unilseg_sources.is_integer(name) else jnp.float32  # noqa: E731
    return {name: jax.ShapeDtypeStruct(shape, kind(name)) for name, shape in shapes.items()}


def test_names_and_shapes_are_those_of_the_public_model(shared_data: Path):
    """The list was made by building the public model."""
    lines = (shared_data.parent / "reference/state_dicts/unilseg.tsv").read_text().splitlines()
    listed: Shapes = {}
    for line in lines:
        name, shape = line.split("\t")
        listed[name] = () if shape == "scalar" else tuple(map(int, shape.split("x")))
    assert unilseg_sources.unilseg(BASE) == listed


def test_the_sizes_are_those_of_the_public_config():
    assert unilseg.sizes(structs(unilseg_sources.unilseg(BASE))) == UniLSegConfig()


@pytest.mark.parametrize("prefix", ["", "module."])
def test_every_entry_is_read_and_every_parameter_written(prefix: str):
    plain = structs(unilseg_sources.unilseg(BASE))
    source = {f"{prefix}{name}": leaf for name, leaf in plain.items()}
    forward = Forward(lambda rngs: UniLSeg(UniLSegConfig(), rngs=rngs))
    found = plan(unilseg.unilseg(prefix), source, forward.shapes, name="unilseg")
    assert found.targets.keys() == forward.shapes.keys() and not found.unwritten
    assert found.targets.keys() >= forward.statistics and len(forward.statistics) == 2 * 11
    assert found.reads.keys() | found.unread.keys() == source.keys()
    left = {name.removeprefix(prefix): reason for name, reason in found.unread.items()}
    images = {name for name in plain if name.startswith("backbone.visual.")}
    counts = {name for name in plain if unilseg_sources.is_integer(name)}
    assert left.keys() == images | counts | {"backbone.logit_scale"}
    assert {left[name] for name in images} == {
        "CLIP's image tower, which the public code loads and never runs: a Swin sees the image"
    }


@pytest.fixture(scope="module")
def values() -> Values:
    return unilseg_sources.arrays(unilseg_sources.unilseg(SMALL))


@pytest.fixture(scope="module")
def imported(tmp_path_factory: pytest.TempPathFactory, values: Values) -> Path:
    """The folder that the command line makes of a small checkpoint."""
    folder = tmp_path_factory.mktemp("unilseg")
    source = unilseg_sources.checkpoint(folder / "unilseg.pth", values)
    assert main(["--format=unilseg", f"--source={source}", f"--output={folder / 'out'}"]) == 0
    return folder / "out"


def unread(name: str) -> bool:
    other = name.startswith("backbone.visual.") or name == "backbone.logit_scale"
    return other or unilseg_sources.is_integer(name)


def test_every_number_of_the_file_is_in_the_model(imported: Path, values: Values):
    """Kernels are compared by what is in them: how they are laid out is the parity test's."""
    params, record = load_params(imported)
    numbers = np.concatenate([x.ravel() for name, x in values.items() if not unread(name)])
    ours = np.concatenate([np.ravel(x) for x in params.values()])
    np.testing.assert_array_equal(np.sort(ours), np.sort(numbers))
    config = model_config(record["model"])
    assert config.swin_depths == (1, 2, 1, 1)
    assert (config.form, config.norm, config.text_heads) == ("official", "batch", 1)
    assert record["data"]["context_length"] == 17 and record["data"]["resize"] == "letterbox"
    assert (record["eval"]["threshold"], record["eval"]["resample"]) == (0.35, "unilseg")


def test_where_what_looks_alike_belongs(imported: Path, values: Values):
    params, _ = load_params(imported)
    same = {
        "pre_fusion.words.3.bias": "fusion_proj.bias",
        "pre_fusion.words.1.bias": "all_fusion_proj.1.bias",
        "vision_path.adapters.0.norm.mean": "pixel_decoder.adapter_1.1.running_mean",
        "vision_path.convolutions.3.norm.variance": "pixel_decoder.layer_4.1.running_var",
        "vision_path.layers.2.cross_attention_norm.scale": "pixel_decoder.cross_attn_3.norm2.weight",
        "language_path.text.norm.bias": "query_decoder.text_proj.1.bias",
        "language_path.norm.scale": "query_decoder.query_transformer.decoder.norm.weight",
        "text.final_norm.bias": "backbone.ln_final.bias",
        "vision.norms.2.scale": "backbone_visual.norm2.weight",
    }
    for path, entry in same.items():
        np.testing.assert_array_equal(params[path], values[entry], err_msg=path)
    packed = values["fusion.multihead_attn.in_proj_weight"]
    kernels = [params[f"pre_fusion.attentions.3.{n}.kernel"] for n in ("query", "key", "value")]
    np.testing.assert_array_equal(np.concatenate([np.asarray(k).T for k in kernels]), packed)


def without(name: str) -> Callable[[Values], None]:
    def drop(values: Values) -> None:
        del values[name]

    return drop


def shaped(name: str, *shape: int) -> Callable[[Values], None]:
    return lambda values: values.update({name: np.ones(shape, np.float32)})


FAULTS: dict[str, tuple[Callable[[Values], None], str]] = {
    "no pixel decoder": (
        without("pixel_decoder.mask_features.0.weight"),
        "not the weights of a released UniLSeg .*'pixel_decoder.mask_features.0.weight'",
    ),
    "no running average": (
        without("query_decoder.text_proj.1.running_var"),
        "parameters that nothing fills: language_path.text.norm.variance",
    ),
    "an entry more": (
        shaped("query_decoder.query_transformer.encoder.layers.0.norm1.weight", 32),
        "entries that no rule reads: module.query_decoder.query_transformer.encoder.layers.0.norm1",
    ),
    "a layer that is cut": (
        without("query_decoder.query_transformer.decoder.layers.1.linear1.bias"),
        "parameters that nothing fills: language_path.layers.1.mlp.up.bias",
    ),
    "another width of the query": (
        shaped("query_decoder.visual_proj.0.weight", 24, 64, 3, 3),
        r"language_path.visual.convolution.kernel \(\(3, 3, 64, 24\), the model's is",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_what_does_not_fit_is_one_line(fault: str, tmp_path: Path, values: Values):
    change, words = FAULTS[fault]
    values = dict(values)
    change(values)
    path = unilseg_sources.checkpoint(tmp_path / "unilseg.pth", values)
    with pytest.raises(UserError, match=words) as error:
        found = unilseg.open_unilseg(str(path))
        found.plan(found.forward.shapes)
    told = str(error.value)
    assert told.startswith(f"{path}: ") and "\n" not in told


def test_a_file_without_the_prefix_is_read_as_well(tmp_path: Path, values: Values):
    found = unilseg.open_unilseg(str(torch_archive(tmp_path / "plain.pth", values)))
    other = unilseg.open_unilseg(str(unilseg_sources.checkpoint(tmp_path / "a.pth", values)))
    assert found.config == other.config
    one, two = (x.plan(x.forward.shapes) for x in (found, other))
    assert {f"module.{name}" for name in one.reads} == two.reads.keys()


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--preset=B/16"], "--preset=B/16: only of CLIP's formats; leave it away"),
        (["--tokenizer=clip"], "--tokenizer=clip: only of rela; leave it away"),
    ],
)
def test_a_refused_command_writes_nothing(
    flags: list[str], words: str, tmp_path: Path, values: Values, capsys: Any
):
    source = unilseg_sources.checkpoint(tmp_path / "unilseg.pth", values)
    output = tmp_path / "out"
    command = ["--format=unilseg", f"--source={source}", f"--output={output}", *flags]
    assert main(command) == 1
    assert words in capsys.readouterr().err
    assert not output.exists()


def test_the_config_of_a_file_builds_the_model_of_its_plan(imported: Path):
    """Through the record of the folder, as every command finds it."""
    params, record = load_params(imported)
    config = model_config(record["model"])
    assert isinstance(config, UniLSegConfig)
    shapes = Forward(lambda rngs: UniLSeg(config, rngs=rngs)).shapes
    assert {path: x.shape for path, x in params.items()} == {p: x.shape for p, x in shapes.items()}
    small = dataclasses.replace(config, image_size=64)
    assert Forward(lambda rngs: UniLSeg(small, rngs=rngs)).shapes.keys() == shapes.keys()
