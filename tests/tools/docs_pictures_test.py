"""The pictures of the README and the documentation can be drawn again."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from input_pipeline.datasets.scenes.config import ScenesConfig
from input_pipeline.datasets.scenes.records import make_record
from refseg_jax.images.drawing import PREDICTED_COLOUR, draw_regions
from tools import docs_pictures


def test_the_readmes_row_shows_the_best_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(docs_pictures, "_SIDE", 96)
    monkeypatch.setattr(docs_pictures, "_SCENES", 40)
    records = iter([make_record(ScenesConfig(image_size=96), "test", n) for n in range(40)])

    def segment(image: np.ndarray, words: Sequence[str]) -> list[np.ndarray]:
        """Right of every second scene; of the others nothing."""
        record, number = next(records), len(seen)
        seen.append(image)
        meant = {e.text: record.mask(e.targets).astype(bool) for e in record.expressions}
        return [meant[text] if number % 2 else np.zeros((96, 96), bool) for text in words]

    seen: list[np.ndarray] = []
    answers = docs_pictures.best_answers(segment, docs_pictures.WANTED)
    assert [answer.iou for answer in answers] == [1.0] * 4
    for answer, (granularity, word) in zip(answers, docs_pictures.WANTED, strict=True):
        assert answer.expression.granularity == granularity
        assert word in answer.expression.text
    assert len({answer.image.tobytes() for answer in answers}) == 4

    monkeypatch.setattr(docs_pictures, "best_answers", lambda *_: answers)
    row = docs_pictures.predicted_row(segment)
    for number, answer in enumerate(answers):
        view = row[16:112, 16 + 112 * number :][:, :96]
        expected = draw_regions(answer.image, [answer.mask], [PREDICTED_COLOUR])
        np.testing.assert_array_equal(view, expected)


def test_without_a_run_the_scenes_are_drawn(tmp_path: Path) -> None:
    assert docs_pictures.main([f"--output_dir={tmp_path / 'images'}"]) == 0
    groups, path = sorted((tmp_path / "images").iterdir())
    assert (groups.name, path.name) == ("groups.png", "scenes.png")
    assert groups.stat().st_size < 400 * 1024
    assert path.stat().st_size < 400 * 1024
    with Image.open(path) as image:
        # Four columns of 224 pixels with gaps of 12, and room for captions.
        assert image.width == 4 * (224 + 12) + 12
        assert image.height > 3 * (224 + 12) + 12


def test_a_run_without_pictures_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(docs_pictures, "choose", lambda config: [])
    monkeypatch.setattr(
        docs_pictures, "contact_sheet", lambda choices: np.zeros((20, 20, 3), np.uint8)
    )
    assert docs_pictures.main([f"--run={tmp_path}", f"--output_dir={tmp_path / 'images'}"]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: {tmp_path / 'pictures-test.png'}: not there")
