"""ONNX graphs in onnxruntime against JAX, for any batch and any number of expressions."""

import json
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
import onnxruntime
import pytest

from refseg_jax.checkpoints import manifest
from refseg_jax.errors import UserError
from refseg_jax.exports import folder
from refseg_jax.exports.exporter import export
from refseg_jax.exports.folder import ExportConfig
from refseg_jax.exports.onnx_environment import ensure_environment
from refseg_jax.exports.onnx_graphs import write_onnx
from refseg_jax.exports.source import Source
from refseg_jax.models.forward import Params
from refseg_jax.models.graphs import forward_of
from refseg_jax.prediction.engines import ParameterEngine
from refseg_jax.prediction.onnx import OnnxEngine
from refseg_jax.prediction.predictor import Predictor
from tests.refseg_jax.exports.folders import (
    TEXTS,
    compiling_in_a_hurry,
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
)
from tests.refseg_jax.models.micro import EOS, FIELDS
from tests.refseg_jax.models.rela_test import SMALL as RELA
from tests.refseg_jax.models.small_grser import SMALL as GRSER
from tests.refseg_jax.models.small_unilseg import SMALL as UNILSEG
from tests.refseg_jax.training.tiny_run import UNIRES, random_params

pytestmark = pytest.mark.parity

DOCS = Path(__file__).parents[2] / "docs" / "export.md"
LENGTH = 10


@pytest.fixture(scope="module", autouse=True)
def in_a_hurry() -> Iterator[None]:
    with compiling_in_a_hurry(), pytest.MonkeyPatch.context() as patch:
        # For the process that converts, which compares with JAX.
        patch.setenv("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
        yield


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("exports")
    write_all(folder, "onnx", presence=True)
    return folder


def _agree(found: np.ndarray, expected: np.ndarray) -> None:
    assert expected.std((-2, -1)).min() > 0.01
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    "changes",
    [
        {"head": "projector", "presence_head": True, "mask_evidence": True},
        # Computed in f32 all the same: the model of the comparison is f32.
        {"head": "pixel_shuffle", "patch_size": 4, "remat": True, "dtype": "bfloat16"},
        {"head": "pixel_kernel", "stem_width": 8, "low_tokens": 0, "high_tokens": 0},
    ],
    ids=lambda changes: changes["head"],
)
def test_every_head_gives_the_models_logits(tmp_path: Path, changes: dict[str, Any]) -> None:
    model = {"name": "unires", **FIELDS, "decoder_layers": 1, **changes}
    params, found, expected = _exported(tmp_path, model)
    for batch, count in ((2, 3), (1, 1)):
        inputs = graph_inputs(batch, count, eos=EOS, length=LENGTH)
        ours, theirs = (engine_outputs(each, inputs) for each in (expected, found))
        _agree(theirs.pop("mask_logits"), ours.pop("mask_logits"))
        more = {"present_logits"} if "presence_head" in changes else set()
        assert ours.keys() == theirs.keys() == more
        for name, logits in ours.items():
            np.testing.assert_allclose(theirs[name], logits, rtol=0, atol=1e-4)
    # No parameter lies in two graphs.
    size = sum(path.stat().st_size for path in tmp_path.glob("*.onnx"))
    stored = sum(value.nbytes for value in params.values())
    assert size < stored + 800_000


def _exported(target: Path, model: dict[str, Any]) -> tuple[Params, OnnxEngine, ParameterEngine]:
    """Random numbers, the graphs of the model that has them, and the model in f32."""
    params = jax.tree.map(np.asarray, random_params(forward_of(model)))
    source = Source(params, model, {"context_length": LENGTH}, {}, "", 1, {})
    graphs, _ = write_onnx(target, source)
    folder.write_config(target, ExportConfig("onnx", model, source.data, {}, 1, {}, graphs))
    found = OnnxEngine(target, folder.read_config(target))
    expected = ParameterEngine(params, {**model, "dtype": "float32"})
    assert (found.image_size, found.mask_stride) == (expected.image_size, expected.mask_stride)
    return params, found, expected


def test_rela_gives_the_models_logits(tmp_path: Path) -> None:
    """By the blocks of the public code, whose image features are all stages."""
    model = {**RELA, "relationship": "official", "gate": "closed", "mask_evidence": True}
    _, found, expected = _exported(tmp_path, model)
    for batch, count in ((2, 3), (1, 1)):
        inputs = graph_inputs(
            batch, count, eos=RELA["eos_id"], length=LENGTH, side=RELA["image_size"]
        )
        assert found.encode_image(inputs["image"]).keys() == {"maps.0", "maps.1"}
        ours, theirs = (engine_outputs(each, inputs) for each in (expected, found))
        assert ours.keys() == theirs.keys() == {"mask_logits", "present_logits"}
        for name, logits in ours.items():
            assert batch * count == 1 or logits.std() > 0.01
            largest = np.abs(logits).max()
            np.testing.assert_allclose(theirs[name], logits, rtol=0, atol=1e-5 * largest)


def test_unilseg_gives_the_models_logits(tmp_path: Path) -> None:
    """The running averages are in the graph as they are."""
    params, found, expected = _exported(tmp_path, UNILSEG)
    for batch, count in ((2, 3), (1, 1)):
        inputs = graph_inputs(batch, count, eos=UNILSEG["eos_id"], length=LENGTH)
        ours, theirs = (engine_outputs(each, inputs) for each in (expected, found))
        assert ours.keys() == theirs.keys() == {"mask_logits"}
        _agree(theirs["mask_logits"], ours["mask_logits"])
    decode = (tmp_path / "decode.onnx").read_bytes()
    for path in forward_of(UNILSEG).statistics:
        assert np.asarray(params[path]).tobytes() in decode, path


def test_grser_gives_the_models_logits(tmp_path: Path) -> None:
    """For any number of groups, images and expressions."""
    _, found, expected = _exported(tmp_path, GRSER)
    for rows, images, count in ((2, 3, 2), (1, 1, 1), (1, 7, 3)):
        inputs = graph_inputs(rows, count, eos=GRSER["eos_id"], length=LENGTH, images=images)
        ours, theirs = (engine_outputs(each, inputs) for each in (expected, found))
        assert ours["mask_logits"].shape == (rows, images, count, 16, 16)
        assert ours.keys() == theirs.keys() == {"mask_logits", "present_logits"}
        for name, logits in ours.items():
            largest = np.abs(logits).max()
            np.testing.assert_allclose(theirs[name], logits, rtol=0, atol=1e-5 * largest)


def test_an_order_by_chance_has_no_onnx_graph(tmp_path: Path) -> None:
    with pytest.raises(UserError) as caught:
        _exported(tmp_path / "onnx", {**GRSER, "inference_rank": "random"})
    one_line(caught, "config.model.inference_rank='random'", "--format=stablehlo")


def test_another_export_needs_the_weights_by_name(exported: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError) as caught:
        export(exported / "onnx", "safetensors", tmp_path / "out", command=["x"])
    one_line(caught, str(exported / "onnx"), "inside its graphs", "take the run")
    assert not list(tmp_path.iterdir())


def test_a_predictor_answers_from_graphs_as_from_the_checkpoint(exported: Path) -> None:
    run, graphs = (Predictor.from_checkpoint(exported / kind) for kind in ("run", "onnx"))
    assert isinstance(graphs._engine, OnnxEngine)
    same_answers(graphs.predict(picture(), TEXTS), run.predict(picture(), TEXTS))


def test_the_text_of_the_docs_runs_without_jax(exported: Path, tmp_path: Path) -> None:
    (snippet,) = re.findall(
        r"```python\n(import numpy as np\nimport onnxruntime\n.*?)```", DOCS.read_text(), re.DOTALL
    )
    for path in (exported / "onnx").glob("*.onnx"):
        (tmp_path / path.name).symlink_to(path)
    run = Predictor.from_checkpoint(exported / "run")._engine
    blocked = (
        "import sys\nsys.modules.update(dict.fromkeys(('jax', 'flax', 'refseg_jax', 'torch')))"
    )
    for batch, count in ((1, 4), (3, 2)):
        inputs = graph_inputs(batch, count, eos=UNIRES["eos_id"], length=LENGTH)
        for name, value in inputs.items():
            np.save(tmp_path / f"{name}.npy", value)
        script = f"{blocked}\n{snippet}\nnp.save('logits.npy', logits)"
        done = subprocess.run(
            [sys.executable, "-P", "-c", script], cwd=tmp_path, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        _agree(np.load(tmp_path / "logits.npy"), engine_logits(run, inputs))


def test_config_json_describes_what_the_graphs_take_and_give(exported: Path) -> None:
    config = json.loads((exported / "onnx" / "config.json").read_text())
    types = {"uint8": "uint8", "int32": "int32", "bool": "bool", "float32": "float"}
    for name, graph in config["graphs"].items():
        session = onnxruntime.InferenceSession(exported / "onnx" / graph["file"])
        for kind, values in (("inputs", session.get_inputs()), ("outputs", session.get_outputs())):
            found = {value.name: (value.type, value.shape) for value in values}
            described = {
                key: (f"tensor({types[dtype]})", shape)
                for key, (dtype, shape) in graph[kind].items()
            }
            assert found == described, (name, kind)
    assert config["graphs"]["decode"]["outputs"] == {
        "mask_logits": ["float32", ["b", "k", 16, 16]],
        "present_logits": ["float32", ["b", "k"]],
    }


@pytest.mark.parametrize("change", [flip, lambda content: b"", lambda content: content[:1000]])
def test_a_damaged_graph_is_one_line(
    exported: Path, tmp_path: Path, change: Callable[[bytes], bytes]
) -> None:
    bad = damaged(exported / "onnx", tmp_path / "bad", "decode.onnx", change)
    with pytest.raises(UserError) as caught:
        Predictor.from_checkpoint(bad)
    one_line(caught, str(bad / "decode.onnx"), "copy the whole exported folder again")


def test_graphs_that_cannot_be_read_are_one_line(exported: Path, tmp_path: Path) -> None:
    """With digests of their own."""
    bad = forged(exported / "onnx", tmp_path / "bad", "decode.onnx", lambda content: b"onnx" * 9)
    with pytest.raises(UserError) as caught:
        Predictor.from_checkpoint(bad)
    one_line(caught, str(bad / "decode.onnx"), "onnxruntime", "export again")
    content = json.loads((bad / "config.json").read_text())
    del content["graphs"]["decode"]
    (bad / "config.json").write_text(json.dumps(content))
    manifest.write(bad)
    with pytest.raises(UserError) as caught:
        Predictor.from_checkpoint(bad)
    one_line(caught, str(bad / "config.json"), "'decode'")


def test_large_weights_lie_beside_the_graph_and_every_number_is_compared(
    exported: Path, tmp_path: Path
) -> None:
    """The limit of 2 GiB lowered, so that the tiny model is beyond it; then its data are damaged."""
    converter = Path(folder.__file__).with_name("onnx_converter.py")
    write_all(tmp_path, "safetensors")
    (tmp_path / "packages").mkdir()
    (tmp_path / "packages" / "refseg_jax").symlink_to(converter.parents[1])
    out = tmp_path / "out"
    out.mkdir()
    script = f"""
import runpy, sys
from pathlib import Path
sys.path[:0] = [{str(tmp_path / "packages")!r}]
converter = runpy.run_path({str(converter)!r})
converter["main"].__globals__["_LARGEST_FILE"] = 1000
weights, out = Path({str(tmp_path / "safetensors")!r}), Path({str(out)!r})
converter["main"](weights, out)

# One wrong number in one parameter, and the graphs would be refused.
params = converter["load_file"](weights / "model.safetensors")
kernel = params["text.blocks.0.mlp.down.kernel"]
kernel[0, 0] += 0.1
model = converter["json"].loads((weights / "config.json").read_text())["model"]
graphs = converter["Graphs"](converter["forward_of"](model))
try:
    converter["compare"](graphs, params, {LENGTH}, out)
except ValueError as error:
    print(error)
"""
    command = [str(ensure_environment()), "-P", "-c", script]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "differ from JAX's" in done.stdout
    graphs = json.loads((out / "graphs.json").read_text())["graphs"]
    assert {path.name for path in out.glob("*.data")} == {f"{name}.onnx.data" for name in graphs}
    folder.write_config(out, folder.read_config(exported / "onnx"))
    config = folder.read_config(out)
    inputs = graph_inputs(2, 3, eos=UNIRES["eos_id"], length=LENGTH)
    expected = engine_logits(Predictor.from_checkpoint(exported / "run")._engine, inputs)
    _agree(engine_logits(OnnxEngine(out, config), inputs), expected)
    data = out / "encode_text.onnx.data"
    data.write_bytes(flip(data.read_bytes()))
    with pytest.raises(UserError) as caught:
        folder.check_files(out, ())
    one_line(caught, str(data), "changed since it was written", "export again")
