"""The wheel: what it installs, and that its command works without the rest of the checkout."""

import configparser
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from refseg_jax.cli.commands import COMMANDS

ROOT = Path(__file__).resolve().parents[1]
#: What a build reads, and what it must leave out.
COPIED = ("pyproject.toml", "requirements.txt", "README.md", "LICENSE", "main.py")
FOLDERS = ("refseg_jax", "input_pipeline", "configs", "tools")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from a copy, because a build writes beside its source; needs no network."""
    pytest.importorskip("setuptools", reason="pip install -e '.[test]' brings setuptools")
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    for name in FOLDERS:
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    (source / "tests").mkdir()
    shutil.copy(ROOT / "tests/__init__.py", source / "tests")
    for name in COPIED:
        shutil.copy(ROOT / name, source)
    flags = ("--no-deps", "--no-build-isolation", "--no-index", "--quiet")
    command = [sys.executable, "-m", "pip", "wheel", *flags, f"--wheel-dir={folder}", str(source)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-2000:]
    (found,) = folder.glob("*.whl")
    return found


def test_the_wheel_has_the_library_alone(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        (described,) = {name.split("/")[0] for name in names} - {"refseg_jax"}
        scripts = configparser.ConfigParser()
        scripts.read_string(archive.read(f"{described}/entry_points.txt").decode())
        top = archive.read(f"{described}/top_level.txt").decode()
        metadata = archive.read(f"{described}/METADATA").decode()
    assert top.split() == ["refseg_jax"]
    assert dict(scripts["console_scripts"]) == {"refseg": "refseg_jax.cli.commands:refseg"}
    # All of it, and what is no Python.
    files = [path for path in (ROOT / "refseg_jax").rglob("*") if path.suffix in (".py", ".toml")]
    assert {path.relative_to(ROOT).as_posix() for path in files} <= names
    assert "refseg_jax/py.typed" in names
    assert f"{described}/licenses/LICENSE" in names
    assert "Description-Content-Type: text/markdown" in metadata
    assert "Requires-Python: >=3.11" in metadata


def test_the_command_works_with_the_wheel_alone(wheel: Path, tmp_path: Path) -> None:
    """Unpacked as pip does it, called from another folder; the checkout cannot be imported."""
    site = tmp_path / "site"
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(site)
    code = f"""
import sys
sys.path[:] = [{str(site)!r}, *(p for p in sys.path if p not in ("", {str(ROOT)!r}))]
sys.meta_path[:] = [f for f in sys.meta_path if "Editable" not in getattr(f, "__name__", "")]
for name in ("tools", "configs", "tests", "input_pipeline", "main"):
    sys.modules[name] = None
import refseg_jax
assert refseg_jax.__file__.startswith({str(site)!r}), refseg_jax.__file__
from refseg_jax import Predictor
from refseg_jax.cli.commands import COMMANDS, run
assert run(["--version"]) == 0
for name in COMMANDS:
    try:
        run([name, "--help"])
    except SystemExit as left:
        print("left", name, left.code)
print("code", run(["predict", "--checkpoint=nothing", "--image=a.jpg", "--text=b", "--output_dir=c"]))
"""
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    lines = done.stdout.splitlines()
    assert [line for line in lines if line.startswith("left ")] == [f"left {n} 0" for n in COMMANDS]
    assert [line for line in lines if line.startswith("usage: ")] == [
        line for line in lines if line.startswith("usage: refseg ")
    ]
    assert lines[-1] == "code 1"
    (error,) = done.stderr.splitlines()
    assert error.startswith("error: ") and not (tmp_path / "c").exists()
