"""`tools.predict`: pairs of a file, what is written, and large pictures."""

import json
import os
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_mask

from refseg_jax.cli import predict
from refseg_jax.prediction.predictor import Predictor
from refseg_jax.prediction.tiles import Tiles
from tests.refseg_jax.training.tiny_run import (
    WITH_PRESENCE,
    presence_params,
    save_unires,
    unires_run_config,
)

TEXTS = ("the red box", "both boxes")
SIZES = {"a.png": (20, 30), "b.jpg": (33, 17)}

pytestmark = pytest.mark.usefixtures("one_compilation")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    save_unires(folder, presence_params(-0.4), config=unires_run_config(0.5, WITH_PRESENCE))
    return folder


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """Two images, and a file that is none and does not look like one."""
    folder = tmp_path / "images"
    folder.mkdir()
    for number, (name, (height, width)) in enumerate(SIZES.items()):
        rng = np.random.default_rng(number)
        coarse = rng.integers(0, 256, (4, 4, 3), np.uint8)
        Image.fromarray(coarse).resize((width, height)).save(folder / name)
    (folder / "notes.txt").write_text("no image")
    return folder


def _lines(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "predictions.jsonl").read_text().splitlines()]


def _read(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        assert image.format == "PNG"
        return np.asarray(image)


def test_pairs_of_a_file_are_asked_and_no_others(
    run: Path, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pairs = [("b.jpg", "the lid"), ("a.png", "the lid"), ("b.jpg", "purple"), ("b.jpg", "the lid")]
    file = tmp_path / "pairs.jsonl"
    file.write_text("\n".join(json.dumps({"image": i, "expression": t, "id": 1}) for i, t in pairs))
    flags = [f"--checkpoint={run}", f"--image={images}", f"--expressions={file}"]
    assert predict.main([*flags, f"--output_dir={tmp_path / 'out'}"]) == 0
    assert [(line["image"], line["expression"]) for line in _lines(tmp_path / "out")] == [
        *(("a.png", "the lid"), ("b.jpg", "the lid"), ("b.jpg", "purple"))
    ]
    shared = [*flags, "--text=purple", f"--output_dir={tmp_path / 'both'}"]
    assert predict.main(shared) == 0
    assert [(line["id"], line["expression"]) for line in _lines(tmp_path / "both")] == [
        *(("a.png#0", "purple"), ("a.png#1", "the lid")),
        *(("b.jpg#0", "purple"), ("b.jpg#1", "the lid")),
    ]
    capsys.readouterr()
    for content, words in (
        ('{"image": "c.png", "expression": "x"}', "no picture 'c.png' in --image"),
        ('{"image": "a.png"}', 'pairs.jsonl:1: not {"image": NAME, "expression": TEXT}'),
        ('{"image": "a.png", "expression": " "}', "pairs.jsonl:1: 'expression' has no word"),
        ("", "pairs.jsonl: has no line"),
    ):
        file.write_text(content)
        assert predict.main([*flags, f"--output_dir={tmp_path / 'bad'}"]) == 1
        (line,) = [x for x in capsys.readouterr().err.splitlines() if x.startswith("error: ")]
        assert words in line and not (tmp_path / "bad").exists()


def test_what_is_written_is_chosen(
    run: Path, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = [f"--checkpoint={run}", f"--image={images}", *(f"--text={text}" for text in TEXTS)]
    out = tmp_path / "out"
    assert predict.main([*flags, f"--output_dir={out}", "--format=coco", "--json"]) == 0
    told = capsys.readouterr()
    report = json.loads(told.out)
    assert (report["images"], report["unusable"], report["resumed"]) == (2, 0, 0)
    assert [row["expression"] for row in report["matches"]] == list(TEXTS)
    assert {path.name for path in out.iterdir()} == {
        *("predictions.json", "predictions.jsonl", "matches.jsonl", "coco.json")
    }
    coco = json.loads((out / "coco.json").read_text())
    assert [(image["file_name"], image["height"], image["width"]) for image in coco["images"]] == [
        (name, *size) for name, size in SIZES.items()
    ]
    assert [category["name"] for category in coco["categories"]] == list(TEXTS)
    there = [line for line in _lines(out) if line["present"] and line["score"]]
    assert len(there) == len(coco["annotations"]) > 0
    for line, found in zip(there, coco["annotations"], strict=True):
        mask = coco_mask.decode(found["segmentation"])
        assert found["segmentation"] == line["segmentation"] and found["score"] == line["score"]
        assert found["area"] == mask.sum() and len(found["bbox"]) == 4
    assert predict.main([*flags, f"--output_dir={out}", "--format=mask"]) == 1
    assert "--format=mask: give some of masks, overlays, jsonl, coco" in capsys.readouterr().err
    assert (out / "coco.json").exists()
    # The same again has nothing to predict, and writes what is about all pictures.
    before = (out / "coco.json").read_bytes()
    (out / "coco.json").unlink()
    assert predict.main([*flags, f"--output_dir={out}", "--format=coco"]) == 0
    assert "images: 2 (2 of an earlier call)" in capsys.readouterr().out
    assert (out / "coco.json").read_bytes() == before
    os.utime(images / "b.jpg", (time.time() + 60, time.time() + 60))
    assert predict.main([*flags, f"--output_dir={out}", "--format=coco"]) == 1
    assert "b.jpg: replaced since an earlier call began" in capsys.readouterr().err
    assert len(_lines(out)) == 4


def test_large_pictures_are_looked_at_in_tiles(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (40, 90, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "wide.png")
    flags = [f"--checkpoint={run}", f"--image={tmp_path / 'wide.png'}", "--text=the red box"]
    for more, tiles in (([], None), (["--tile=48", "--overlap=8"], Tiles(48, 8))):
        out = tmp_path / f"out{len(more)}"
        assert predict.main([*flags, f"--output_dir={out}", *more]) == 0
        (own,) = Predictor.from_checkpoint(run).predict(pixels, ["the red box"], tiles=tiles)
        np.testing.assert_array_equal(_read(out / "wide.png-0-mask.png") > 0, own.mask)
    capsys.readouterr()
    for more, words in (
        (["--overlap=8"], "--overlap is for --tile"),
        (["--tile=48", "--overlap=48"], "overlap=48: give 0 or more"),
        (["--max_pixels=3599"], "90 x 40 pixels are more than the allowed 3599"),
    ):
        assert predict.main([*flags, f"--output_dir={tmp_path / 'bad'}", *more]) == 1
        assert words in capsys.readouterr().err
    assert predict.main([*flags, f"--output_dir={tmp_path / 'last'}", "--max_pixels=3600"]) == 0
