"""ONNX as far as it goes without a package index; tests/parity/onnx_test.py runs the graphs."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from refseg_jax.cli import export as command
from refseg_jax.errors import UserError
from refseg_jax.exports import onnx_environment, onnx_graphs
from refseg_jax.exports.exporter import FORMATS, export
from refseg_jax.exports.onnx_graphs import write_onnx
from refseg_jax.exports.source import Source, load_start, read_source
from refseg_jax.prediction.predictor import Predictor
from tests.refseg_jax.exports.folders import forged, one_line, write_all
from tests.refseg_jax.models.small_grser import SMALL


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("exports")
    write_all(folder, "safetensors")
    return folder


def _to_onnx(content: bytes) -> bytes:
    return content.replace(b'"format": "safetensors"', b'"format": "onnx"')


def _record(folder: Path) -> None:
    folder.mkdir()
    (folder / "refseg_jax_pins.txt").write_text(onnx_environment._content())


def test_no_network_is_one_line_with_the_cure(
    exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")
    monkeypatch.setenv("PIP_EXTRA_INDEX_URL", "")
    monkeypatch.setenv("PIP_FIND_LINKS", "")
    monkeypatch.setenv("PIP_RETRIES", "0")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    weights, output = str(exported / "safetensors"), str(tmp_path / "out")
    assert command.main([f"--checkpoint={weights}", "--format=onnx", f"--output={output}"]) == 1
    said = capsys.readouterr()
    assert said.out == ""
    note, line = said.err.splitlines()
    assert note.startswith("note: making ") and note.endswith("takes minutes")
    for words in ("jax2onnx", "PIP_INDEX_URL", str(tmp_path / "cache" / "refseg_jax" / "onnx-")):
        assert words in line
    assert [path.name for path in tmp_path.iterdir()] == ["cache"]
    assert not list((tmp_path / "cache" / "refseg_jax").iterdir())


def test_an_order_by_chance_is_refused_before_the_environment_is_made(tmp_path: Path) -> None:
    model = {**SMALL, "inference_rank": "random"}
    with pytest.raises(UserError) as caught:
        write_onnx(tmp_path / "out", Source({}, model, {}, {}, "", 1, {}), tmp_path / "env")
    one_line(caught, "config.model.inference_rank='random'", "--format=stablehlo")
    assert not list(tmp_path.iterdir())


def test_a_folder_of_something_else_is_left_alone(exported: Path, tmp_path: Path) -> None:
    mine = tmp_path / "env"
    mine.mkdir()
    (mine / "notes").write_text("keep")
    with pytest.raises(UserError) as caught:
        export(exported / "run", "onnx", tmp_path / "out", environment=mine, command=["x"])
    one_line(caught, str(mine), "--env")
    assert [path.name for path in mine.iterdir()] == ["notes"]
    assert [path.name for path in tmp_path.iterdir()] == ["env"]


def test_an_environment_of_other_pins_or_without_its_python_is_one_line(tmp_path: Path) -> None:
    _record(tmp_path / "env")
    (tmp_path / "env" / "bin").mkdir()
    (tmp_path / "env" / "bin" / "python").symlink_to(tmp_path / "uninstalled")
    with pytest.raises(UserError) as caught:
        onnx_environment.ensure_environment(tmp_path / "env")
    one_line(caught, str(tmp_path / "env"), "is gone", "delete it")
    (tmp_path / "env" / "refseg_jax_pins.txt").write_text("jax2onnx==0.1\n")
    with pytest.raises(UserError) as caught:
        onnx_environment.ensure_environment(tmp_path / "env")
    one_line(caught, str(tmp_path / "env"), "not an environment of this version", "--env")


def test_a_conversion_that_fails_is_one_line_and_leaves_nothing(
    exported: Path, tmp_path: Path
) -> None:
    """An environment that somebody emptied: its Python finds no package."""
    _record(tmp_path / "env")
    subprocess.run(
        [sys.executable, "-m", "venv", "--without-pip", str(tmp_path / "env")], check=True
    )
    with pytest.raises(UserError) as caught:
        export(
            exported / "run",
            "onnx",
            tmp_path / "out",
            environment=tmp_path / "env",
            command=["x"],
        )
    one_line(caught, "cannot convert", "No module named", "--format=stablehlo")
    assert [path.name for path in tmp_path.iterdir()] == ["env"]


@pytest.mark.parametrize(
    ("after", "said"),
    [
        (
            "a.b.Inconclusive: of b*k\nSee: a page\n\n-----\nFor simplicity, JAX hid frames.",
            "of b*k",
        ),
        (
            "KeyError: 'a'\n\nDuring it:\n\nTraceback (most recent call last):\n  x\nMemoryError",
            "Mem",
        ),
        ("ValueError: no order\nname: foo OpType: Bar", "no order"),
    ],
)
def test_the_reason_is_the_last_exception_whatever_stands_behind_it(after: str, said: str) -> None:
    frames = (
        'warning: old\nTraceback (most recent call last):\n  File "x", line 1\n    f()\n    ^^^\n'
    )
    assert said in onnx_graphs.raised(frames + after + "\n")


@pytest.mark.parametrize(("stderr", "said"), [("", ""), ("began\nKilled\n\n", "Killed")])
def test_without_a_traceback_the_reason_is_the_last_line(stderr: str, said: str) -> None:
    assert onnx_graphs.raised(stderr) == said


@pytest.mark.parametrize("read", [read_source, lambda path: load_start(path, {})])
def test_what_needs_weights_says_that_they_are_inside_the_graphs(
    exported: Path, tmp_path: Path, read: Any
) -> None:
    bad = forged(exported / "safetensors", tmp_path / "bad", "config.json", _to_onnx)
    with pytest.raises(UserError) as caught:
        read(bad)
    one_line(caught, str(bad), "inside its graphs", "take the run")


@pytest.mark.parametrize("name", sorted(set(FORMATS) - {"onnx"}))
def test_an_environment_is_for_onnx_alone(exported: Path, tmp_path: Path, name: str) -> None:
    with pytest.raises(UserError) as caught:
        export(exported / "run", name, tmp_path / "out", environment=tmp_path, command=["x"])
    one_line(caught, "--env", f"--format={name}")
    assert not (tmp_path / "out").exists()


def test_without_onnxruntime_a_folder_is_one_line(
    exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bad = forged(exported / "safetensors", tmp_path / "bad", "config.json", _to_onnx)
    # What `import` finds where the package is not installed.
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(UserError) as caught:
        Predictor.from_checkpoint(bad)
    one_line(caught, str(bad), "pip install 'refseg_jax[onnx]'")


def test_models_are_built_from_what_the_environment_has() -> None:
    """The converter imports them there, where neither OpenCV nor this Orbax nor Grain is."""
    script = """
import sys
for name in ("cv2", "PIL", "simplejpeg", "grain", "clu", "tensorflow_datasets", "array_record",
             "pycocotools", "tokenizers", "transformers", "refseg_jax.checkpoints.checkpointer"):
    sys.modules[name] = None
import refseg_jax.prediction.engines
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_the_command_makes_its_environment_and_keeps_it(exported: Path, tmp_path: Path) -> None:
    given = [f"--checkpoint={exported / 'safetensors'}", "--format=onnx"]
    given += [f"--env={tmp_path / 'env'}"]
    assert command.main([*given, f"--output={tmp_path / 'out'}"]) == 0
    assert {path.name for path in tmp_path.iterdir()} == {"env", "out"}
    made = (tmp_path / "env" / "refseg_jax_pins.txt").stat().st_mtime_ns
    assert command.main([*given, f"--output={tmp_path / 'again'}"]) == 0
    assert (tmp_path / "env" / "refseg_jax_pins.txt").stat().st_mtime_ns == made
    # The converter has compared both with JAX, and tells so.
    for name in ("out", "again"):
        assert "differed from JAX's" in (tmp_path / name / "README.md").read_text()
        assert len(list((tmp_path / name).glob("*.onnx"))) == 3
