"""The pictures of the README and the documentation can be drawn again."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from refseg_jax.images.drawing import PREDICTED_COLOUR, dimmed
from tools import docs_pictures


def test_the_readmes_row_shows_what_is_segmented(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(docs_pictures, "_SIDE", 96)
    asked: list[tuple[np.ndarray, str]] = []

    def segment(image: np.ndarray, words: str) -> np.ndarray:
        asked.append((image, words))
        mask = np.zeros(image.shape[:2], bool)
        # The second expression is answered by nothing.
        mask[30:60, 30:60] = len(asked) != 2
        return mask

    row = docs_pictures.predicted_row(segment)
    assert [
        word in words for (_, word), (_, words) in zip(docs_pictures.WANTED, asked, strict=True)
    ]
    views = [row[16:112, left : left + 96] for left in range(16, row.shape[1] - 16, 112)]
    assert len(views) == len(asked) == 4
    for number, (view, (image, _)) in enumerate(zip(views, asked, strict=True)):
        if number == 1:
            np.testing.assert_array_equal(view, dimmed(image))
            continue
        np.testing.assert_array_equal(view[30:60, 30:60], image[30:60, 30:60])
        assert (np.abs(view.astype(int) - PREDICTED_COLOUR).max(-1) < 12).sum() > 50


def test_without_a_run_the_scenes_are_drawn(tmp_path: Path) -> None:
    assert docs_pictures.main([f"--output_dir={tmp_path / 'images'}"]) == 0
    (path,) = (tmp_path / "images").iterdir()
    assert path.name == "scenes.png"
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
