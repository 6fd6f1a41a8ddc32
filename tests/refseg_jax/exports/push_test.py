"""`tools.export --push` and `--space`, and that what was pushed is read back wherever models are."""

import ast
import dataclasses
import importlib
import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from refseg_jax import Predictor
from refseg_jax.checkpoints import manifest
from refseg_jax.cli import export as command
from refseg_jax.errors import UserError
from refseg_jax.exports.push import push
from refseg_jax.exports.source import load_start, read_source, recorded_licences
from refseg_jax.models.graphs import forward_of
from refseg_jax.sharding import MeshConfig, abstract_params, make_mesh
from tests.hub_server import TOKEN, Hub
from tests.refseg_jax.exports.folders import damaged, flip, one_line, write_all

NAME = "owner/model"


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("exports")
    write_all(folder, "safetensors")
    return folder / "safetensors"


@pytest.fixture
def logged_in(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", TOKEN)


def _front_matter(card: str) -> dict[str, str]:
    """Lines `key: value` between the first two `---`."""
    matter = card.split("---\n")[1]
    return dict(line.split(": ", 1) for line in matter.splitlines())


def test_what_is_pushed_is_read_as_the_folder_wherever_models_are(
    exported: Path, hub: Hub, logged_in: None, capsys: pytest.CaptureFixture[str]
) -> None:
    (exported / "notes.txt").write_text("no part of it")
    try:
        assert command.main([f"--checkpoint={exported}", f"--push={NAME}", "--private"]) == 0
    finally:
        (exported / "notes.txt").unlink()
    assert hub.private == {NAME}
    (files,) = hub.repositories[NAME].values()
    assert set(files) == {*manifest.read(exported), manifest.NAME}
    assert f"hf://{NAME}: {len(files)} files, " in capsys.readouterr().out
    path = f"hf://{NAME}"
    assert Predictor.from_checkpoint(path).group_size == 1
    found, expected = read_source(path), read_source(exported)
    assert dataclasses.replace(found, params={}) == dataclasses.replace(expected, params={})
    assert recorded_licences(path) == recorded_licences(exported)
    target = abstract_params(forward_of(found.model).shapes, make_mesh(MeshConfig()))
    started, step = load_start(path, target)
    assert step == expected.step
    for params in (found.params, started):
        assert params.keys() == expected.params.keys()
        for name, value in params.items():
            np.testing.assert_array_equal(value, expected.params[name], err_msg=name)


def test_a_damaged_file_of_the_hub_is_found(exported: Path, hub: Hub, logged_in: None) -> None:
    push(exported, NAME)
    weights = bytearray((exported / "model.safetensors").read_bytes())
    weights[-1] ^= 1
    hub.commit(NAME, {"model.safetensors": bytes(weights)})
    with pytest.raises(UserError) as caught:
        Predictor.from_checkpoint(f"hf://{NAME}")
    one_line(caught, f"hf://{NAME}", "model.safetensors: its content has changed")


def test_a_damaged_export_is_not_pushed(exported: Path, hub: Hub, tmp_path: Path) -> None:
    with pytest.raises(UserError) as caught:
        push(damaged(exported, tmp_path / "copy", "tokenizer.json", flip), NAME)
    one_line(caught, "tokenizer.json")
    assert not hub.asked


def test_a_dry_run_says_what_would_be_sent_and_asks_nobody(
    exported: Path, hub: Hub, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "new"
    flags = [f"--checkpoint={exported}", "--format=safetensors", f"--output={output}"]
    assert command.main([*flags, f"--push={NAME}", "--dry_run", "--json"]) == 0
    said = capsys.readouterr()
    found = json.loads(said.out)["push"]
    assert found["commit"] == "" and found["address"] == f"hf://{NAME}"
    assert found["files"].keys() == {*manifest.read(output), manifest.NAME}
    assert "would be sent; nothing was" in said.err
    assert not hub.asked and not hub.repositories
    # The card of a folder that is made for the hub loads it from there.
    card = (output / "README.md").read_text()
    assert f'Predictor.from_checkpoint("hf://{NAME}")' in card
    matter = _front_matter(card)
    assert matter["library_name"] == "refseg_jax" and matter["pipeline_tag"] == "image-segmentation"
    assert re.fullmatch(r"\[unires(, [\w-]+)+\]", matter["tags"])


def test_a_hub_that_refuses_or_is_away_is_one_line(
    exported: Path, hub: Hub, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_of_nobody")
    with pytest.raises(UserError) as caught:
        push(exported, NAME)
    one_line(caught, f"--push={NAME}: the hub refuses it", "hf auth login", str(exported))
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(UserError) as caught:
        push(exported, NAME)
    one_line(caught, "the hub cannot be reached")


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--push=model"], "--push=model: no name on the hub; write OWNER/NAME"),
        (["--push=hf://owner/model"], "give OWNER/NAME alone"),
        (["--push=owner/model@v1"], "give OWNER/NAME alone"),
        (["--dry_run"], "--dry_run: only of --push"),
        (["--private"], "--private: only of --push"),
        ([], "--output: missing"),
        (["--format=onnx"], "--format and --output: give both"),
        (["--push=owner/model", "--step=7"], "an exported folder has one step"),
        (["--space=."], "--space=.: it exists already"),
        (["--push=owner/model", "--checkpoint=nothing"], "is no exported folder"),
    ],
)
def test_flags_that_do_not_go_together_are_one_line(
    exported: Path, flags: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command.main([f"--checkpoint={exported}", *flags]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ") and words in line


@pytest.mark.parametrize("name", ["", NAME])
def test_a_space_has_the_library_the_model_and_what_the_hub_reads(
    exported: Path, tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    space = tmp_path / "space"
    flags = [f"--checkpoint={exported}", f"--space={space}"]
    if name:
        flags += [f"--push={name}", "--dry_run"]
    assert command.main(flags) == 0
    assert f"hf upload OWNER/SPACE {space} . --repo-type=space" in capsys.readouterr().out
    matter = _front_matter((space / "README.md").read_text(encoding="utf-8"))
    assert matter["sdk"] == '"gradio"' and json.loads(matter["app_file"]) == "app.py"
    assert int(json.loads(matter["sdk_version"]).split(".")[0]) == 6
    assert matter.get("models") == (f'["{name}"]' if name else None)
    tree = ast.parse((space / "app.py").read_text())
    (imported,) = (n.module for n in tree.body if isinstance(n, ast.ImportFrom) and n.level == 0
                   and n.module != "pathlib")  # fmt: skip
    assert imported == "refseg_jax.cli.demo.app"
    lines = (space / "requirements.txt").read_text().splitlines()
    assert any(line.startswith("jax") for line in lines)
    assert not [line for line in lines if line.startswith("gradio") or "extra ==" in line]
    # The library of the Space alone, as the hub runs it.
    code = (
        "import sys\nsys.path.insert(0, '.')\n"
        "sys.meta_path[:] = [f for f in sys.meta_path if 'Editable' not in getattr(f, '__name__', '')]"
        "\nfrom importlib import metadata\nimport refseg_jax.exports.folder as folder\n"
        "from pathlib import Path\n"
        "print(Path(folder.__file__).is_relative_to(Path.cwd()), metadata.version('refseg_jax'))\n"
        "print(folder.is_export(Path('model')))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=space, capture_output=True, text=True, check=True
    )
    version = importlib.import_module("refseg_jax").__version__
    assert done.stdout.split() == ["True", version, str(not name)]
    assert (f"hf://{NAME}" in (space / "app.py").read_text()) == bool(name)
    if not name:
        assert manifest.check(space / "model").reason == ""


def test_a_space_that_fails_leaves_nothing(exported: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    flags = [f"--checkpoint={exported}", f"--space={tmp_path / 'file' / 'space'}"]
    assert command.main(flags) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
