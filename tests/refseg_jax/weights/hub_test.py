"""Names on the hub, without the hub: in a process of its own, because the client reads its settings
when it is imported."""

import json
import os
import subprocess
import sys
import types
from pathlib import Path

import huggingface_hub
import pytest

from refseg_jax.errors import UserError
from refseg_jax.weights import hub

CODE = """
import sys
from refseg_jax.errors import UserError
from refseg_jax.weights.hub import locate
WEIGHTS = ["model.safetensors", "b.bin", "model.safetensors.index.json"]
try:
    print(locate(sys.argv[1], weights=WEIGHTS, settings=["config.json"]))
except UserError as error:
    print(f"refused: {error}")
"""


def snapshot_with(cache: Path, *files: str) -> Path:
    """The hub's cache with a commit of `owner/name`."""
    repository = cache / "hub" / "models--owner--name"
    snapshot = repository / "snapshots" / "abc"
    snapshot.mkdir(parents=True)
    for file in files:
        (snapshot / file).touch()
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("abc")
    return snapshot


def located(name: str, cache: Path) -> str:
    settings = {"HF_HUB_OFFLINE": "1", "HF_HOME": str(cache)}
    done = subprocess.run(
        [sys.executable, "-c", CODE, name],
        env={**os.environ, **settings},
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )
    assert done.stdout.count("\n") == 1 and not done.stderr, done.stderr
    return done.stdout.strip()


def test_without_network_one_line_says_what_to_download_and_where_to_put_it(tmp_path: Path):
    told = located("openai/clip-vit-base-patch16", tmp_path)
    assert told.startswith("refused: openai/clip-vit-base-patch16: not in the cache, and https://")
    assert "download config.json and model.safetensors or b.bin from " in told
    assert "https://huggingface.co/openai/clip-vit-base-patch16/tree/main by hand" in told
    assert "into one folder, and give that folder's path instead of 'openai/clip-" in told


def test_what_is_in_the_cache_needs_no_network(tmp_path: Path):
    snapshot = snapshot_with(tmp_path, "b.bin")
    assert located("owner/name", tmp_path) == str(snapshot)


INDEX = "model.safetensors.index.json"
SHARDS = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")


def write_index(folder: Path) -> None:
    stored = {"weight_map": dict(zip("ab", SHARDS, strict=True))}
    (folder / INDEX).write_text(json.dumps(stored))


def test_an_index_in_the_cache_is_nothing_without_its_shards(tmp_path: Path):
    snapshot = snapshot_with(tmp_path, SHARDS[0])
    write_index(snapshot)
    assert "not in the cache" in located("owner/name", tmp_path)
    (snapshot / SHARDS[1]).touch()
    assert located("owner/name", tmp_path) == str(snapshot)


def test_shards_are_fetched_with_their_index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """The hub's client is replaced: no test has a network."""
    write_index(tmp_path)
    files = ["config.json", INDEX, *SHARDS]
    siblings = [types.SimpleNamespace(rfilename=file) for file in files]
    client = types.SimpleNamespace(model_info=lambda _: types.SimpleNamespace(siblings=siblings))
    got: list[str] = []

    def download(_: str, file: str) -> str:
        got.append(file)
        return str(tmp_path / file)

    monkeypatch.setattr(huggingface_hub, "HfApi", lambda: client)
    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", lambda *_: None)
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    found = hub.locate("owner/name", weights=["model.safetensors", INDEX], settings=["config.json"])
    assert found == tmp_path and got == files


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("", "the source is empty"),
        (" ", "the source is empty"),
        ("~nouser/x", "~nouser/x: no such home folder"),
        ("./clip", "./clip: no such file or folder"),
        ("../clip", "../clip: no such file or folder"),
        ("owner/-x", "owner/-x: no such file or folder"),
        ("a/b\n", r"'a/b\n': no such file or folder"),
        ("a" * 300, "no such file or folder"),
        ("a/" + "b" * 5000, "no such file or folder"),
    ],
)
def test_a_path_that_is_not_there_is_no_name(source: str, words: str):
    with pytest.raises(UserError) as caught:
        hub.locate(source, weights=["model.safetensors"], settings=["config.json"])
    assert words in str(caught.value) and str(caught.value).isprintable()


def test_what_is_neither_path_nor_name_is_refused(tmp_path: Path):
    told = located("runs/clip/weights.pt", tmp_path)
    assert told.startswith("refused: runs/clip/weights.pt: no such file or folder, nor a name")
    assert located(str(tmp_path), tmp_path) == str(tmp_path)
