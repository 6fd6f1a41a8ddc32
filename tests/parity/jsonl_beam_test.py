"""One's own images, built by Apache Beam's local runner."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from input_pipeline.building import shards
from input_pipeline.building.beam import Runner
from input_pipeline.datasets import jsonl

pytestmark = pytest.mark.parity


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_beam_writes_the_same_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(shards, "IMAGES_OF_A_SHARD", 3)
    source = tmp_path / "source"
    source.mkdir()
    Image.fromarray(np.zeros((12, 20, 3), np.uint8)).save(source / "0.png")
    region = {"expression": "it", "segmentation": "box"}
    lines = [{"image": f"{n}.png", "box": [1, 1, 4, n + 1], **region} for n in range(8)]
    for number in range(1, 8):
        shutil.copy(source / "0.png", source / f"{number}.png")
    for part in (0, 1):
        text = "\n".join(map(json.dumps, lines[part::2]))
        (source / f"train-{part}-of-2.jsonl").write_text(text)
    here = jsonl.build("mine", source, data_dir=tmp_path / "here")
    runner = Runner("DirectRunner")
    beam = jsonl.build("mine", source, data_dir=tmp_path / "beam", runner=runner)
    assert files(beam) == files(here)
    assert len(list(here.glob("*.array_record-*"))) == 3
