from pathlib import Path

import pytest

from input_pipeline.datasets.registry import CONVERSIONS
from input_pipeline.formats.refer.layout import IMAGE_FOLDERS
from tools import build_dataset

ROOT = Path(__file__).resolve().parents[2]


def test_the_readme_does_not_say_more_datasets_than_there_are():
    assert "refcoco/unc" in CONVERSIONS
    assert "\nMore than forty others are built alike," in (ROOT / "README.md").read_text()
    assert len(CONVERSIONS) - 1 > 40


def test_docs_and_help_name_every_folder_that_images_of_coco_may_lie_in(
    capsys: pytest.CaptureFixture[str],
):
    with pytest.raises(SystemExit):
        build_dataset.main(["--help"])
    told = capsys.readouterr().out
    docs = (ROOT / "docs" / "datasets.md").read_text()
    for folder in IMAGE_FOLDERS:
        assert f"`{folder}`" in told
        assert f"`{folder}`" in docs
