from pathlib import Path

from input_pipeline.datasets.registry import CONVERSIONS

ROOT = Path(__file__).resolve().parents[2]


def test_the_readme_does_not_say_more_datasets_than_there_are():
    assert "refcoco/unc" in CONVERSIONS
    assert "\nMore than forty others are built alike," in (ROOT / "README.md").read_text()
    assert len(CONVERSIONS) - 1 > 40
