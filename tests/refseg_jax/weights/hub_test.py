"""Names on the hub, without the hub: in a process of its own, because the client reads its settings
when it is imported."""

import os
import subprocess
import sys
from pathlib import Path

CODE = """
import sys
from refseg_jax.errors import UserError
from refseg_jax.weights.hub import locate
try:
    print(locate(sys.argv[1], weights=["model.safetensors", "b.bin"], settings=["config.json"]))
except UserError as error:
    print(f"refused: {error}")
"""


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
    repository = tmp_path / "hub" / "models--owner--name"
    snapshot = repository / "snapshots" / "abc"
    snapshot.mkdir(parents=True)
    (snapshot / "b.bin").touch()
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("abc")
    assert located("owner/name", tmp_path) == str(snapshot)


def test_what_is_neither_path_nor_name_is_refused(tmp_path: Path):
    told = located("runs/clip/weights.pt", tmp_path)
    assert told.startswith("refused: runs/clip/weights.pt: no such file or folder, nor a name")
    assert located(str(tmp_path), tmp_path) == str(tmp_path)
