"""`tools.predict --group`: which pictures of a folder, and where; what cannot be asked together."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_mask

from refseg_jax.cli import groups, predict
from refseg_jax.models.graphs import forward_of
from refseg_jax.prediction.pictures import read_picture
from refseg_jax.prediction.predictor import Predictor
from refseg_jax.reporting.pictures import heat_panel
from tests.refseg_jax.exports.folders import compiling_in_a_hurry
from tests.refseg_jax.prediction.grouped import grouped_config, grouped_params
from tests.refseg_jax.training.tiny_run import UNIRES, random_params, save_unires, unires_run_config

TEXTS = ("the red box", "both boxes")
#: Rows of three: the last has `d.png` and two of the row before.
NAMES = ("a.png", "b.jpg", "c.png", "d.png")

pytestmark = pytest.mark.usefixtures("one_compilation")


@pytest.fixture(scope="module", autouse=True)
def in_a_hurry() -> Iterator[None]:
    with compiling_in_a_hurry():
        yield


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    save_unires(folder, grouped_params(), config=grouped_config())
    return folder


@pytest.fixture
def images(tmp_path: Path) -> Path:
    folder = tmp_path / "images"
    folder.mkdir()
    for number, name in enumerate(NAMES):
        coarse = np.random.default_rng(number).integers(0, 256, (4, 4, 3), np.uint8)
        Image.fromarray(coarse).resize((30 + number, 33 - number)).save(folder / name)
    return folder


def _call(run: Path, images: Path, out: Path, *more: str) -> int:
    flags = [f"--checkpoint={run}", f"--image={images}", f"--output_dir={out}", "--group"]
    return predict.main([*flags, *(f"--text={text}" for text in TEXTS), *more])


def _lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def _pixels(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image)


def test_a_folder_is_answered_as_the_predictor_answers_its_group(
    run: Path, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert _call(run, images, out) == 0
    predictor = Predictor.from_checkpoint(str(run))
    paths = [images / name for name in NAMES]
    expected = predictor.predict_group(paths, TEXTS)
    matches = _lines(out / "matches.jsonl")
    by_pair = {(m["image"], m["expression"]): m for m in matches}
    assert len(by_pair) == len(matches) == len(NAMES) * len(TEXTS)
    lines = _lines(out / "predictions.jsonl")
    assert [line["id"] for line in lines] == [f"{name}#{k}" for name in NAMES for k in range(2)]
    said = set()
    for number, line in enumerate(lines):
        one = expected[number // 2][number % 2]
        match = by_pair[line["image"], line["expression"]]
        assert match["present"] is line["present"] is one.present
        assert (match["score"], match["margin"]) == (line["score"], one.margin)
        assert match["score"] == pytest.approx(one.score, abs=1e-6)
        assert (match["margin"] > 0) == one.present
        mask = _pixels(out / match["mask"])
        np.testing.assert_array_equal(mask, one.mask * np.uint8(255))
        assert match["pixels"] == one.mask.sum()
        np.testing.assert_array_equal(coco_mask.decode(line["segmentation"]), one.uncleared)
        said.add(one.present)
    assert said == {True, False}
    assert {path.name for path in out.iterdir()} == {
        *("predictions.jsonl", "matches.jsonl", "sheet-0.png", "sheet-1.png"),
        *(f"{name}-{k}-mask.png" for name in NAMES for k in range(2)),
    }
    printed = capsys.readouterr().out.splitlines()
    for text in TEXTS:
        there = [m for m in matches if m["expression"] == text and m["pixels"]]
        told = f"in {len(there)} of 4 images" if there else "no match"
        place = printed.index(f"{text}: {told}")
        shown = [f"  {m['image']}: score {m['score']:.2f}, margin {m['margin']:.2f}" for m in there]
        assert printed[place + 1 : place + 1 + len(there)] == shown


def test_lines_and_sheets_have_the_likeliest_first(
    run: Path, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[list[str]] = []
    sheet = groups._sheet

    def drawing(text: str, matches: Any, *others: Any) -> np.ndarray:
        drawn.append([match["image"] for match in matches])
        return sheet(text, matches, *others)

    monkeypatch.setattr(groups, "_sheet", drawing)
    assert _call(run, images, tmp_path / "out") == 0
    matches = _lines(tmp_path / "out" / "matches.jsonl")
    for k, text in enumerate(TEXTS):
        own = [match for match in matches if match["expression"] == text]
        assert own == matches[4 * k : 4 * k + 4]
        assert [match["image"] for match in own] == drawn[k]
        keys = [(not match["pixels"], -match["margin"]) for match in own]
        assert keys == sorted(keys)


def test_a_sheet_tells_what_is_empty_and_what_it_leaves_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[str] = []
    captioned = groups.captioned

    def writing(picture: np.ndarray, words: str, notes: Any, **sizes: Any) -> np.ndarray:
        told.append(f"{words}: {', '.join(notes)}")
        return captioned(picture, words, notes, **sizes)

    monkeypatch.setattr(groups, "captioned", writing)
    monkeypatch.setattr(groups, "_MOST", 3)
    matches, places = [], {}
    for number, (present, pixels) in enumerate([(True, 5), (True, 0), (False, 0), (False, 0)]):
        name = f"{number}.png"
        places[name] = tmp_path / name
        Image.new("RGB", (8, 6), (0, 90, 0)).save(places[name])
        mask = np.zeros((6, 8), np.uint8)
        mask.flat[:pixels] = 255
        Image.fromarray(mask).save(tmp_path / f"{name}-0-mask.png")
        match = {"image": name, "present": present, "pixels": pixels, "score": 0.5}
        matches.append({**match, "margin": 0.25, "mask": f"{name}-0-mask.png"})
    sheet = groups._sheet("a box", matches, places, tmp_path, read_picture)
    assert told == [
        "0.png: score 0.50, margin 0.25",
        "1.png: no pixel, margin 0.25",
        "2.png: no match, margin 0.25",
        "a box: in 1 of 4 images, the first 3 are shown",
    ]
    assert sheet.shape[1] == 3 * (groups._SIDE + groups._GAP) + groups._GAP


def test_a_damaged_picture_is_told_and_sits_in_no_row(
    run: Path, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    damaged = images / "b.jpg"
    damaged.write_bytes(damaged.read_bytes()[:200])
    out = tmp_path / "out"
    assert _call(run, images, out) == 1
    captured = capsys.readouterr()
    (error,) = [line for line in captured.err.splitlines() if "error: " in line]
    assert "b.jpg" in error
    assert f"{out}: images: 3, texts: 2; 1 could not be used" in captured.out
    paths = [images / name for name in NAMES if name != "b.jpg"]
    expected = Predictor.from_checkpoint(str(run)).predict_group(paths, TEXTS)
    for path, answers in zip(paths, expected, strict=True):
        for k, one in enumerate(answers):
            mask = _pixels(out / f"{path.name}-{k}-mask.png")
            np.testing.assert_array_equal(mask > 0, one.mask)
    assert not list(out.glob("b.jpg*"))


def test_no_sound_picture_is_no_answer(
    run: Path, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in NAMES:
        (images / name).write_bytes(b"\x89PNG")
    assert _call(run, images, tmp_path / "out") == 1
    printed = capsys.readouterr().out
    assert "the red box: no picture could be asked" in printed and "no match" not in printed
    assert "images: 0, texts: 2; 4 could not be used" in printed


def test_a_row_that_fails_costs_its_pictures(
    run: Path,
    images: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    predict_row, asked = Predictor.predict_row, []

    def failing(self: Predictor, pixels: Any, *arguments: Any, **options: Any) -> Any:
        asked.append(len(pixels))
        if len(asked) == 1:
            raise MemoryError("no room")
        return predict_row(self, pixels, *arguments, **options)

    monkeypatch.setattr(Predictor, "predict_row", failing)
    assert _call(run, images, tmp_path / "out") == 1
    assert asked == [3, 3]
    captured = capsys.readouterr()
    assert "a.png: cannot be predicted (MemoryError: no room)" in captured.err
    assert "images: 1, texts: 2; 3 could not be used" in captured.out
    assert {line["image"] for line in _lines(tmp_path / "out" / "matches.jsonl")} == {"d.png"}


def test_heatmaps_are_drawn_for_every_pair(run: Path, images: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert _call(run, images, out, "--heatmaps") == 0
    assert len(list(out.glob("*-heatmaps.png"))) == len(NAMES) * len(TEXTS)
    predictor = Predictor.from_checkpoint(str(run))
    names = list(NAMES[1:])
    paths = [images / name for name in names]
    words = predictor.words(TEXTS, images=3)
    found, answers = predictor.heat_maps(paths, words), predictor.predict_row(paths, words)
    drawn = heat_panel(_pixels(images / "d.png"), answers[2][1].mask, found[2][1], names, TEXTS[1])
    np.testing.assert_array_equal(_pixels(out / "d.png-1-heatmaps.png"), drawn)


def test_a_model_that_answers_picture_by_picture_does_so(
    images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    params = random_params(forward_of(UNIRES))
    save_unires(tmp_path / "run", params, config=unires_run_config(0.6))
    out = tmp_path / "out"
    assert _call(tmp_path / "run", images, out) == 0
    predictor = Predictor.from_checkpoint(str(tmp_path / "run"))
    for name in NAMES:
        for k, one in enumerate(predictor.predict(images / name, TEXTS)):
            mask = _pixels(out / f"{name}-{k}-mask.png")
            np.testing.assert_array_equal(mask > 0, one.mask)
    assert {line["margin"] for line in _lines(out / "matches.jsonl")} == {None}
    capsys.readouterr()
    assert _call(tmp_path / "run", images, tmp_path / "more", "--heatmaps") == 1
    (error,) = [line for line in capsys.readouterr().err.splitlines() if "error: " in line]
    assert "error: the model has no heatmaps" in error and "leave out --heatmaps" in error
    assert not list((tmp_path / "more").iterdir())


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--group", "--group_maps"], "--group_maps is for single pictures"),
        (["--group", "--region_maps"], "--region_maps is for single pictures"),
        (["--group", "--fps=3"], "--fps is for --video"),
        (["--group", "--no_overlay"], "--no_overlay is for --video"),
        (["--heatmaps"], "--heatmaps is for --group"),
    ],
)
def test_flags_that_make_no_sense_are_refused(
    images: Path, tmp_path: Path, capsys: Any, flags: list[str], words: str
) -> None:
    given = [f"--checkpoint={tmp_path}", f"--image={images}", f"--output_dir={tmp_path / 'o'}"]
    with pytest.raises(SystemExit) as left:
        predict.main([*given, "--text=x", *flags])
    assert left.value.code == 2
    assert words in capsys.readouterr().err
    assert not (tmp_path / "o").exists()


@pytest.mark.parametrize("flag", ["--group", "--heatmaps"])
def test_a_video_is_no_group(tmp_path: Path, capsys: Any, flag: str) -> None:
    given = [f"--checkpoint={tmp_path}", f"--video={tmp_path}", f"--output_dir={tmp_path / 'o'}"]
    with pytest.raises(SystemExit):
        predict.main([*given, "--text=x", flag])
    assert f"{flag} is for --image" in capsys.readouterr().err


def test_one_file_is_no_group(run: Path, images: Path, tmp_path: Path, capsys: Any) -> None:
    assert _call(run, images / "a.png", tmp_path / "out") == 1
    (error,) = capsys.readouterr().err.strip().splitlines()
    assert error.startswith("error: ") and "--group asks a folder; leave --group out" in error
    assert not (tmp_path / "out").exists()


def test_results_of_an_earlier_call_do_not_stay(run: Path, images: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert _call(run, images, out) == 0
    (out / "sheet-mine.png").write_bytes(b"mine")
    flags = [f"--checkpoint={run}", f"--image={images / 'a.png'}", f"--output_dir={out}"]
    assert predict.main([*flags, "--text=x"]) == 0
    assert {path.name for path in out.glob("sheet-*")} == {"sheet-mine.png"}
    assert not (out / "matches.jsonl").exists()


def test_a_picture_with_the_name_of_a_sheet_is_not_replaced(
    run: Path, images: Path, capsys: Any
) -> None:
    (images / "a.png").rename(images / "sheet-0.png")
    before = (images / "sheet-0.png").read_bytes()
    assert _call(run, images, images) == 1
    assert "has the name of a result" in capsys.readouterr().err
    assert (images / "sheet-0.png").read_bytes() == before
