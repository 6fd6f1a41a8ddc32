"""Builds and the doctor count the texts that are cut, by CLIP's tokenizer or as a config reads them."""

import json
from pathlib import Path

import pytest

from input_pipeline.building.own import build_records
from refseg_jax.errors import UserError
from tests.input_pipeline.tiny_dataset import make_record
from tests.odd_files.made import PICTURE, POLYGON
from tests.odd_files.ways import _png, run
from tools import build_dataset, doctor
from tools.text_settings import TextSettings, read_settings

CONFIG = """
from configs.common import base_config, member


def get_config(preset="small"):
    config = base_config()
    config.data.context_length = {"small": 9, "large": 30}[preset]
    config.mixture.one = member(dataset="mine", context_length=5)
    config.mixture.two = member(dataset="mine", context_length=11)
    config.mixture.three = member(dataset="other")
    return config
"""
LONG = (
    "the box that stands before the wall to the left of the middle of this picture, not the other"
)


@pytest.fixture
def config(tmp_path: Path) -> str:
    path = tmp_path / "config.py"
    path.write_text(CONFIG)
    return str(path)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    folder = tmp_path / "source"
    folder.mkdir()
    (folder / "a.png").write_bytes(_png(PICTURE))
    texts = ["the box", LONG, "the box before the wall", f"{LONG} one"]
    lines = [{"image": "a.png", "expression": text, "segmentation": POLYGON} for text in texts]
    (folder / "train.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


def test_settings_are_those_of_the_config(config: str):
    assert read_settings("", "mine") == TextSettings("clip", (17, 20, 77))
    assert read_settings(config, "mine") == TextSettings("clip", (5, 11))
    assert read_settings(config, "other") == TextSettings("clip", (9,))
    assert read_settings(f"{config}:large", "scenes") == TextSettings("clip", (30,))
    assert read_settings("configs/scenes_grser.py", "scenes").prefix == 1


@pytest.mark.parametrize("text", ["missing.py", "made.py", "made.py:huge"])
def test_a_config_that_cannot_be_loaded_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str
):
    monkeypatch.chdir(tmp_path)
    Path("made.py").write_text(CONFIG if ":" in text else "def get_config():\n    return 1 / 0\n")
    with pytest.raises(
        UserError, match=rf"^--config={text}: \w+Error: .*give a config of main\.py"
    ):
        read_settings(text, "mine")


def test_a_build_counts_the_texts_that_are_cut(tmp_path: Path, source: Path, config: str):
    flags = ("--dataset=jsonl", "--name=mine", f"--source_dir={source}", f"--data_dir={tmp_path}/d")
    code, said = run(build_dataset.main, *flags)
    assert code == 0
    assert (
        "train: of 4 texts, 2 take more than 17 tokens of clip, 2 more than 20, none more than 77; a "
        f"model of that context_length does not read their last words; the longest takes 23: '{LONG} "
        "one'" in said.splitlines()
    )
    # Nothing of it is in the dataset, which is the same wherever it is built.
    assert not list((tmp_path / "d").rglob("*tokens*"))
    assert "tokens" not in run(build_dataset.main, *flags)[1]
    code, said = run(build_dataset.main, *flags, f"--config={config}")
    assert code == 0
    assert "train: of 4 texts, 3 take more than 5 tokens of clip, 2 more than 11; a model" in said


def test_the_doctor_names_them(tmp_path: Path, source: Path, config: str):
    flags = ("--dataset=jsonl", f"--source_dir={source}", f"--page={tmp_path}/p.html")
    code, said = run(doctor.main, *flags, "--num_workers=1")
    assert code == 0
    assert (
        "train: of 4 texts, 2 take more than 17 tokens of clip, 2 more than 20, none more" in said
    )
    assert "2  expression of more than 17 tokens, whose last words are cut" in said
    assert f"a.png: '{LONG}' (train-2) takes 22" in said
    code, said = run(doctor.main, *flags, "--num_workers=1", f"--config={config}")
    assert "2  expression of more than 9 tokens, whose last words are cut" in said


def test_a_text_whose_anti_expression_alone_is_cut_counts(
    tmp_path: Path, source: Path, config: str
):
    """Of 22 and 23 tokens, where 22 are read."""
    file = Path(config)
    file.write_text(
        file.read_text().replace("    return", "    config.data.anti_prefix = 'word'\n    return")
    )
    file.write_text(file.read_text().replace('"large": 30', '"large": 22'))
    flags = ("--dataset=jsonl", f"--source_dir={source}", f"--config={config}:large")
    _, said = run(doctor.main, *flags, f"--page={tmp_path}/p.html", "--num_workers=1")
    assert (
        "2  expression of more than 22 tokens with the prefix of its anti-expression, whose" in said
    )
    assert f"a.png: '{LONG}' (train-2) takes 23" in said
    _, said = run(build_dataset.main, *flags, "--name=mixed", f"--data_dir={tmp_path}/d")
    assert (
        "train: of 4 texts with the prefix of anti-expressions, 2 take more than 22 tokens of clip; a "
        f"model of that context_length does not read their last words; the longest takes 24: '{LONG} "
        "one'" in said.splitlines()
    )


def test_short_texts_are_not_worth_a_line(tmp_path: Path):
    items = {"train": [0, 1]}
    build_records("mine", items, lambda n: make_record("train", n, (32, 32)), data_dir=tmp_path)
    flags = ("--dataset=mine", f"--data_dir={tmp_path}", f"--page={tmp_path}/p.html")
    _, said = run(doctor.main, *flags, "--num_workers=1")
    assert "tokens" not in said
