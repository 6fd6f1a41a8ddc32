"""Worker processes start faster, and need less memory, without TFDS."""

import pickle
import subprocess
import sys
from pathlib import Path

import pytest

from input_pipeline.building import own
from input_pipeline.building.conversion import Outcome, made
from input_pipeline.building.published import builder_of
from input_pipeline.datasets.registry import CONVERSIONS
from input_pipeline.datasets.scenes.scenes import Scenes
from input_pipeline.formats import jsonl_files, jsonl_records

ROOT = Path(own.__file__).resolve().parents[2]


def loaded(code: str, stored: bytes) -> str:
    """The modules of TFDS and TensorFlow that a fresh process has after it ran `code`."""
    end = "print([m for m in sys.modules if m.startswith('tensorflow')])"
    done = subprocess.run(
        [
            sys.executable,
            "-c",
            f"import pickle, sys\nstored = sys.stdin.buffer.read()\n{code}\n{end}",
        ],
        cwd=ROOT,
        input=stored,
        capture_output=True,
        check=True,
    )
    return done.stdout.decode().strip()


@pytest.mark.parametrize(
    "module", ["input_pipeline.datasets.registry", "tools.build_dataset", "tools.doctor"]
)
def test_what_a_worker_imports_again_does_not_import_tfds(module: str):
    assert loaded(f"import {module}", b"") == "[]"


def test_what_makes_records_does_not_import_tfds(tmp_path: Path):
    conversion = CONVERSIONS["refcoco/unc_cris"]
    published = builder_of(conversion, data_dir=tmp_path)._maker()
    scenes = Scenes(data_dir=tmp_path)._maker()
    assert isinstance(scenes(("val", 0)), Outcome)
    makers = (published, scenes, made, jsonl_records.make_record, jsonl_files.FolderImage)
    assert loaded("pickle.loads(stored)", pickle.dumps(makers)) == "[]"
