"""The house: which room may use which, how many rooms there are, and how large a file may be."""

import ast
import itertools
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

_BASE = "batch errors naming sharding"
_LIBRARY = f"{_BASE} storage unpickling images text"

#: Room of `refseg_jax` -> the other rooms that it may use.
LIBRARY = {
    "batch": "",
    "errors": "",
    "naming": "",
    "sharding": "layers",
    "storage": "errors",
    "unpickling": "errors",
    "text": "errors storage",
    "images": "batch errors naming",
    "layers": "images",
    "encoders": "images layers naming",
    "decoders": "images layers naming",
    "models": "batch decoders encoders images layers naming",
    "checkpoints": "errors images naming sharding storage",
    "weights": "checkpoints encoders errors images layers models naming unpickling",
    "evaluation": f"{_BASE} images models",
    "reporting": "batch errors evaluation images models",
    "training": f"{_BASE} checkpoints evaluation layers models reporting",
    "exports": f"{_BASE} checkpoints evaluation images layers models reporting storage text weights",
    "prediction": f"{_BASE} checkpoints evaluation exports images models storage text",
    "cli": f"{_LIBRARY} checkpoints evaluation exports models prediction reporting weights",
}
#: Room of `input_pipeline` -> the other rooms of it that it may use.
PIPELINE = {
    "facts": "",
    "prompts": "",
    "schema": "",
    "workers": "",
    "building": "facts schema workers",
    "formats": "building prompts schema",
    "datasets": "building facts formats prompts schema",
    "sources": "facts schema",
    "transforms": "prompts schema",
    "checks": "schema",
    "rows": "sources",
    "oracle": "schema sources",
    "leakage": "schema sources",
    "settings": "rows",
    "making": "prompts rows schema settings sources transforms",
    "labels": "making rows schema settings sources transforms",
    "pipeline": "labels making rows settings sources transforms workers",
    "mixtures": "leakage pipeline settings workers",
    "experiment_data": "labels making oracle pipeline settings sources",
}
#: What `input_pipeline` may use of the library.
SHARED = "batch text images errors naming storage unpickling"
#: Package or file at the top -> the other ones that it may use.
TOP = {
    "refseg_jax": "",
    "input_pipeline": "refseg_jax",
    "configs": "refseg_jax",
    "tools": "configs input_pipeline refseg_jax",
    "main": "input_pipeline refseg_jax",
}
#: What `refseg_jax.models.MODELS` has.
SYSTEMS = ("grser", "rela", "unilseg", "unires")
MOST_ROOMS = 20
MOST_LINES = 400


def _modules() -> dict[str, Path]:
    files = [ROOT / "main.py"]
    for package in TOP:
        files += (ROOT / package).rglob("*.py")
    named = {}
    for file in files:
        parts = file.relative_to(ROOT).with_suffix("").parts
        named[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = file
    return named


MODULES = _modules()


def _imports(module: str) -> Iterator[str]:
    """The modules of this project that a module imports, anywhere in it."""
    for node in ast.walk(ast.parse(MODULES[module].read_text())):
        if isinstance(node, ast.ImportFrom):
            assert node.module and not node.level, f"{module}: a relative import"
            for alias in node.names:
                name = f"{node.module}.{alias.name}"
                yield name if name in MODULES else node.module
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)


GRAPH = {
    module: {name for name in _imports(module) if name in MODULES and name != module}
    for module in MODULES
}


def _arrows(depth: int) -> Iterator[tuple[str, str, str]]:
    """(room, room that it uses, the two modules), for rooms that are named by `depth` parts."""
    for module, used in GRAPH.items():
        for name in used:
            rooms = [".".join(m.split(".")[:depth]) for m in (module, name)]
            if rooms[0] != rooms[1]:
                yield rooms[0], rooms[1], f"{module} -> {name}"


def _refused(package: str, allowed: Mapping[str, str]) -> list[str]:
    """Arrows inside a package that its table does not have."""
    refused = []
    for room, used, arrow in _arrows(2):
        (top, *one), (other_top, *other) = room.split("."), used.split(".")
        # The package's own `__init__` is its face: it may name any room. No room may use it, because
        # that would be a way around the table.
        if top != package or other_top != package or not one:
            continue
        if not other or other[0] not in allowed[one[0]].split():
            refused.append(arrow)
    return refused


def test_packages_use_only_what_the_table_allows() -> None:
    arrows = [arrow for one, used, arrow in _arrows(1) if used not in TOP[one].split()]
    assert not arrows
    assert not [m for m in MODULES for name in _imports(m) if name.split(".")[0] == "tests"]
    assert not _refused("refseg_jax", LIBRARY)
    assert not _refused("input_pipeline", PIPELINE)


def test_the_pipeline_uses_only_the_shared_rooms_of_the_library() -> None:
    shared = {f"refseg_jax.{room}" for room in SHARED.split()}
    assert not [
        arrow
        for room, used, arrow in _arrows(2)
        if room.startswith("input_pipeline")
        and used.startswith("refseg_jax")
        and used not in shared
    ]


@pytest.mark.parametrize(
    ("package", "table"), [("refseg_jax", LIBRARY), ("input_pipeline", PIPELINE)]
)
def test_the_tables_name_the_rooms_that_are_there(package: str, table: Mapping[str, str]) -> None:
    rooms = {module.split(".")[1] for module in MODULES if module.startswith(f"{package}.")}
    assert rooms == set(table)
    named = set(itertools.chain.from_iterable(used.split() for used in table.values()))
    assert named <= rooms


@pytest.mark.parametrize("table", [LIBRARY, PIPELINE, TOP])
def test_no_table_allows_a_circle(table: Mapping[str, str]) -> None:
    left = {room: set(used.split()) for room, used in table.items()}
    while ready := {room for room, used in left.items() if not used & left.keys()}:
        left = {room: used for room, used in left.items() if room not in ready}
    assert not left


def test_no_two_modules_import_each_other_in_a_circle() -> None:
    # What is imported inside a function counts as well.
    left = {module: set(used) for module, used in GRAPH.items()}
    while ready := {module for module, used in left.items() if not used & left.keys()}:
        left = {module: used for module, used in left.items() if module not in ready}
    assert not left


def _words(module: str) -> Iterator[str]:
    """Identifiers and texts of a module's code; a text with a space is prose."""
    for node in ast.walk(ast.parse(MODULES[module].read_text())):
        if isinstance(node, ast.Constant):
            if isinstance(node.value, str) and " " not in node.value:
                yield node.value
        else:
            fields = (getattr(node, field, None) for field in ("id", "attr", "arg", "name"))
            yield from (field for field in fields if isinstance(field, str))


def test_what_all_systems_share_names_none_of_them() -> None:
    """Docstrings may: facts have sources."""
    named = re.compile(rf"(?i)(?<![a-z])({'|'.join(SYSTEMS)})(?![a-z])")
    shared = re.compile(
        r"refseg_jax\.(training|evaluation|reporting|checkpoints)\b|input_pipeline\b|main$"
    )
    found = [
        f"{module}: {word}"
        for module in MODULES
        if shared.match(module)
        for word in _words(module)
        if named.search(word)
    ]
    assert not found
    # The test itself finds them where they belong.
    assert set(SYSTEMS) <= set(_words("refseg_jax.models"))


def test_no_package_has_too_many_rooms() -> None:
    folders = {path.parent for path in MODULES.values() if path.name != "main.py"}
    rooms = {
        folder: {
            p.name for p in folder.iterdir() if p.suffix == ".py" or (p / "__init__.py").exists()
        }
        for folder in folders
    }
    crowded = {str(f.relative_to(ROOT)): len(r - {"__init__.py"}) for f, r in rooms.items()}
    assert {name: count for name, count in crowded.items() if count > MOST_ROOMS} == {}


def test_no_file_is_too_long() -> None:
    files = [*MODULES.values(), *(ROOT / "tests").rglob("*.py")]
    lines = {str(f.relative_to(ROOT)): len(f.read_text().splitlines()) for f in files}
    assert {name: count for name, count in lines.items() if count > MOST_LINES} == {}
    assert lines["main.py"] <= 250


def test_tests_mirror_the_packages() -> None:
    own = {"golden", "parity", "benchmarks", "docs", "fuzz", "odd_files"}
    folders = {p.parent.relative_to(ROOT / "tests") for p in (ROOT / "tests").rglob("*_test.py")}
    assert {
        str(folder)
        for folder in folders
        if folder.parts and folder.parts[0] not in own and not (ROOT / folder).is_dir()
    } == set()


def test_the_public_face_is_loaded_when_it_is_used() -> None:
    import refseg_jax

    code = "import sys, refseg_jax; print(*(m for m in sys.modules if m.startswith(('jax', 'refseg'))))"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == ["refseg_jax"]
    for name in refseg_jax.__all__:
        assert getattr(refseg_jax, name) is not None
    assert set(refseg_jax.__all__) <= set(dir(refseg_jax))
    with pytest.raises(AttributeError, match="Predictorr"):
        _ = refseg_jax.Predictorr  # pyright: ignore[reportAttributeAccessIssue]


def test_the_import_of_a_predictor_computes_nothing() -> None:
    """On a platform that is not there, the first array would be an error."""
    code = """
import os
os.environ["JAX_PLATFORMS"] = "nothing"
from refseg_jax import Predictor
import jax.numpy as jnp
try:
    jnp.zeros(1)
except RuntimeError:
    print("computed now")
"""
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout == "computed now\n"
