"""`tools.predict`: files that anybody can read, and what happens to bad input."""

import base64
import io
import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_mask

from refseg_jax.cli import predict
from refseg_jax.cli.pairs import write_matches
from refseg_jax.evaluation.predictions import encode
from refseg_jax.images.drawing import PREDICTED_COLOUR, dimmed, draw_regions
from refseg_jax.models import build_model
from refseg_jax.models.forward import Forward
from refseg_jax.prediction.predictor import Predictor
from tests.refseg_jax.training.tiny_run import (
    UNIRES,
    WITH_PRESENCE,
    presence_params,
    random_params,
    save_unires,
    unires_run_config,
)

TEXTS = ("the red box", "both boxes")
SIZES = {"a.png": (20, 30), "b.jpg": (33, 17)}
FIELDS = {"id", "image", "expression", "segmentation", "score", "present", "presence", "thresholds"}

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


def _call(run: Path, image: Path, out: Path, *texts: str) -> int:
    flags = [f"--checkpoint={run}", f"--image={image}", f"--output_dir={out}"]
    return predict.main(flags + [f"--text={text}" for text in texts])


def _lines(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "predictions.jsonl").read_text().splitlines()]


def _read(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        assert image.format == "PNG"
        return np.asarray(image)


def test_folder_gives_masks_overlays_and_lines(run: Path, images: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert _call(run, images, out, *TEXTS) == 0
    lines = _lines(out)
    assert [(line["image"], line["expression"]) for line in lines] == [
        (name, text) for name in SIZES for text in TEXTS
    ]
    assert len({line["id"] for line in lines}) == 4
    expected_files = {"predictions.jsonl", "predictions.json", "matches.jsonl"}
    cleared = some = 0
    for number, line in enumerate(lines):
        assert set(line) == FIELDS
        name, k = line["image"], number % 2
        height, width = SIZES[name]
        mask = _read(out / f"{name}-{k}-mask.png")
        assert mask.dtype == np.uint8
        assert mask.shape == (height, width)
        assert set(np.unique(mask)) <= {0, 255}
        assert line["segmentation"]["size"] == [height, width]
        decoded = coco_mask.decode(line["segmentation"])
        assert (0.5 < line["score"] <= 1.0) if decoded.any() else line["score"] == 0.0
        # What the evaluator of `gres` counts, which a person is not shown.
        np.testing.assert_array_equal(decoded * 255 * line["present"], mask)
        cleared += not line["present"] and decoded.any()
        some += 0 < mask.mean() < 255
        expected_files |= {f"{name}-{k}-mask.png", f"{name}-{k}-overlay.png"}
    assert some and cleared
    assert {path.name for path in out.iterdir()} == expected_files


def test_what_a_head_is_sure_of_and_no_pixel_shows_is_no_match(
    images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = unires_run_config(0.999999, WITH_PRESENCE)
    save_unires(tmp_path / "run", presence_params(99.0), config=config)
    assert _call(tmp_path / "run", images, tmp_path / "out", *TEXTS) == 0
    assert all(line["present"] and line["score"] == 0 for line in _lines(tmp_path / "out"))
    told = (tmp_path / "out" / "matches.jsonl").read_text().splitlines()
    assert [json.loads(line)["matches"] for line in told] == [[], []]
    capsys.readouterr()
    assert _call(tmp_path / "run", images / "a.png", tmp_path / "one", *TEXTS) == 0
    why = "(its head says yes, but no pixel shows it)"
    assert capsys.readouterr().out.splitlines()[:2] == [f"{text}: no match {why}" for text in TEXTS]


def test_of_a_folder_the_images_that_contain_the_thing_are_listed_by_score(
    run: Path, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert _call(run, images, out, *TEXTS) == 0
    lines = _lines(out)
    told = [json.loads(line) for line in (out / "matches.jsonl").read_text().splitlines()]
    assert [row["expression"] for row in told] == list(TEXTS)
    # The head rejects one pair.
    assert [len(row["matches"]) for row in told] == [2, 1]
    printed = capsys.readouterr().out.splitlines()
    for row in told:
        there = [x for x in lines if x["expression"] == row["expression"] and x["present"]]
        there.sort(key=lambda line: -line["score"])
        assert row["matches"] == [
            {
                "image": line["image"],
                "score": line["score"],
                "pixels": int(coco_mask.area(line["segmentation"])),
            }
            for line in there
        ]
        place = printed.index(f"{row['expression']}: in {len(there)} of 2 images")
        table = [f"  {line['score']:.2f}  {line['image']}" for line in there]
        assert printed[place + 1 : place + 1 + len(there)] == table


def test_an_image_alone_is_told_text_by_text(
    run: Path, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert _call(run, images / "a.png", out, *TEXTS) == 0
    first, second, *_ = capsys.readouterr().out.splitlines()
    pixels = np.count_nonzero(_read(out / "a.png-0-mask.png"))
    assert first == f"{TEXTS[0]}: score {_lines(out)[0]['score']:.2f}, {pixels} pixels"
    assert second == f"{TEXTS[1]}: no match"
    assert not _read(out / "a.png-1-mask.png").any()
    assert not (out / "matches.jsonl").exists()


def test_matches_of_an_earlier_folder_do_not_stay(run: Path, images: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert _call(run, images, out, *TEXTS) == 0
    assert (out / "matches.jsonl").exists()
    assert _call(run, images / "a.png", out, *TEXTS) == 0
    assert not (out / "matches.jsonl").exists()


def test_a_text_that_is_cut_is_named(
    run: Path, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    long = "the red car " * 40
    assert _call(run, images / "a.png", tmp_path / "out", "the red car", long) == 0
    (told,) = capsys.readouterr().err.strip().splitlines()
    assert told.startswith("warning: --text='the red car the red car")
    assert "(config.data.context_length)" in told
    assert len(told) < 200


def test_a_folder_that_ends_like_an_image_is_none(run: Path, images: Path, tmp_path: Path) -> None:
    (images / "sub.png").mkdir()
    out = tmp_path / "out"
    try:
        assert _call(run, images, out, *TEXTS) == 0
    finally:
        (images / "sub.png").rmdir()
    assert {line["image"] for line in _lines(out)} == set(SIZES)


def test_of_many_matches_the_first_are_printed_and_all_are_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    scores = np.random.default_rng(0).permutation(13) / 13
    found = [(f"{n}.jpg", float(score)) for n, score in enumerate(scores)]
    region = encode(np.eye(5, dtype=bool))
    lines = [
        {
            "image": name,
            "expression": text,
            "score": score,
            "segmentation": region,
            "present": there,
        }
        for text, there in (("a", True), ("b", False))
        for name, score in found
    ]
    nothing = encode(np.zeros((5, 5), bool))
    lines += [{**lines[0], "image": f"no{n}", "segmentation": nothing} for n in range(7)]
    assert len(write_matches(tmp_path, iter(lines))) == 2
    first, second = (tmp_path / "matches.jsonl").read_text().splitlines()
    order = [int(n) for n in np.argsort(-scores)]
    assert [match["image"] for match in json.loads(first)["matches"]] == [f"{n}.jpg" for n in order]
    assert json.loads(second) == {"expression": "b", "matches": []}
    printed = capsys.readouterr().out.splitlines()
    assert printed[0] == "a: in 13 of 20 images"
    assert [line.split()[1] for line in printed[1:11]] == [f"{n}.jpg" for n in order[:10]]
    assert printed[11:] == [f"  and 3 more, see {tmp_path / 'matches.jsonl'}", "b: no match"]


def test_an_overlay_outlines_the_mask_and_dims_the_rest(
    run: Path, images: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    _call(run, images / "a.png", out, *TEXTS)
    original = _read(images / "a.png")
    mask = _read(out / "a.png-0-mask.png") > 0
    assert mask.any()
    found, nothing = (_read(out / f"a.png-{k}-overlay.png") for k in (0, 1))
    np.testing.assert_array_equal(found, draw_regions(original, [mask], [PREDICTED_COLOUR]))
    assert (found != original).any()
    # The second text matches nothing.
    np.testing.assert_array_equal(nothing, dimmed(original))


def test_masks_are_the_predictors(run: Path, images: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    _call(run, images / "b.jpg", out, *TEXTS)
    predictions = Predictor.from_checkpoint(str(run)).predict(images / "b.jpg", TEXTS)
    for k, prediction in enumerate(predictions):
        mask = _read(out / f"b.jpg-{k}-mask.png") > 0
        np.testing.assert_array_equal(mask, prediction.mask)
        assert _lines(out)[k]["present"] is prediction.present
        assert _lines(out)[k]["score"] == pytest.approx(prediction.score, abs=1e-6)


def test_maps_stand_in_the_lines_where_they_are_asked_for(
    run: Path, images: Path, tmp_path: Path
) -> None:
    flags = [f"--checkpoint={run}", f"--image={images / 'b.jpg'}", f"--output_dir={tmp_path}"]
    assert predict.main([*flags, *(f"--text={text}" for text in TEXTS), "--maps"]) == 0
    asked = Predictor.from_checkpoint(str(run)).predict(images / "b.jpg", TEXTS, maps=True)
    for line, prediction in zip(_lines(tmp_path), asked, strict=True):
        assert set(line) == FIELDS | {"map"}
        with Image.open(io.BytesIO(base64.b64decode(line["map"]))) as image:
            assert image.format == "PNG"
            np.testing.assert_array_equal(np.asarray(image), prediction.soft_map)


def test_a_damaged_image_is_named_and_the_others_are_done(
    run: Path, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (images / "a.png").write_bytes((images / "a.png").read_bytes()[:60])
    out = tmp_path / "out"
    assert _call(run, images, out, *TEXTS) == 1
    assert {line["image"] for line in _lines(out)} == {"b.jpg"}
    assert not list(out.glob("a.png*"))
    told = capsys.readouterr()
    errors = [e for e in told.err.splitlines() if e.startswith("error:")]
    assert len(errors) == 1
    assert "a.png" in errors[0]
    assert f"{out}: images: 1, texts: {len(TEXTS)}; 1 could not be used" in told.out


@pytest.mark.parametrize("missing", ["checkpoint", "version", "image", "folder", "text", "output"])
def test_what_cannot_work_is_one_line_and_leaves_no_lines(
    run: Path,
    images: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    missing: str,
) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    other = tmp_path / "other"
    if missing == "version":
        model = {**UNIRES, "a_later_field": 1}
        params = random_params(Forward(lambda rngs: build_model(UNIRES, rngs=rngs)))
        save_unires(other, params, config={**unires_run_config(), "model": model})
    checkpoint = {"checkpoint": empty, "version": other}.get(missing, run)
    image = {"image": images / "none.png", "folder": empty}.get(missing, images / "a.png")
    texts = ("a", " ") if missing == "text" else TEXTS
    out = tmp_path / "out"
    if missing == "output":
        out.write_text("mine")
    assert _call(checkpoint, image, out, *texts) == 1
    printed = capsys.readouterr().err.strip().splitlines()
    assert len(printed) == 1
    assert printed[0].startswith("error: ")
    named = {
        "checkpoint": str(empty),
        "version": str(other),
        "image": "none.png",
        "folder": str(empty),
        "text": "empty",
        "output": f"{out}: not a folder",
    }
    assert named[missing] in printed[0]
    if missing == "output":
        assert out.read_text() == "mine"
    else:
        assert not out.exists() or not list(out.iterdir())


def test_group_maps_show_the_group_token_of_each_patch(
    run: Path, images: Path, tmp_path: Path
) -> None:
    flags = [f"--checkpoint={run}", f"--image={images / 'a.png'}", "--text=x", "--group_maps"]
    assert predict.main([*flags, f"--output_dir={tmp_path / 'out'}"]) == 0
    predictor = Predictor.from_checkpoint(str(run))
    network, levels = predictor.group_assignment(images / "a.png")
    assert set(levels) == {"low", "high"}
    for level, similarity in levels.items():
        drawn = _read(tmp_path / "out" / f"a.png-groups-{level}.png")
        assert drawn.shape == network.shape
        # Two patches have one tint exactly where they have one token.
        grid = similarity.shape[-1]
        size = drawn.shape[0] // grid
        tints = (
            (drawn.astype(float) - 0.45 * network).reshape(grid, size, grid, size, 3).mean((1, 3))
        )
        tokens = similarity.argmax(0)
        for a, b in itertools.combinations(np.ndindex(grid, grid), 2):
            assert (np.abs(tints[a] - tints[b]).max() < 1.5) == (tokens[a] == tokens[b])
