"""`tools.predict --video`: masks per frame and an overlay, and what happens to bad input."""

import json
import shutil
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from PIL import Image

from refseg_jax.cli import frames, predict, video
from refseg_jax.models import build_model
from refseg_jax.models.forward import Forward
from refseg_jax.prediction.predictor import Predictor
from refseg_jax.prediction.texts import TextEncoder
from tests.refseg_jax.training.tiny_run import UNIRES, random_params, save_unires

TEXTS = ("the red box", "both boxes")
HEIGHT, WIDTH, FRAMES = 33, 47, 4

pytestmark = pytest.mark.usefixtures("one_compilation")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    forward = Forward(lambda rngs: build_model(UNIRES, rngs=rngs))
    save_unires(folder, random_params(forward), threshold=0.5)
    return folder


def picture(number: int) -> np.ndarray:
    coarse = np.random.default_rng(number).integers(0, 256, (4, 6, 3), np.uint8)
    return np.asarray(Image.fromarray(coarse).resize((WIDTH, HEIGHT)))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Frames whose numbers are not padded, and a file that is none."""
    path = tmp_path / "clip"
    path.mkdir()
    for number in range(FRAMES):
        Image.fromarray(picture(number)).save(path / f"{8 + number}.png")
    (path / "notes.txt").write_text("no frame")
    return path


def write_file(path: Path, code: str = "mp4v", count: int = FRAMES) -> Path:
    writer = cv2.VideoWriter(
        str(path), cv2.CAP_FFMPEG, cv2.VideoWriter.fourcc(*code), 12.0, (WIDTH + 1, HEIGHT + 1)
    )
    assert writer.isOpened()
    for number in range(count):
        writer.write(np.pad(picture(number), ((0, 1), (0, 1), (0, 0)), mode="edge")[:, :, ::-1])
    writer.release()
    return path


def call(run: Path, source: Path, out: Path, *more: str) -> int:
    flags = [f"--checkpoint={run}", f"--video={source}", f"--output_dir={out}"]
    return predict.main([*flags, *(f"--text={text}" for text in TEXTS), *more])


def lines(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "predictions.jsonl").read_text().splitlines()]


def mask(out: Path, k: int, frame: str) -> np.ndarray:
    with Image.open(out / "masks" / str(k) / f"{frame}.png") as image:
        assert (image.format, image.mode) == ("PNG", "L")
        return np.asarray(image)


def played(path: Path) -> list[np.ndarray]:
    stream, found = cv2.VideoCapture(str(path), cv2.CAP_FFMPEG), []
    while (read := stream.read())[0]:
        found.append(read[1])
    assert len(found) == int(stream.get(cv2.CAP_PROP_FRAME_COUNT))
    return found


def test_a_folder_of_frames_gives_the_masks_of_each_picture(
    run: Path, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoded = []
    encode = TextEncoder.parts

    def counting(self: TextEncoder, *arguments: Any) -> Any:
        encoded.append(arguments)
        return encode(self, *arguments)

    monkeypatch.setattr(TextEncoder, "parts", counting)
    out = tmp_path / "out"
    assert call(run, folder, out) == 0
    assert len(encoded) == 1
    predictor = Predictor.from_checkpoint(str(run), step="latest")
    some = 0
    for number in range(FRAMES):
        alone = predictor.predict(picture(number), TEXTS)
        for k, one in enumerate(alone):
            np.testing.assert_array_equal(mask(out, k, str(8 + number)), one.mask * np.uint8(255))
            some += 0 < one.mask.mean() < 1
    assert some
    # In the order of the numbers, not of the letters.
    assert [line["id"] for line in lines(out)] == [
        f"{8 + number}#{k}" for number in range(FRAMES) for k in range(2)
    ]
    drawn = played(out / "overlay.mp4")
    assert len(drawn) == FRAMES and drawn[0].shape == (HEIGHT + 1, WIDTH + 1, 3)
    assert {path.name for path in out.iterdir()} == {
        "masks", "overlay.mp4", "predictions.jsonl", "video.json"
    }  # fmt: skip


def test_a_file_gives_masks_named_by_the_numbers_of_its_frames(run: Path, tmp_path: Path) -> None:
    clip, out = write_file(tmp_path / "clip.mp4"), tmp_path / "out"
    assert call(run, clip, out, "--maps") == 0
    assert [line["image"] for line in lines(out)[::2]] == [f"{n:06d}" for n in range(FRAMES)]
    assert all("map" in line for line in lines(out))
    assert mask(out, 1, "000003").shape == (HEIGHT + 1, WIDTH + 1)
    stream = cv2.VideoCapture(str(out / "overlay.mp4"), cv2.CAP_FFMPEG)
    assert stream.get(cv2.CAP_PROP_FPS) == pytest.approx(12.0)


def test_a_damaged_frame_costs_itself(
    run: Path, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    broken = folder / "9.png"
    broken.write_bytes(broken.read_bytes()[:100])
    out = tmp_path / "out"
    assert call(run, folder, out) == 1
    told = [line for line in capsys.readouterr().err.splitlines() if "error" in line]
    assert len(told) == 1 and str(broken) in told[0]
    assert [line["image"] for line in lines(out)[::2]] == ["8", "10", "11"]
    assert not (out / "masks" / "0" / "9.png").exists()
    assert len(played(out / "overlay.mp4")) == FRAMES - 1
    # Put back, it is all that the same command does.
    Image.fromarray(picture(1)).save(broken)
    before = {path: path.stat().st_mtime_ns for path in (out / "masks").rglob("*.png")}
    assert call(run, folder, out) == 0
    assert "frames: 4 (3 of an earlier call)" in capsys.readouterr().out
    assert all(path.stat().st_mtime_ns == time for path, time in before.items())
    assert len(played(out / "overlay.mp4")) == FRAMES


def test_deleted_masks_are_written_again_and_counted(
    run: Path, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert call(run, folder, out) == 0
    told, text = capsys.readouterr().out.splitlines(), (out / "predictions.jsonl").read_text()
    shutil.rmtree(out / "masks" / "1")
    assert call(run, folder, out) == 0
    assert capsys.readouterr().out.splitlines()[:2] == told[:2]
    assert f"of {FRAMES} frames" in told[0]
    assert (out / "predictions.jsonl").read_text() == text
    assert len([*(out / "masks" / "1").iterdir()]) == FRAMES
    # A call that has nothing left to do counts the same frames.
    assert call(run, folder, out) == 0
    assert capsys.readouterr().out.splitlines()[:2] == told[:2]


def test_a_killed_call_goes_on_from_whole_frames(
    run: Path, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, out = tmp_path / "whole", tmp_path / "out"
    assert call(run, folder, whole) == 0

    class Killed(BaseException):
        pass

    words = Predictor.predict_words
    left = [2]

    def predicting(self: Predictor, *arguments: Any, **options: Any) -> Any:
        left[0] -= 1
        if left[0] < 0:
            raise Killed
        return words(self, *arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(Predictor, "predict_words", predicting)
        with pytest.raises(Killed):
            call(run, folder, out)
    path = out / "predictions.jsonl"
    text = path.read_text()
    # The second frame's last line was being written.
    path.write_text(text[:-20])
    assert not (out / "overlay.mp4").exists()
    assert call(run, folder, out) == 0
    assert path.read_text() == (whole / "predictions.jsonl").read_text()
    for one in (whole / "masks").rglob("*.png"):
        assert (out / one.relative_to(whole)).read_bytes() == one.read_bytes()
    assert not [p for p in out.rglob("*") if "partial" in p.name or p.suffix == ".lock"]


def test_results_of_another_call_are_kept(
    run: Path, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert call(run, folder, out) == 0
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    capsys.readouterr()
    assert call(run, folder, out, "--text=more") == 1
    line = capsys.readouterr().err.splitlines()[-1]
    assert line.endswith("results of another call (other texts); delete it, or name another "
                         "--output_dir")  # fmt: skip
    assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} == before


def test_a_file_that_was_replaced_is_another_call(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    clip, out = write_file(tmp_path / "clip.mp4", count=2), tmp_path / "out"
    assert call(run, clip, out) == 0
    assert call(run, clip, out) == 0
    write_file(clip, count=3)
    assert call(run, clip, out) == 1
    assert "results of another call (other content); delete it" in capsys.readouterr().err


def of_mixed_sizes(folder: Path) -> Path:
    Image.fromarray(picture(0)[:20]).save(folder / "10.png")
    return folder


def of_one_name(folder: Path) -> Path:
    Image.fromarray(picture(0)).save(folder / "10.jpg")
    return folder


def empty(folder: Path) -> Path:
    for path in folder.iterdir():
        path.unlink()
    return folder


def a_picture(folder: Path) -> Path:
    return folder / "8.png"


def a_text(folder: Path) -> Path:
    return folder / "notes.txt"


def a_list_of_other_files(folder: Path) -> Path:
    path = folder / "list.mp4"
    path.write_text(f"ffconcat version 1.0\nfile '{folder}/8.png'\n")
    return path


def cut_off(folder: Path) -> Path:
    path = write_file(folder / "cut\n.mp4")
    path.write_bytes(path.read_bytes()[:-400])
    return path


def nothing(folder: Path) -> Path:
    return folder / "nothing.mp4"


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (of_mixed_sizes, "10.png: is 47 x 20, 8.png is 47 x 33 (width x height); the frames"),
        (of_one_name, "10.png: 10.jpg has the same name without its suffix"),
        (empty, "no frames (pictures) in this folder; name another --video"),
        (a_picture, "8.png: is PNG, no video (MP4, MOV, AVI, MKV or WebM); name a picture with"),
        (a_text, "notes.txt: is no video (MP4, MOV, AVI, MKV or WebM)"),
        (a_list_of_other_files, "list.mp4: is no video"),
        (cut_off, r"cut\n.mp4: damaged, or in a codec that OpenCV"),
        (nothing, "nothing.mp4: no such file or folder; name a video with --video"),
    ],
)
def test_bad_input_is_one_line_and_leaves_nothing(
    make: Any, told: str, run: Path, folder: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    source = make(folder)
    assert call(run, source, tmp_path / "out") == 1
    said = [line for line in capfd.readouterr().err.splitlines() if not line.startswith("note: ")]
    assert len(said) == 1, said
    assert said[0].startswith("error: ") and told in said[0]
    assert not (tmp_path / "out").exists()


def test_a_file_that_ends_early_keeps_its_frames(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    clip = write_file(tmp_path / "clip.avi", "MJPG", 12)
    clip.write_bytes(clip.read_bytes()[: clip.stat().st_size // 2])
    out = tmp_path / "out"
    assert call(run, clip, out) == 1
    (line,) = [line for line in capsys.readouterr().err.splitlines() if "error" in line]
    kept = len(lines(out)) // 2
    assert 0 < kept < 12
    assert f"clip.avi: ends after {kept} of 12 frames; it was cut off" in line
    assert len(played(out / "overlay.mp4")) == kept


@pytest.mark.parametrize("link", [False, True])
def test_no_result_replaces_a_frame(
    link: bool, run: Path, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    source = out / "masks" / "0"
    source.parent.mkdir(parents=True)
    shutil.move(folder, source)
    if link:
        folder.mkdir()
        for path in source.glob("*.png"):
            (folder / path.name).symlink_to(path)
    before = {path: path.read_bytes() for path in source.iterdir()}
    assert call(run, folder if link else source, out) == 1
    assert f"lies in --output_dir={out}, whose results might" in capsys.readouterr().err
    assert {path: path.read_bytes() for path in source.iterdir()} == before


def test_without_the_codec_the_masks_can_be_had(
    run: Path,
    folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(cv2.videoio_registry, "hasBackend", lambda _: False)
    out = tmp_path / "out"
    assert call(run, folder, out) == 1
    error = capsys.readouterr().err.splitlines()[-1]
    assert "no FFmpeg here, so that it cannot write mp4v videos" in error
    assert "--no_overlay" in error and not out.exists()
    assert call(run, folder, out, "--no_overlay") == 0
    assert not (out / "overlay.mp4").exists() and len(lines(out)) == 2 * FRAMES


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        (("--video=a", "--recursive"), "--recursive is for --image"),
        (("--video=a", "--region_maps"), "--region_maps is for --image"),
        (("--image=a", "--fps=3"), "--fps is for --video"),
        (("--video=a", "--fps=0.001"), "--fps=0.001: give a number of frames a second from 0.01"),
        (("--video=a", "--image=b"), "give either --image or --video"),
        ((), "give either --image or --video"),
    ],
)
def test_flags_of_the_other_source_are_refused(
    flags: tuple[str, ...], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        predict.main(["--checkpoint=c", "--output_dir=o", "--text=t", *flags])
    assert told in capsys.readouterr().err


def test_a_video_as_an_image_is_told(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    clip = write_file(tmp_path / "clip.mp4")
    flags = [f"--checkpoint={run}", f"--image={clip}", f"--output_dir={tmp_path / 'out'}"]
    assert predict.main([*flags, "--text=x"]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line == f"error: {clip}: is a video; name it with --video"


def test_a_damaged_line_of_an_earlier_call_is_one_line(
    run: Path, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert call(run, folder, out) == 0
    path = out / "predictions.jsonl"
    path.write_text("{" + path.read_text())
    capsys.readouterr()
    assert call(run, folder, out) == 1
    assert "a line of it is damaged; delete the folder" in capsys.readouterr().err.splitlines()[-1]


def test_frames_are_turned_as_a_person_sees_them(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(picture(0)).save(tmp_path / "0.jpg", exif=exif)
    Image.fromarray(np.rot90(picture(1), -1)).save(tmp_path / "1.jpg")
    shapes = {frame.read().pixels.shape for frame in frames.open_video(tmp_path)}
    assert shapes == {(WIDTH, HEIGHT, 3)}


def test_the_overlay_dims_what_lies_outside(tmp_path: Path) -> None:
    grey = np.full((32, 48, 3), 200, np.uint8)
    inside = np.zeros((32, 48), bool)
    inside[:, :24] = True
    decoded = frames.Decoded(grey, False, ())
    one = frames.Frame("a", lambda: decoded)
    video.write_overlay(tmp_path / "o.mp4", [one] * 3, lambda _: [inside], 6.0)
    (first, *_) = played(tmp_path / "o.mp4")
    assert first[16, 8].mean() > 180 and first[16, 40].mean() < 130
    assert [path.name for path in tmp_path.iterdir()] == ["o.mp4"]
