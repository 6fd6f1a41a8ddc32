"""Odd pictures through prediction: what it writes is of the picture as a person sees it."""

import contextlib
import io
import json
import os
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from refseg_jax.cli import predict, score
from refseg_jax.models import build_model
from refseg_jax.models.forward import Forward
from refseg_jax.prediction.pictures import read_picture, to_rgb
from refseg_jax.prediction.predictor import Predictor
from tests.odd_files.made import MADE, PICTURE
from tests.odd_files.ways import jsonl
from tests.refseg_jax.training.tiny_run import UNIRES, random_params, save_unires

TEXT = "the red box"

pytestmark = pytest.mark.usefixtures("one_compilation")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    forward = Forward(lambda rngs: build_model(UNIRES, rngs=rngs))
    save_unires(folder, random_params(forward), threshold=0.5)
    return folder


def _predict(run: Path, image: Path, out: Path, *more: str) -> tuple[int, list[str]]:
    """The exit code, and the errors, warnings and notes that were printed."""
    said = io.StringIO()
    flags = [f"--checkpoint={run}", f"--image={image}", f"--output_dir={out}", f"--text={TEXT}"]
    with contextlib.redirect_stderr(said), contextlib.redirect_stdout(io.StringIO()):
        code = predict.main([*flags, *more])
    # Progress bars end their lines by carriage returns.
    lines = said.getvalue().replace("\r", "\n").splitlines()
    return code, [line for line in lines if line.startswith(("error: ", "warning: ", "note: "))]


def _mask(out: Path, name: str) -> np.ndarray:
    with Image.open(out / f"{name}-0-mask.png") as image:
        return np.asarray(image) > 0


def _iou(one: np.ndarray, other: np.ndarray) -> float:
    return float((one & other).sum() / max((one | other).sum(), 1))


def test_phone_photos_are_predicted_as_they_are_seen(
    run: Path, shared_data: Path, tmp_path: Path
) -> None:
    """The same pictures upright, and stored with a flag that turns them."""
    folders = {
        name: shared_data / "odd_files/exif_predict" / name for name in ("turned", "upright")
    }
    for name, folder in folders.items():
        assert _predict(run, folder, tmp_path / name) == (0, [])
    for image in folders["turned"].glob("*.jpg"):
        upright = _mask(tmp_path / "upright", image.name)
        assert upright.any()
        assert _iou(_mask(tmp_path / "turned", image.name), upright) > 0.97
        assert _predict(run, image, tmp_path / "alone") == (0, [])
        assert _iou(_mask(tmp_path / "alone", image.name), upright) > 0.97


def test_pictures_of_any_depth_are_predicted_alike(
    run: Path, shared_data: Path, tmp_path: Path
) -> None:
    """Eight bits, the same in 16 and as floats; what had to be guessed is told once a kind."""
    folder = shared_data / "odd_files/predict_pictures"
    code, said = _predict(run, folder, tmp_path / "out")
    assert code == 0
    assert said == [
        "warning: pictures with transparent pixels, read in the colours that are stored there "
        f"(first: {folder / 'cutout.png'})",
        "warning: pictures of more than 8 bits a sample, read as of 12 bits by their largest sample "
        f"(first: {folder / 'grey_12in16.png'})",
        "warning: pictures of floats, read as 0 to 1 by their largest sample "
        f"(first: {folder / 'grey_float01.tif'})",
    ]
    grey = _mask(tmp_path / "out", "grey8.png")
    assert grey.any()
    for name in ("grey_12in16.png", "grey_16.png", "grey_float01.tif"):
        assert _iou(_mask(tmp_path / "out", name), grey) > 0.97


def test_masks_have_the_size_of_the_picture_as_it_is_seen(run: Path, tmp_path: Path) -> None:
    MADE["made_turned"](tmp_path / "odd")
    predictor = Predictor.from_checkpoint(run)
    answers = {}
    kinds = {path.stem: path for path in (tmp_path / "odd").glob("[A-Z]*")}
    assert len(kinds) >= 4
    for kind, path in kinds.items():
        with Image.open(path) as image:
            for given in (path, str(path), path.read_bytes(), image):
                assert np.abs(to_rgb(given).astype(int) - PICTURE).max() < 20
                (answers[kind],) = predictor.predict(given, [TEXT])
                assert answers[kind].mask.shape == PICTURE.shape[:2]
        assert _predict(run, path, tmp_path / "out") == (0, [])
        np.testing.assert_array_equal(_mask(tmp_path / "out", path.name), answers[kind].mask)
    assert _iou(answers["JPEG"].mask, answers["PNG"].mask) > 0.95


def test_what_prediction_writes_is_read_exactly(run: Path, tmp_path: Path) -> None:
    """Its masks and its lines, by a build; its lines, by `tools.score`."""
    MADE["made_turned"](tmp_path / "odd")
    image, out = tmp_path / "odd" / "JPEG.jpeg", tmp_path / "out"
    assert _predict(run, image, out) == (0, [])
    mask = _mask(out, image.name)
    assert mask.any() and not mask.all()
    own = tmp_path / "own"
    own.mkdir()
    for path in (image, out / f"{image.name}-0-mask.png"):
        (own / path.name).write_bytes(path.read_bytes())
    (written,) = (out / "predictions.jsonl").read_text().splitlines()
    line = {"image": image.name, "expression": "a mask", "mask": f"{image.name}-0-mask.png"}
    (own / "train.jsonl").write_text(f"{written}\n{json.dumps(line)}\n")
    (tmp_path / "room").mkdir()
    seen = jsonl(own, tmp_path / "room")
    assert seen.code == 0, seen.said
    for _, picture, region in seen.pairs:
        np.testing.assert_array_equal(region, mask)
        np.testing.assert_array_equal(picture, read_picture(image).pixels)
    lines = out / "predictions.jsonl"
    scores = tmp_path / "scores.json"
    flags = ["--protocol=lavt", f"--predictions={lines}", f"--references={lines}"]
    with contextlib.redirect_stdout(io.StringIO()):
        assert score.main([*flags, f"--json={scores}"]) == 0
    assert json.loads(scores.read_text())["oIoU"] == 1


def test_of_a_mixed_folder_all_that_can_be_read_is_predicted_and_the_rest_is_named(
    run: Path, shared_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # As where neither is installed.
    for module in ("pillow_heif", "PIL.AvifImagePlugin"):
        monkeypatch.setitem(sys.modules, module, None)
    folder, read = (
        shared_data / "odd_files/mixed_folder",
        ["a.jpg", "b.GIF", "c.jfif", "d.ppm", "g.jpe"],
    )
    unread = [
        f"error: {folder}/IMG_1.HEIC: HEIC is not read here; pip install 'refseg_jax[heif]', or save it "
        "as JPEG",
        f"error: {folder}/e.avif: AVIF is not read here; install Pillow 11.3 or newer, or save it as "
        "PNG",
    ]
    entered = f"note: {folder}/sub: not entered; --recursive enters sub-folders"
    for flags, more, names in (
        ((), [entered], read),
        (("--recursive",), [], [*read, "sub/f.jpg"]),
    ):
        out = tmp_path / f"out{len(names)}"
        assert _predict(run, folder, out, *flags) == (1, [*unread, *more])
        lines = map(json.loads, (out / "predictions.jsonl").read_text().splitlines())
        assert [line["image"] for line in lines] == names
        masks = {name: _mask(out, name) for name in names}
        assert {mask.shape for mask in masks.values()} == {(64, 96)}
        # The same bytes under three suffixes.
        for name in ("c.jfif", "g.jpe"):
            np.testing.assert_array_equal(masks[name], masks["a.jpg"])


def test_what_is_no_file_is_not_opened(run: Path, tmp_path: Path) -> None:
    folder = tmp_path / "pictures"
    folder.mkdir()
    Image.fromarray(PICTURE).save(folder / "a.png")
    os.mkfifo(folder / "b.png")
    (folder / "c.png").symlink_to("/dev/zero")
    code, said = _predict(run, folder / "b.png", tmp_path / "out")
    assert code == 1
    assert said == [f"error: {folder / 'b.png'}: is no file; name an image with --image"]
    assert _predict(run, folder / "c.png", tmp_path / "out")[0] == 1
    assert _predict(run, folder, tmp_path / "out") == (
        1,
        [
            f"error: {folder}/b.png: is a pipe, no file; give a picture that can be read",
            f"error: {folder}/c.png: is a device, no file; give a picture that can be read",
        ],
    )
    assert _mask(tmp_path / "out", "a.png").shape == PICTURE.shape[:2]
    assert len((tmp_path / "out" / "predictions.jsonl").read_text().splitlines()) == 1
