"""`--json`: one object on stdout and nothing else there, or the same object in a file."""

import dataclasses
import importlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.input_pipeline.datasets import refcoco_files
from tests.input_pipeline.tiny_dataset import build_tiny_dataset
from tests.refseg_jax.exports.folders import tiny_params
from tests.refseg_jax.training.tiny_run import save_unires
from tests.refseg_jax.weights.clip_sources import hf_folder
from tests.tools.compile.command_test import figures_of
from tools import build_dataset

# ml_collections reads config files by a way that Python is going to drop.
pytestmark = pytest.mark.filterwarnings("ignore:the load_module:DeprecationWarning")

MASK = {"size": [4, 6], "counts": [3, 9, 12]}
CONFIG = "--config=configs/refcoco_unires.py"


def _tiny(folder: Path) -> list[str]:
    if not (folder / "tiny").exists():
        build_tiny_dataset(folder)
    return ["--dataset=tiny", f"--data_dir={folder}"]


def _doctor(folder: Path) -> list[str]:
    return [*_tiny(folder), f"--page={folder / 'page.html'}", "--num_workers=0"]


def _feed(folder: Path) -> list[str]:
    small = ("image_size=32", "patch_size=8")
    return [CONFIG, *_tiny(folder), "--seconds=0.01", *(f"--config.model.{name}" for name in small)]


def _build(folder: Path) -> list[str]:
    source = folder / "source"
    if not source.exists():
        refcoco_files.write_source(source, refcoco_files.default_refs())
    return ["--dataset=refcoco/unc", f"--source_dir={source}", f"--data_dir={folder / 'data'}"]


def _score(folder: Path) -> list[str]:
    line = json.dumps({"id": "1", "segmentation": MASK})
    (folder / "lines.jsonl").write_text(f"{line}\n")
    files = (f"--{flag}={folder / 'lines.jsonl'}" for flag in ("predictions", "references"))
    return ["--protocol=cris", *files]


def _export(folder: Path) -> list[str]:
    save_unires(folder / "run", tiny_params())
    return [f"--checkpoint={folder / 'run'}", "--format=safetensors", f"--output={folder / 'out'}"]


def _import(folder: Path) -> list[str]:
    return [
        "--format=hf_clip",
        f"--source={hf_folder(folder / 'clip')}",
        f"--output={folder / 'x'}",
    ]


#: Command -> its flags, and what the object has.
COMMANDS: dict[str, tuple[Callable[[Path], list[str]], dict[str, Any]]] = {
    "build_dataset": (_build, {"built": True}),
    "doctor": (_doctor, {"faults": 4, "dataset": "tiny"}),
    "export": (_export, {"format": "safetensors"}),
    "feed": (_feed, {}),
    "import_weights": (_import, {"format": "hf_clip"}),
    "score": (_score, {"mIoU": 1.0, "oIoU": 1.0}),
}


@pytest.mark.parametrize("name", COMMANDS)
def test_stdout_is_one_object_and_the_text_goes_to_stderr(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    prepare, expected = COMMANDS[name]
    main = importlib.import_module(f"tools.{name}").main
    flags = prepare(tmp_path)
    # What made the files has printed, too.
    capsys.readouterr()
    code = main([*flags, "--json"])
    said = capsys.readouterr()
    found = json.loads(said.out)
    # Images of the tiny dataset are in two of its splits.
    assert code == int(found.get("faults", 0) > 0)
    assert found.items() >= expected.items() and len(found) > 1
    assert said.err.strip()


def test_a_file_has_the_same_object_and_stdout_the_text(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main = importlib.import_module("tools.score").main
    assert main([*_score(tmp_path), "--json"]) == 0
    shown = capsys.readouterr().out
    assert main([*_score(tmp_path), f"--json={tmp_path / 'new' / 'it.json'}"]) == 0
    assert "1 pairs" in capsys.readouterr().out
    assert (tmp_path / "new" / "it.json").read_text() == shown


def test_what_does_not_fit_is_an_object_and_an_exit_code(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """`tools.compile`, of figures that nothing compiled."""
    told = {
        **dataclasses.asdict(figures_of(fits=False, memory_seconds=float("inf"))),
        "found": None,
    }
    monkeypatch.setattr("tools.compile.command._compile", lambda *_: iter([told]))
    main = importlib.import_module("tools.compile").main
    assert main([CONFIG, "--topology=cpu:2", "--json"]) == 1
    said = capsys.readouterr()
    (one,) = json.loads(said.out)["topologies"]["cpu:2"]
    # JSON knows no infinity.
    assert one["fits"] is False and one["memory_seconds"] is None
    assert "error: --topology=cpu:2: training step of 64 rows does not fit" in said.err


def test_after_an_error_there_is_no_object(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main = importlib.import_module("tools.score").main
    flags = ["--protocol=cris", "--predictions=none", "--references=none"]
    assert main([*flags, "--json"]) == 1
    said = capsys.readouterr()
    assert said.out == "" and said.err.startswith("error: none: is no file")
    assert main([*_score(tmp_path), f"--json={tmp_path}"]) == 1
    assert capsys.readouterr().err == f"error: --json={tmp_path}: is a folder; name a file\n"


def test_a_dataset_that_is_built_already_is_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = _build(tmp_path)
    assert build_dataset.main(flags) == 0
    capsys.readouterr()
    assert build_dataset.main([*flags, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["built"] is False
    assert {"train", "val"} <= set(found["splits"])
    assert found["folder"] == str(tmp_path / "data/refcoco/unc/1.0.0")
