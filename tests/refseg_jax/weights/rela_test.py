"""The released ReLA: its plan at full size by shapes alone, a small file through all that reads it."""

import dataclasses
import functools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from refseg_jax.checkpoints.params import load_params
from refseg_jax.cli import export, predict
from refseg_jax.cli.import_weights import main
from refseg_jax.errors import UserError
from refseg_jax.exports.source import load_start, read_source
from refseg_jax.models import ReLA, build_model
from refseg_jax.models.forward import Forward
from refseg_jax.models.rela_config import ReLAConfig
from refseg_jax.sharding import MeshConfig, abstract_params, make_mesh
from refseg_jax.weights import rela
from refseg_jax.weights.loader import plan
from tests.refseg_jax.weights import bare_pickles, rela_sources
from tests.refseg_jax.weights.rela_sources import BASE, PIXELS, REGIONS, SMALL, TINY

Values = dict[str, np.ndarray]


def structs(shapes: rela_sources.Shapes) -> dict[str, jax.ShapeDtypeStruct]:
    kind = lambda name: jnp.int32 if rela_sources.is_index(name) else jnp.float32  # noqa: E731
    return {name: jax.ShapeDtypeStruct(shape, kind(name)) for name, shape in shapes.items()}


def test_the_sizes_are_those_of_the_public_configs():
    assert rela.sizes(structs(rela_sources.rela(BASE))) == ReLAConfig()
    tiny: Any = {"swin_width": 96, "swin_depths": (2, 2, 6, 2), "swin_heads": (3, 6, 12, 24)}
    assert rela.sizes(structs(rela_sources.rela(TINY))) == ReLAConfig(**tiny, window=7)


@pytest.mark.parametrize(("size", "live"), [(BASE, False), (SMALL, False), (SMALL, True)])
def test_every_entry_is_read_and_every_parameter_written(size: rela_sources.Sizes, live: bool):
    source = structs(rela_sources.rela(size))
    config = dataclasses.replace(rela.sizes(source), gate="live" if live else "closed")
    target = Forward(lambda rngs: ReLA(config, rngs=rngs)).shapes
    found = plan(rela.rela(live=live), source, target, name="rela")
    assert found.targets.keys() == target.keys() and not found.unwritten
    assert found.reads.keys() | found.unread.keys() == source.keys()
    gates = {name for name in source if "res_gate" in name}
    assert len(gates) == 2 * (len(size.depths) - 1)
    indices = {name for name in source if rela_sources.is_index(name)}
    assert found.unread.keys() == indices | (set() if live else gates)


def vocabulary(path: Path) -> Path:
    """A tokenizer.json of words, whose special tokens have BERT's ids."""
    words = ["[PAD]", *(f"[unused{n}]" for n in range(99)), "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    words += ["the", "red", "car", "left", "two", "men"]
    model = {
        "type": "WordLevel",
        "vocab": {w: n for n, w in enumerate(words)},
        "unk_token": "[UNK]",
    }
    special = [
        {"id": n, "content": words[n], "special": True}
        | dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
        for n in (0, 100, 101, 102, 103)
    ]
    shape = {"version": "1.0", "model": model, "added_tokens": special}
    path.write_text(json.dumps(shape | {"pre_tokenizer": {"type": "Whitespace"}}))
    return path


@pytest.fixture(scope="module")
def values() -> Values:
    return rela_sources.arrays(rela_sources.rela(SMALL), live=False)


@pytest.fixture(scope="module")
def imported(tmp_path_factory: pytest.TempPathFactory, values: Values) -> Path:
    """The folder that the command line makes of a small checkpoint."""
    folder = tmp_path_factory.mktemp("rela")
    source = rela_sources.checkpoint(folder / "gres_swin_base.pth", values)
    words = vocabulary(folder / "tokenizer.json")
    flags = [f"--source={source}", f"--output={folder / 'out'}", f"--tokenizer={words}"]
    assert main(["--format=rela", *flags]) == 0
    return folder / "out"


def test_every_number_of_the_file_is_in_the_model(imported: Path, values: Values):
    """Kernels are compared by what is in them: how they are laid out is the parity test's."""
    params, record = load_params(imported)
    left = [name for name in values if rela_sources.is_index(name) or "res_gate" in name]
    numbers = np.concatenate([x.ravel() for name, x in values.items() if name not in left])
    ours = np.concatenate([np.ravel(x) for x in params.values()])
    np.testing.assert_array_equal(np.sort(ours), np.sort(numbers))
    assert len(np.unique(numbers)) > 0.99 * numbers.size
    assert record["model"]["gate"] == "closed" and record["model"]["swin_depths"] == [1, 2, 1, 1]


def test_where_what_looks_alike_belongs(imported: Path, values: Values):
    params, _ = load_params(imported)
    same = {
        "regions.queries": f"{REGIONS}.query_feat.weight",
        "regions.places": f"{REGIONS}.query_embed.weight",
        "regions.level_embedding": f"{REGIONS}.level_embed.weight",
        "pixels.level_embedding": f"{PIXELS}.transformer.level_embed",
        "regions.layers.1.cross_attention_norm.scale": f"{REGIONS}.RIA_layers.1.norm.weight",
        "regions.layers.1.self_attention_norm.bias": f"{REGIONS}.RLA_vision.1.norm.bias",
        "regions.words_norm.bias": f"{REGIONS}.RLA_lang_att.norm.bias",
        "vision.swin.norms.2.scale": "backbone.norm2.weight",
        "pixels.layers.1.attention_norm.scale": f"{PIXELS}.transformer.encoder.layers.1.norm1.weight",
    }
    for ours, theirs in same.items():
        np.testing.assert_array_equal(params[ours], values[theirs], err_msg=ours)
    turned = {
        "vision.fusions.1.query": "backbone.layers.1.fusion.image_lang_att.f_query.0",
        "vision.fusions.1.out": "backbone.layers.1.fusion.image_lang_att.W.0",
        "vision.fusions.1.vision": "backbone.layers.1.fusion.vis_project.0",
        "vision.fusions.1.join": "backbone.layers.1.fusion.project_mm.0",
        "vision.fusions.1.key": "backbone.layers.1.fusion.image_lang_att.f_key.0",
        "vision.fusions.1.value": "backbone.layers.1.fusion.image_lang_att.f_value.0",
        "pixels.layers.1.attention.value": f"{PIXELS}.transformer.encoder.layers.1.self_attn.value_proj",
        "pixels.projections.0.linear": f"{PIXELS}.input_proj.0.0",
        "regions.filter.layers.1": f"{REGIONS}.mask_embed.layers.1",
    }
    for ours, theirs in turned.items():
        weight = values[f"{theirs}.weight"]
        matrix = weight.reshape(weight.shape[:2]).T
        np.testing.assert_array_equal(params[f"{ours}.kernel"], matrix, err_msg=ours)
        np.testing.assert_array_equal(params[f"{ours}.bias"], values[f"{theirs}.bias"])
    key = values[f"{REGIONS}.RIA_layers.0.multihead_attn.in_proj_weight"][32:64]
    np.testing.assert_array_equal(params["regions.layers.0.cross_attention.key.kernel"], key.T)


def test_the_folder_runs_as_it_is(imported: Path, tmp_path: Path, capsys: Any):
    """As `tools.predict` takes it, and as `main.py` does by `config.init.checkpoint`."""
    image = np.random.default_rng(0).integers(0, 256, (60, 90, 3), np.uint8)
    Image.fromarray(image).save(tmp_path / "image.png")
    flags = [f"--checkpoint={imported}", f"--image={tmp_path / 'image.png'}", "--text=the red car"]
    assert predict.main([*flags, f"--output_dir={tmp_path / 'out'}"]) == 0, capsys.readouterr().err
    (line,) = (tmp_path / "out" / "predictions.jsonl").read_text().splitlines()
    assert isinstance(json.loads(line)["present"], bool)
    _, record = load_params(imported)
    assert record["eval"]["threshold"] == 0.5 and record["data"]["resize"] == "stretch"
    assert record["data"]["context_length"] == 20 and record["model"]["image_size"] == 480
    target = Forward(lambda rngs: build_model(record["model"], rngs=rngs)).shapes
    params, step = load_start(imported, abstract_params(target, make_mesh(MeshConfig())))
    assert params.keys() == target.keys() and step == 0


def test_a_gate_that_is_not_zero_is_live(tmp_path: Path, values: Values):
    values = {name: value.copy() for name, value in values.items()}
    values["backbone.layers.2.res_gate.2.weight"][1, 0] = 0.5
    found = rela.open_rela(str(rela_sources.checkpoint(tmp_path / "x.pth", values)))
    assert found.config.gate == "live"
    assert not any("res_gate" in name for name in found.plan(found.forward.shapes).unread)


Fault = Callable[[Values], object]
ENCODER = f"{PIXELS}.transformer.encoder.layers.0"


def renamed(old: str, new: str) -> Fault:
    return lambda values: values.update({new: values.pop(old)})


def swapped(one: str, other: str) -> Fault:
    return lambda values: values.update({one: values[other], other: values[one]})


def shaped(name: str, *shape: int) -> Fault:
    return lambda values: values.update({name: np.ones(shape, np.float32)})


@pytest.mark.parametrize("form", sorted(rela_sources.original(rela_sources.SMALL)))
def test_the_branch_original_is_refused_by_its_name(tmp_path: Path, values: Values, form: str):
    """No form that its description allows is read as the decoder of `main`, or is an unclear line."""
    sizes = rela_sources.SMALL
    rest = {name: value for name, value in values.items() if not name.startswith(REGIONS)}
    decoder = rela_sources.arrays(rela_sources.original(sizes)[form], live=False)
    assert decoder.keys() != {name for name in values if name.startswith(REGIONS)}
    path = rela_sources.checkpoint(tmp_path / "original.pth", rest | decoder)
    with pytest.raises(UserError) as caught:
        rela.open_rela(str(path))
    line = str(caught.value)
    assert line.startswith(f"{path}: another decoder than that of ReLA's branch main (it ")
    assert "The branch original (the paper's version)" in line
    assert line.endswith("train the paper's block with --config.model.relationship=paper")
    assert "\n" not in line


FAULTS: dict[str, tuple[Fault, str]] = {
    "no words' gate": (
        lambda values: values.pop(f"{REGIONS}.lang_weight"),
        "parameters that nothing fills: regions.words_gate",
    ),
    "no gate, though it is closed": (
        lambda values: values.pop("backbone.layers.1.res_gate.0.weight"),
        "entry 'backbone.layers.1.res_gate.0.weight' is missing",
    ),
    "a closed gate of another shape": (
        lambda values: values.update(
            {"backbone.layers.1.res_gate.0.weight": np.zeros((8, 4), np.float32)}
        ),
        r"is \(8, 4\), not \(8, 8\)",
    ),
    "no sizes": (
        lambda values: values.pop(f"{PIXELS}.transformer.level_embed"),
        "not the weights of a released ReLA",
    ),
    "one entry more": (
        shaped(f"{PIXELS}.class_embed.weight", 2, 32),
        f"entries that no rule reads: {PIXELS}.class_embed.weight",
    ),
    "a module of another decoder": (
        shaped(f"{REGIONS}.class_embed.weight", 2, 32),
        r"another decoder than that of ReLA's branch main \(it has class_embed\)\. The branch original",
    ),
    "another decoder": (
        lambda values: [
            values.update({name.replace("RIA_layers", "cross_attention"): values.pop(name)})
            for name in list(values)
            if "RIA_layers" in name
        ],
        r"another decoder .* \(it has cross_attention\).* are not imported: take the released gres_swin",
    ),
    "a decoder without regions that look at one another": (
        lambda values: [values.pop(name) for name in list(values) if "RLA_vision" in name],
        r"another decoder .* \(it lacks RLA_vision\)",
    ),
    "a layer more": (
        shaped(f"{REGIONS}.RIA_layers.2.norm.weight", 32),
        r"another decoder .* \(it has 3 of RIA_layers, 2 of RLA_vision, 2 of transformer_ffn_layers\)",
    ),
    "another name": (
        renamed(f"{REGIONS}.decoder_norm.bias", f"{REGIONS}.decoder_norm.beta"),
        f"no rule reads: {REGIONS}.decoder_norm.beta; parameters .* fills: regions.norm.bias",
    ),
    "without the model's own prefix": (
        renamed("backbone.norm1.bias", "norm1.bias"),
        "no rule reads: norm1.bias; parameters that nothing fills: vision.swin.norms.1.bias",
    ),
    "two entries in each other's place": (
        swapped(f"{ENCODER}.linear1.weight", f"{ENCODER}.linear2.weight"),
        r"linear1.weight -> pixels.layers.0.mlp.up.kernel \(\(24, 32\), the model's is \(32, 24\)\)",
    ),
    "projections from the finest map on": (
        swapped(f"{PIXELS}.input_proj.0.0.weight", f"{PIXELS}.input_proj.2.0.weight"),
        r"pixels.projections.0.linear.kernel \(\(8, 32\), the model's is \(32, 32\)\)",
    ),
    "a convolution turned over": (
        shaped(f"{PIXELS}.adapter_1.weight", 4, 32, 1, 1),
        r"pixels.lateral.linear.kernel \(\(32, 4\), the model's is \(4, 32\)\)",
    ),
    "a wide convolution for one of one place": (
        shaped(f"{PIXELS}.mask_features.weight", 32, 32, 3, 3),
        r"pixels.mask_projection.kernel \(\(32, 32, 3, 3\) cannot be changed",
    ),
    "one window of another size": (
        shaped("backbone.layers.1.blocks.1.attn.relative_position_bias_table", 169, 1),
        r"vision.swin.stages.1.blocks.1.relative_positions \(\(169, 1\), the model's is \(49, 1\)\)",
    ),
    "query and key alone": (
        shaped(f"{REGIONS}.RLA_vision.1.self_attn.in_proj_weight", 64, 32),
        "64 rows are not three parts",
    ),
    "other colours": (
        shaped("pixel_mean", 3, 1, 1),
        r"pixel_mean is \[1.0, 1.0, 1.0\], the model has ImageNet's \[123.675, 116.28, 103.53\]",
    ),
    "a ResNet": (shaped("backbone.stem.conv1.weight", 64, 3, 7, 7), "a ReLA with a ResNet"),
    "regions that are no square": (
        shaped(f"{REGIONS}.query_feat.weight", 5, 32),
        r"regions.queries \(\(5, 32\), the model's is \(4, 32\)\)",
    ),
}


@functools.cache
def target_of(config: ReLAConfig) -> Any:
    return Forward(lambda rngs: ReLA(config, rngs=rngs)).shapes


@pytest.mark.parametrize("fault", FAULTS)
def test_what_does_not_fit_is_one_line(fault: str, tmp_path: Path, values: Values):
    change, words = FAULTS[fault]
    values = dict(values)
    change(values)
    path = rela_sources.checkpoint(tmp_path / "gres.pth", values)
    with pytest.raises(UserError, match=words) as error:
        found = rela.open_rela(str(path))
        found.plan(target_of(found.config))
    told = str(error.value)
    assert told.startswith(f"{path}: ") and "\n" not in told


@pytest.mark.parametrize("write", [bare_pickles.detectron2, bare_pickles.pickled_tensors])
def test_a_pickle_of_detectron2_is_read_as_the_archive_is(
    write: Callable[[Values], bytes], tmp_path: Path, values: Values
):
    (tmp_path / "gres.pkl").write_bytes(write(values))
    found = rela.open_rela(str(tmp_path / "gres.pkl"))
    archive = rela.open_rela(str(rela_sources.checkpoint(tmp_path / "gres.pth", values)))
    assert found.config == archive.config
    assert found.plan(target_of(found.config)).reads.keys() <= values.keys()
    for entry, value in values.items():
        np.testing.assert_array_equal(found.weights.read(entry), value)


def test_what_other_versions_store_is_named(tmp_path: Path, values: Values):
    """Constants of the model and of its loss."""
    colours = {"pixel_mean": (123.675, 116.28, 103.53), "pixel_std": (58.395, 57.12, 57.375)}
    more: Values = {name: np.array(x, np.float32).reshape(3, 1, 1) for name, x in colours.items()}
    more["criterion.empty_weight"] = np.ones(2, np.float32)
    path = rela_sources.checkpoint(tmp_path / "gres.pth", {**values, **more})
    found = rela.open_rela(str(path))
    assert more.keys() <= found.plan(target_of(found.config)).unread.keys()


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (
            ["--format=rela", "--preset=B/16"],
            "--preset=B/16: only of CLIP's formats; leave it away",
        ),
        (["--format=rela", "--tokenizer=clip"], "'clip' has 49408 tokens, the model 110: "),
        (["--format=hf_bert", "--tokenizer=clip"], "--tokenizer=clip: only of rela; leave it away"),
        (["--format=hf_clip", "--tokenizer=clip"], "--tokenizer=clip: only of rela; leave it away"),
        (["--format=rela", "--source=/nowhere/gres.pth"], "/nowhere/gres.pth: No such file"),
    ],
)
def test_a_refused_command_writes_nothing(
    flags: list[str], words: str, tmp_path: Path, values: Values, capsys: Any
):
    source = rela_sources.checkpoint(tmp_path / "gres.pth", values)
    output = tmp_path / "out"
    assert main([f"--source={source}", f"--output={output}", *flags]) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: ") and words in error and error.count("\n") == 1
    assert not output.exists()


def test_the_folder_is_exported_with_its_vocabulary(imported: Path, tmp_path: Path):
    output = tmp_path / "exported"
    assert (
        export.main([f"--checkpoint={imported}", "--format=safetensors", f"--output={output}"]) == 0
    )
    params, record = load_params(imported)
    found = read_source(output)
    assert found.model == {**record["model"], **found.model} and found.eval["threshold"] == 0.5
    assert found.params.keys() == params.keys()
    for path, value in params.items():
        np.testing.assert_array_equal(found.params[path], value, err_msg=path)
    assert json.loads(found.tokenizer_json)["model"]["vocab"]["[SEP]"] == 102
    assert "the towers are not CLIP's" in (output / "README.md").read_text()
    assert not (output / "clip").exists()
