"""`hf://OWNER/NAME` from a hub on this machine, without it, and what is no such address."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from refseg_jax.errors import UserError
from refseg_jax.storage.hub import Address, address_of, model_folder, on_hub
from tests.hub_server import Hub

ROOT = Path(__file__).resolve().parents[3]
NAME = "owner/model"
FILES = {"config.json": b"{}", "model.safetensors": b"weights", "clip/config.json": b"[]"}


def manifest(*names: str) -> bytes:
    """Digests are the concern of who reads the folder."""
    return json.dumps({"files": {name: {} for name in names}, "sha256": ""}).encode()


def test_the_files_of_the_manifest_are_downloaded_once(hub: Hub) -> None:
    extra = {"huge.bin": b"0" * 100, ".gitattributes": b""}
    first = hub.commit(NAME, {**FILES, **extra, "manifest.json": manifest(*FILES)})
    folder = model_folder(f"hf://{NAME}")
    there = {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*.*")}
    assert there == {**FILES, "manifest.json": manifest(*FILES)}
    # As `pathlib` writes it. What is there is not asked for again, but for where the branch is.
    hub.asked.clear()
    assert model_folder(Path(f"hf://{NAME}")) == folder
    assert not [line for line in hub.asked if "safetensors" in line]
    hub.asked.clear()
    assert model_folder(f"hf://{NAME}@{first}") == folder
    assert not hub.asked


def test_a_revision_stays_where_it_is_and_a_branch_moves(hub: Hub) -> None:
    first = hub.commit(NAME, {**FILES, "manifest.json": manifest(*FILES)})
    hub.tags[NAME] = {"v1": first}
    one = model_folder(f"hf://{NAME}")
    hub.commit(NAME, {"model.safetensors": b"others"})
    other = model_folder(f"hf://{NAME}")
    assert (other / "model.safetensors").read_bytes() == b"others"
    assert model_folder(f"hf://{NAME}@v1") == model_folder(f"hf://{NAME}@{first}") == one
    assert (one / "model.safetensors").read_bytes() == b"weights"


def _refusal(address: str) -> str:
    with pytest.raises(UserError) as caught:
        model_folder(address)
    line = str(caught.value)
    assert "\n" not in line and line.startswith("hf://")
    return line


def test_what_the_hub_does_not_give_is_one_line_with_the_cure(hub: Hub) -> None:
    assert "has no such model that you may read; correct the name" in _refusal("hf://owner/nothing")
    hub.commit(NAME, {"README.md": b"of something else"})
    assert f"hf://{NAME}: no manifest.json: it is no export" in _refusal(f"hf://{NAME}")
    assert "it has no revision v9" in _refusal(f"hf://{NAME}@v9")
    hub.commit(NAME, {"config.json": b"", "manifest.json": b"<html>"})
    assert "its manifest.json is none of an export" in _refusal(f"hf://{NAME}")
    for outside in ("../x", "/x", "a/../../x", "a\\b"):
        hub.commit(NAME, {"config.json": b"", "manifest.json": manifest(outside)})
        assert "names files outside the folder" in _refusal(f"hf://{NAME}")
    hub.commit(NAME, {"manifest.json": manifest("lost.bin")})
    assert "no lost.bin: its upload is not complete; push it again" in _refusal(f"hf://{NAME}")
    hub.commit("owner/gated", {**FILES, "manifest.json": manifest(*FILES)})
    hub.gated.add("owner/gated")
    assert "ask at https://huggingface.co/owner/gated" in _refusal("hf://owner/gated")


@pytest.mark.parametrize(
    ("address", "found"),
    [
        ("hf://a/b", Address("a/b")),
        ("hf:/a/b", Address("a/b")),
        ("hf://a/b/", Address("a/b")),
        ("hf://a.x/b-1@refs/pr/1", Address("a.x/b-1", "refs/pr/1")),
    ],
)
def test_an_address_is_parsed(address: str, found: Address) -> None:
    assert on_hub(address) and address_of(address) == found


@pytest.mark.parametrize("address", ["hf://a", "hf://a/b/c", "hf://a/b@", "hf:///b", "hf://a b/c"])
def test_what_is_no_address_is_refused(address: str) -> None:
    assert on_hub(address)
    assert "write hf://OWNER/NAME" in _refusal(address)


_CODE = """
import sys
from refseg_jax.errors import UserError
from refseg_jax.storage.hub import model_folder
try:
    print(model_folder(sys.argv[1]))
except UserError as error:
    print(f"refused: {error}")
"""


def _run(address: str, cache: Path, endpoint: str) -> str:
    """A process of its own, as users start one: the client reads the environment."""
    settings = {"HF_ENDPOINT": endpoint, "HF_HOME": str(cache), "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
    settings["HF_HUB_OFFLINE"] = "0"
    done = subprocess.run(
        [sys.executable, "-c", _CODE, address],
        cwd=ROOT, env={**os.environ, **settings}, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0 and not done.stderr, done.stderr
    return done.stdout.strip()


def test_without_a_network_the_cache_is_used_or_one_line_says_what_to_do(
    hub: Hub, tmp_path: Path
) -> None:
    commit = hub.commit(NAME, {**FILES, "manifest.json": manifest(*FILES)})
    folder = _run(f"hf://{NAME}", tmp_path / "home", hub.address)
    assert Path(folder).name == commit
    away = "http://127.0.0.1:9"
    assert _run(f"hf://{NAME}", tmp_path / "home", away) == folder
    (Path(folder) / "model.safetensors").unlink()
    for home in ("home", "empty"):
        line = _run(f"hf://{NAME}", tmp_path / home, away)
        assert line.startswith(f"refused: hf://{NAME}: ") and "the hub cannot be reached" in line
        assert "https://huggingface.co/owner/model/tree/main" in line
