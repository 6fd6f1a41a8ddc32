"""Files that a tool or a run writes are complete or not there, and leave no half of them."""

import errno
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from input_pipeline.leakage import write_report
from refseg_jax.evaluation.picture import Picture
from refseg_jax.evaluation.predictions import jsonl_writer
from refseg_jax.reporting.pictures import page
from refseg_jax.reporting.tables import write_summary
from tools.doctor.page import write_page


def _lines(path: Path) -> None:
    with jsonl_writer(path) as write:
        write({"id": "1"})


def _page(path: Path) -> None:
    image, mask = np.zeros((8, 8, 3), np.uint8), np.ones((8, 8), bool)
    affine = np.eye(2, 3, dtype=np.float32)
    page([Picture(image, affine, "the box", "object", mask, mask, 1.0)], path)


WRITERS: dict[str, Callable[[Path], None]] = {
    "predictions": _lines,
    "summary": lambda path: write_summary(path, {"mIoU": 0.5}),
    "leakage": lambda path: write_report(path, {}),
    "pictures": _page,
    "doctor": lambda path: write_page(path, "title", [], {}, {}, []),
}


@pytest.mark.parametrize("name", WRITERS)
def test_an_error_leaves_the_earlier_file_alone(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "out.png"
    WRITERS[name](path)
    sound = path.read_bytes()
    assert [entry.name for entry in tmp_path.iterdir()] == ["out.png"]

    def full(self: Path, target: Path) -> Path:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(OSError, match="No space"):
        WRITERS[name](path)
    assert path.read_bytes() == sound
    assert [entry.name for entry in tmp_path.iterdir()] == ["out.png"]
