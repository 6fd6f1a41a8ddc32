"""Builds by Apache Beam's local runner."""

from pathlib import Path

import pytest

from input_pipeline.building import shards
from input_pipeline.building.beam import Runner
from tests.input_pipeline.datasets.refcoco_files import (
    build,
    default_refs,
    ref,
    sentence,
    write_source,
)
from tools import build_dataset

pytestmark = pytest.mark.parity


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture
def source(tmp_path: Path) -> Path:
    refs = [*default_refs(), ref(104, 1, 10, "val", sentence(7, "again"))]
    return write_source(tmp_path / "source", refs)


def test_beam_writes_the_same_bytes(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(shards, "IMAGES_OF_A_SHARD", 1)
    here = build("refcoco/unc", source, tmp_path / "here")
    runner = Runner("DirectRunner")
    assert files(build("refcoco/unc", source, tmp_path / "beam", runner=runner)) == files(here)
    assert len(list(here.glob("*.array_record-*"))) == 3


def test_the_command_line_with_worker_processes(source: Path, tmp_path: Path):
    """Pickled to processes of its own, as any other runner does."""
    here = build("refcoco/unc", source, tmp_path / "here")
    options = "--direct_num_workers=2 --direct_running_mode=multi_processing"
    arguments = ["--dataset=refcoco/unc", f"--source_dir={source}", f"--data_dir={tmp_path / 'b'}"]
    beam = ["--runner=DirectRunner", f"--beam_options={options}"]
    assert build_dataset.main([*arguments, *beam]) == 0
    assert files(tmp_path / "b" / "refcoco" / "unc" / "1.0.0") == files(here)
