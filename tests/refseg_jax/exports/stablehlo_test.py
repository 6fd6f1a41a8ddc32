"""Graphs that run without this project's code, for any batch and any number of expressions."""

import dataclasses
import json
import os
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from jax import export as jax_export
from PIL import Image

from refseg_jax.checkpoints import manifest
from refseg_jax.errors import UserError
from refseg_jax.evaluation.counts import predicted_mask
from refseg_jax.exports import folder
from refseg_jax.exports.exporter import export
from refseg_jax.exports.source import read_source
from refseg_jax.exports.stablehlo import used_params
from refseg_jax.images.resize import logits_on_canvas
from refseg_jax.models.graphs import GRAPHS, Graphs, forward_of
from refseg_jax.prediction.predictor import Predictor
from refseg_jax.prediction.stablehlo import StablehloEngine, read_graph
from tests.refseg_jax.exports.folders import (
    TEXTS,
    THRESHOLD,
    damaged,
    engine_logits,
    engine_outputs,
    flip,
    forged,
    graph_inputs,
    one_line,
    picture,
    same_answers,
    write_all,
    written_graphs,
)
from tests.refseg_jax.models.micro import EOS, FIELDS
from tests.refseg_jax.models.rela_test import SMALL as RELA
from tests.refseg_jax.models.small_unilseg import SMALL as UNILSEG
from tests.refseg_jax.training.tiny_run import UNIRES

DOCS = Path(__file__).parents[3] / "docs" / "export.md"
LENGTH = 7


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("exports")
    write_all(folder, "stablehlo", presence=True)
    return folder


@pytest.fixture(scope="module")
def run(exported: Path) -> Predictor:
    return Predictor.from_checkpoint(exported / "run")


def _agree(found: np.ndarray, expected: np.ndarray) -> None:
    """To rounding, relative to the largest logit."""
    assert expected.std((-2, -1)).min() > 0.01
    scale = np.abs(expected).max()
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5 * scale)


@pytest.mark.parametrize(
    "changes",
    [
        {"head": "projector", "presence_head": True, "mask_evidence": True},
        # More keys than FLASH_MIN_KEYS, where the CPU has a kernel of its own.
        {"head": "pixel_shuffle", "patch_size": 2, "low_tokens": 0, "remat": True},
        {"head": "pixel_kernel", "stem_width": 8, "low_tokens": 0, "high_tokens": 0},
    ],
    ids=lambda changes: changes["head"],
)
def test_every_head_gives_the_models_logits(tmp_path: Path, changes: dict[str, Any]) -> None:
    model = {"name": "unires", **FIELDS, "decoder_layers": 1, **changes}
    graphs, engine = written_graphs(tmp_path, model, LENGTH)
    inputs = graph_inputs(2, 3, eos=EOS, length=LENGTH)
    found, expected = (engine_outputs(each, inputs) for each in (graphs, engine))
    _agree(found.pop("mask_logits"), expected.pop("mask_logits"))
    more = {"present_logits"} if "presence_head" in changes else set()
    assert found.keys() == expected.keys() == more
    for name, logits in expected.items():
        assert np.ptp(logits) > 0.01
        np.testing.assert_allclose(found[name], logits, rtol=0, atol=1e-5)


def test_rela_gives_the_models_logits(tmp_path: Path) -> None:
    """With the gate open an image's features are its patches alone, and words enter the stages."""
    model = {**RELA, "relationship": "paper", "gate": "live"}
    graphs, engine = written_graphs(tmp_path, model, LENGTH)
    inputs = graph_inputs(2, 3, eos=RELA["eos_id"], length=LENGTH, side=RELA["image_size"])
    assert graphs.encode_image(inputs["image"]).keys() == {"maps.0"}
    found, expected = (engine_outputs(each, inputs) for each in (graphs, engine))
    _agree(found["mask_logits"], expected["mask_logits"])
    assert np.ptp(expected["present_logits"]) > 0.01
    np.testing.assert_allclose(
        found["present_logits"], expected["present_logits"], rtol=0, atol=1e-5
    )


def test_unilseg_gives_the_models_logits(tmp_path: Path) -> None:
    """Its running averages are arguments like the parameters: they are folded into no kernel."""
    graphs, engine = written_graphs(tmp_path, UNILSEG, LENGTH)
    inputs = graph_inputs(2, 3, eos=UNILSEG["eos_id"], length=LENGTH, side=UNILSEG["image_size"])
    found, expected = (engine_outputs(each, inputs) for each in (graphs, engine))
    assert found.keys() == expected.keys() == {"mask_logits"}
    _agree(found["mask_logits"], expected["mask_logits"])
    forward = forward_of(UNILSEG)
    taken = [graph["params"] for graph in folder.read_config(tmp_path).graphs.values()]
    assert sorted(path for paths in taken for path in paths) == sorted(forward.shapes)
    assert forward.statistics and forward.statistics <= set(taken[GRAPHS.index("decode")])


def test_a_graph_takes_just_the_parameters_that_it_uses() -> None:
    graphs = Graphs(forward_of(UNIRES))
    shapes = graphs.forward.shapes
    image = jax.ShapeDtypeStruct((1, 32, 32, 3), np.uint8)
    text = [jax.ShapeDtypeStruct((1, 1, LENGTH), dtype) for dtype in (np.int32, np.bool_)]
    seen = used_params(graphs.encode_image, shapes, image)
    read = used_params(graphs.encode_text, shapes, *text)
    features = [
        jax.eval_shape(graphs.encode_image, shapes, image),
        jax.eval_shape(graphs.encode_text, shapes, *text),
    ]
    decoded = used_params(graphs.decode, shapes, *features)
    assert sorted([*seen, *read, *decoded]) == sorted(shapes)
    assert {path.partition(".")[0] for path in read} == {"text"}


def test_a_parameter_whose_result_is_dropped_is_not_used() -> None:
    def function(params: dict[str, jax.Array], x: jax.Array) -> jax.Array:
        jax.numpy.sin(params["dropped"] * x)
        return jax.numpy.sin(params["used"]) + x

    params = {name: np.ones(3, np.float32) for name in ("dropped", "idle", "used")}
    assert used_params(function, params, params["used"]) == ["used"]


def _snippet(start: str) -> str:
    """The program of the docs that begins so."""
    programs = re.findall(r"```python\n(.*?)```", DOCS.read_text(), re.DOTALL)
    (found,) = [program for program in programs if program.startswith(start)]
    return found


def test_the_inputs_of_the_docs_are_those_of_the_predictor(
    exported: Path, run: Predictor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("config.json", "tokenizer.json"):
        (tmp_path / name).symlink_to(exported / "stablehlo" / name)
    Image.fromarray(picture()).save(tmp_path / "picture.jpg")
    monkeypatch.chdir(tmp_path)
    made: dict[str, Any] = {}
    exec(_snippet("import json\nfrom pathlib"), made)
    inputs = {name: np.load(f"{name}.npy") for name in ("image", "text", "text_valid")}
    wide = logits_on_canvas(
        engine_logits(run._engine, inputs)[:, None], made["affine"][None, None], 2, (40, 33)
    )
    masks = predicted_mask(wide, np.array([[[40, 33]]]), THRESHOLD)
    answers = run.predict("picture.jpg", ["the red box", "both boxes"])
    assert any(0.02 < answer.uncleared.mean() < 0.98 for answer in answers)
    for mask, answer in zip(masks[0, 0], answers, strict=True):
        assert (np.asarray(mask) != answer.uncleared).mean() < 1e-3, "but for rounding"


def _bare_python(target: Path) -> dict[str, str]:
    """An environment in which JAX, numpy and safetensors can be imported, and nothing else."""
    packages = target / "packages"
    packages.mkdir()
    needed = ("jax", "jaxlib", "ml_dtypes", "numpy", "opt_einsum", "scipy")
    for name in (*needed, "flatbuffers", "safetensors"):
        found = find_spec(name)
        assert found is not None and found.origin is not None, name
        place = Path(found.origin).parent
        (packages / name).symlink_to(place)
        libraries = place.with_name(f"{name}.libs")
        if libraries.is_dir():
            (packages / libraries.name).symlink_to(libraries)
    # Compiled in a hurry.
    flags = "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"
    bare = {"PYTHONPATH": str(packages), "JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags}
    return {**bare, "PATH": os.environ["PATH"]}


def test_the_text_of_the_docs_runs_where_this_code_is_not(
    exported: Path, run: Predictor, tmp_path: Path
) -> None:
    snippet = _snippet("import json\nimport numpy as np\n")
    work = tmp_path / "work"
    work.mkdir()
    for path in (exported / "stablehlo").iterdir():
        (work / path.name).symlink_to(path)
    inputs = graph_inputs(2, 4, eos=UNIRES["eos_id"], length=10)
    for name, value in inputs.items():
        np.save(work / f"{name}.npy", value)
    script = f"""{snippet}
np.save("logits.npy", logits)
import importlib.util
for name in ("refseg_jax", "input_pipeline", "flax", "orbax", "transformers"):
    assert importlib.util.find_spec(name) is None, name
"""
    # Without `site`, so that neither installed packages nor this project are found.
    command = [sys.executable, "-S", "-P", "-c", script]
    env = _bare_python(tmp_path)
    done = subprocess.run(command, cwd=work, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    config = folder.read_config(exported / "stablehlo")
    # Image by image, so that a row is seen to depend on none of the others.
    rows = [{name: x[b : b + 1] for name, x in inputs.items()} for b in range(2)]
    expected = np.concatenate([engine_logits(run._engine, row) for row in rows])
    found = np.load(work / "logits.npy")
    _, (batch, count, *grid) = config.graphs["decode"]["outputs"]["mask_logits"]
    assert (batch, count) == ("b", "k")
    assert found.shape == (2, 4, *grid)
    _agree(found, expected)


def test_a_predictor_answers_from_graphs_as_from_the_checkpoint(
    exported: Path, run: Predictor
) -> None:
    graphs = Predictor.from_checkpoint(exported / "stablehlo")
    assert isinstance(graphs._engine, StablehloEngine)
    same_answers(graphs.predict(picture(), TEXTS), run.predict(picture(), TEXTS))
    with pytest.raises(UserError) as caught:
        graphs.group_assignment(picture())
    one_line(caught, "maps of group tokens", "--format=safetensors")


def _of_another_convention(content: bytes) -> bytes:
    graph = jax_export.deserialize(bytearray(content))
    later = jax_export.maximum_supported_calling_convention_version + 1
    return bytes(dataclasses.replace(graph, calling_convention_version=later).serialize())


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (_of_another_convention, "calling convention"),
        (lambda content: b"", "cannot read it"),
        (lambda content: content[:1000], "cannot read it"),
        (lambda content: b"\x00" * len(content), "cannot read it"),
    ],
)
def test_a_graph_that_jax_cannot_read_is_one_line(
    exported: Path, tmp_path: Path, change: Any, words: str
) -> None:
    bad = damaged(exported / "stablehlo", tmp_path / "bad", "decode.stablehlo", change)
    with pytest.raises(UserError) as caught:
        Predictor.from_checkpoint(bad)
    one_line(caught, str(bad / "decode.stablehlo"), "export again")
    # With a digest of its own it comes further.
    manifest.write(bad)
    with pytest.raises(UserError) as caught:
        Predictor.from_checkpoint(bad)
    one_line(caught, str(bad / "decode.stablehlo"), words, "export again")


@pytest.mark.parametrize("name", GRAPHS)
def test_a_graph_that_is_not_described_is_one_line(
    exported: Path, tmp_path: Path, name: str
) -> None:
    bad = damaged(exported / "stablehlo", tmp_path / "bad", "README.md", bytes)
    config = folder.read_config(bad)
    graphs = {key: value for key, value in config.graphs.items() if key != name}
    folder.write_config(bad, dataclasses.replace(config, graphs=graphs))
    with pytest.raises(UserError) as caught:
        Predictor.from_checkpoint(bad)
    one_line(caught, str(bad / "config.json"), f"'{name}'")


def test_a_context_length_that_the_graphs_do_not_take_is_one_line(
    exported: Path, tmp_path: Path
) -> None:
    def longer(content: bytes) -> bytes:
        config = json.loads(content)
        config["data"]["context_length"] = 12
        return json.dumps(config).encode()

    bad = forged(exported / "stablehlo", tmp_path / "bad", "config.json", longer)
    with pytest.raises(UserError) as caught:
        Predictor.from_checkpoint(bad)
    one_line(caught, str(bad / "config.json"), "context_length=12", "texts of 10 tokens")


@pytest.mark.parametrize("name", ["model.safetensors", *(f"{g}.stablehlo" for g in GRAPHS)])
@pytest.mark.parametrize("change", [flip, lambda content: content[:-100]], ids=["bit", "cut"])
def test_every_damaged_file_is_one_line(
    exported: Path, tmp_path: Path, name: str, change: Any
) -> None:
    bad = damaged(exported / "stablehlo", tmp_path / "bad", name, change)
    with pytest.raises(UserError) as caught:
        Predictor.from_checkpoint(bad)
    one_line(caught, f"{bad / name}: ", "copy the whole exported folder again")


@pytest.mark.parametrize("name", GRAPHS)
def test_each_graph_is_for_all_three_platforms(exported: Path, name: str) -> None:
    graph = read_graph(exported / "stablehlo" / f"{name}.stablehlo")
    assert graph.platforms == ("cpu", "cuda", "tpu")


def test_a_folder_of_graphs_can_be_exported_again(exported: Path, tmp_path: Path) -> None:
    export(exported / "stablehlo", "safetensors", tmp_path / "out", command=["x"])
    weights = [read_source(path).params for path in (exported / "run", tmp_path / "out")]
    assert weights[0].keys() == weights[1].keys()
    for path, value in weights[0].items():
        np.testing.assert_array_equal(weights[1][path], value)
