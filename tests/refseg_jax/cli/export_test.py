"""`tools.export` writes what `tools.predict` takes, and says in one line what it cannot do."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from refseg_jax.cli import export, predict
from tests.refseg_jax.exports.folders import (
    compiling_in_a_hurry,
    compiling_once,
    picture,
    tiny_params,
)
from tests.refseg_jax.training.tiny_run import save_unires


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    save_unires(folder, tiny_params(), 0.6)
    return folder


def _export(run: Path, output: Path, *more: str) -> int:
    return export.main([f"--checkpoint={run}", f"--output={output}", *more])


def test_what_is_exported_predicts_as_the_run(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert _export(run, tmp_path / "model", "--format=safetensors") == 0
    assert str(tmp_path / "model") in capsys.readouterr().out
    Image.fromarray(picture()).save(tmp_path / "a.png")
    masks = []
    with compiling_in_a_hurry(), compiling_once(tmp_path / "cache"):
        for number, checkpoint in enumerate((run, tmp_path / "model")):
            out = tmp_path / f"out{number}"
            flags = [f"--checkpoint={checkpoint}", f"--image={tmp_path / 'a.png'}", "--text=box"]
            assert predict.main([*flags, f"--output_dir={out}", "--step=latest"]) == 0
            masks.append((out / "a.png-0-mask.png").read_bytes())
            line = json.loads((out / "predictions.jsonl").read_text())
            assert line["present"]
    assert masks[0] == masks[1]


def test_the_card_has_the_command_that_made_it(run: Path, tmp_path: Path) -> None:
    flags = [f"--checkpoint={run}", f"--output={tmp_path / 'a b'}", "--format=safetensors"]
    assert export.main(flags) == 0
    command = f"python -m tools.export --checkpoint={run} '--output={tmp_path / 'a b'}'"
    assert command in (tmp_path / "a b" / "README.md").read_text()


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--format=stabelhlo"], "did you mean 'stablehlo'"),
        (["--format=safetensors", "--step=7"], "no checkpoint 7"),
        (["--format=safetensors", "--step=newest"], "give latest, best or the number"),
        (["--format=safetensors", "--step=best"], "no checkpoint has a score"),
        (["--format=safetensors", "--checkpoint=nothing"], "there is no such folder"),
        (["--format=safetensors", "--output=/proc/nothing/out"], "cannot be written"),
    ],
)
def test_what_cannot_work_is_one_line_and_leaves_nothing(
    run: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    flags: list[str],
    words: str,
) -> None:
    assert _export(run, tmp_path / "out", *flags) == 1
    printed = capsys.readouterr().err.strip().splitlines()
    assert len(printed) == 1
    assert printed[0].startswith("error: ")
    assert words in printed[0]
    assert not list(tmp_path.iterdir())


def test_group_maps_of_graphs_are_refused_before_anything_is_written(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert _export(run, tmp_path / "model", "--format=stablehlo") == 0
    Image.fromarray(picture()).save(tmp_path / "a.png")
    flags = [f"--checkpoint={tmp_path / 'model'}", f"--image={tmp_path / 'a.png'}", "--text=box"]
    out = tmp_path / "out"
    assert predict.main([*flags, f"--output_dir={out}", "--group_maps"]) == 1
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert line.startswith("error: ")
    assert "--format=safetensors" in line
    assert not list(out.iterdir())


def test_predicting_from_another_step_is_refused_in_one_line(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Image.fromarray(np.zeros((4, 4, 3), np.uint8)).save(tmp_path / "a.png")
    flags = [f"--checkpoint={run}", f"--image={tmp_path / 'a.png'}", "--text=box"]
    assert predict.main([*flags, f"--output_dir={tmp_path / 'out'}", "--step=best"]) == 1
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert "no checkpoint has a score" in line
