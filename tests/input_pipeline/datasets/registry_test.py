import re
from pathlib import Path

import pytest

from input_pipeline.datasets import registry
from input_pipeline.datasets.registry import CONVERSIONS, DATASETS, OWN
from input_pipeline.facts.published import all_facts
from input_pipeline.formats.refer.layout import IMAGE_FOLDERS
from tools import build_dataset

ROOT = Path(registry.__file__).resolve().parents[2]

TENS = {"twenty": 20, "thirty": 30, "forty": 40, "fifty": 50, "sixty": 60}


def test_every_dataset_has_code_and_facts():
    assert all_facts().keys() == {*CONVERSIONS, "scenes"}
    assert all_facts().keys() == DATASETS.keys() - set(OWN)


def test_what_needs_files_says_what_they_are():
    for name, facts in all_facts().items():
        assert bool(facts.layout) == ("source_dir" in DATASETS[name].needs), name


def test_the_readme_does_not_say_more_datasets_than_there_are():
    readme = " ".join((ROOT / "README.md").read_text().split()).lower()
    (said,) = re.findall(rf"more than (\d+|{'|'.join(TENS)})\b[^.]*\bbuilt\b", readme)
    # The one that the README's own example builds is not among the others.
    assert 0 < (TENS.get(said) or int(said)) < len(CONVERSIONS) - 1


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
