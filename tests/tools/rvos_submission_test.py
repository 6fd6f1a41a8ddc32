"""`tools.rvos_submission` writes what the server of Ref-YouTube-VOS takes."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from refseg_jax.models import build_model
from refseg_jax.models.forward import Forward
from refseg_jax.prediction.predictor import Predictor
from tests.refseg_jax.training.tiny_run import UNIRES, random_params, save_unires
from tools import rvos_submission

HEIGHT, WIDTH = 20, 30

pytestmark = pytest.mark.usefixtures("one_compilation")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    forward = Forward(lambda rngs: build_model(UNIRES, rngs=rngs))
    save_unires(folder, random_params(forward), threshold=0.5)
    return folder


def pixels(number: int) -> np.ndarray:
    coarse = np.random.default_rng(number).integers(0, 256, (4, 4, 3), np.uint8)
    return np.asarray(Image.fromarray(coarse).resize((WIDTH, HEIGHT)))


def write_videos(source: Path, videos: dict[str, tuple[list[str], dict[str, str]]]) -> None:
    """Frames and expressions of valid: name -> (frames, number -> expression)."""
    stored = {
        name: {"frames": frames, "expressions": {k: {"exp": text} for k, text in said.items()}}
        for name, (frames, said) in videos.items()
    }
    file = source / "meta_expressions" / "valid" / "meta_expressions.json"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps({"videos": stored}))
    for name, (frames, _) in videos.items():
        folder = source / "valid" / "JPEGImages" / name
        folder.mkdir(parents=True, exist_ok=True)
        for number, frame in enumerate(frames):
            Image.fromarray(pixels(number)).save(folder / f"{frame}.jpg")


def hold_out(source: Path, *names: str) -> None:
    """The file of `test`, whose videos `valid` lists too."""
    file = source / "meta_expressions" / "test" / "meta_expressions.json"
    file.parent.mkdir(parents=True, exist_ok=True)
    empty = {"frames": ["00000"], "expressions": {"0": {"exp": "x"}}}
    file.write_text(json.dumps({"videos": dict.fromkeys(names, empty)}))


def call(run: Path, source: Path, out: Path) -> int:
    return rvos_submission.main(
        [f"--checkpoint={run}", f"--source_dir={source}", f"--output_dir={out}"]
    )


def masks(out: Path) -> dict[str, np.ndarray]:
    found = {}
    for path in (out / "Annotations").rglob("*.png"):
        with Image.open(path) as image:
            assert image.mode == "L"
            found[str(path.relative_to(out / "Annotations"))] = np.asarray(image)
    return found


def test_every_expression_of_every_listed_frame_has_a_mask(run: Path, tmp_path: Path) -> None:
    source, out = tmp_path / "source", tmp_path / "out"
    write_videos(
        source,
        {
            "aa": (["00000", "00005"], {"0": "the red box", "2": "both boxes", "3": " "}),
            "bb": (["00010"], {"0": "a dog"}),
            "of_test": (["00000"], {"0": "a cat"}),
        },
    )
    hold_out(source, "of_test")
    assert call(run, source, out) == 0
    found = masks(out)
    frames = [f"aa/{k}/{frame}.png" for k in "023" for frame in ("00000", "00005")]
    assert set(found) == {*frames, "bb/0/00010.png"}
    predictor = Predictor.from_checkpoint(str(run), step="latest")
    for number, frame in enumerate(("00000", "00005")):
        path = source / "valid" / "JPEGImages" / "aa" / f"{frame}.jpg"
        for k, one in zip(
            "02", predictor.predict(path, ["the red box", "both boxes"]), strict=True
        ):
            np.testing.assert_array_equal(found[f"aa/{k}/{frame}.png"], one.mask * np.uint8(255))
        assert not found[f"aa/3/{frame}.png"].any(), number


def test_a_damaged_frame_is_empty_and_told_until_it_is_put_back(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, out = tmp_path / "source", tmp_path / "out"
    write_videos(source, {"aa": (["00000", "00005", "00010"], {"0": "the red box"})})
    hold_out(source, "other")
    file = source / "valid" / "JPEGImages" / "aa" / "00005.jpg"
    sound = file.read_bytes()
    file.write_bytes(sound[:200])
    (file.parent / "00010.jpg").unlink()
    assert call(run, source, out) == 1
    told = capsys.readouterr()
    errors = [line for line in told.err.splitlines() if "error: " in line]
    assert len(errors) == 2 and str(file) in errors[0] and "00010.jpg" in errors[1]
    assert "2 frames could not be used and have empty masks" in told.out
    assert len(masks(out)) == 3 and not masks(out)["aa/0/00005.png"].any()
    assert masks(out)["aa/0/00005.png"].shape == (HEIGHT, WIDTH)
    # They are tried again; the others stay.
    kept = out / "Annotations" / "aa" / "0" / "00000.png"
    time = kept.stat().st_mtime_ns
    file.write_bytes(sound)
    shutil.copy(file, file.parent / "00010.jpg")
    assert call(run, source, out) == 0
    assert masks(out)["aa/0/00005.png"].any() and kept.stat().st_mtime_ns == time


def test_a_call_that_is_killed_forgets_no_bad_frame(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, out = tmp_path / "source", tmp_path / "out"
    write_videos(source, {"aa": (["00000", "00005"], {"0": "the red box", "1": " "})})
    hold_out(source, "other")
    (source / "valid" / "JPEGImages" / "aa" / "00005.jpg").unlink()

    class Killed(BaseException):
        pass

    def kill(*arguments: object) -> None:
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(rvos_submission, "write_json", kill)
        with pytest.raises(Killed):
            call(run, source, out)
    assert set(masks(out)) == {"aa/0/00000.png"}
    # The empty masks are not taken for predicted ones, however often it is called.
    assert call(run, source, out) == call(run, source, out) == 1
    assert len(masks(out)) == 4


def test_videos_that_the_file_of_test_takes_away_later_are_told(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, out = tmp_path / "source", tmp_path / "out"
    said = (["00000"], {"0": "the red box"})
    write_videos(source, {"aa": said, "of_test": said})
    assert call(run, source, out) == 0
    assert "not of this split" not in capsys.readouterr().err
    hold_out(source, "of_test")
    assert call(run, source, out) == 0
    told = capsys.readouterr()
    line = f"warning: {out}/Annotations/of_test: not of this split"
    assert [one for one in told.err.splitlines() if one.startswith(line)]
    assert "videos: 1, expressions: 1" in told.out


def test_the_published_file_of_valid(
    run: Path, shared_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its first videos, with made frames."""
    stored = json.loads(
        (shared_data / "ref_youtube_vos_valid_meta" / "meta_expressions.json").read_text()
    )["videos"]
    source, out = tmp_path / "source", tmp_path / "out"
    chosen = list(stored)[:2]
    write_videos(
        source,
        {
            name: (
                stored[name]["frames"][:2],
                {k: e["exp"] for k, e in stored[name]["expressions"].items()},
            )
            for name in chosen
        },
    )
    assert call(run, source, out) == 0
    assert "meta_expressions/test is not there" in capsys.readouterr().err
    expected = {
        f"{name}/{k}/{frame}.png"
        for name in chosen
        for k in stored[name]["expressions"]
        for frame in stored[name]["frames"][:2]
    }
    assert set(masks(out)) == expected


def test_a_folder_without_frames_is_one_line(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(run, tmp_path, tmp_path / "out") == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.endswith(
        "valid/JPEGImages: no such folder; --source_dir must hold valid/JPEGImages"
    )
    write_videos(tmp_path, {"aa": (["00000"], {"0": "the red box"})})
    hold_out(tmp_path, "other")
    shutil.rmtree(tmp_path / "valid" / "JPEGImages" / "aa")
    assert call(run, tmp_path, tmp_path.parent / f"{tmp_path.name}-out") == 1
    assert "no frame of this video can be read" in capsys.readouterr().err.splitlines()[-1]
