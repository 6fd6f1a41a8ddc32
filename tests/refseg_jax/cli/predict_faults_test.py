"""`tools.predict`: what fails for one picture, what ends all, and what is there then."""

import errno
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from refseg_jax.cli import predict
from refseg_jax.cli.results import Results
from refseg_jax.models import build_model
from refseg_jax.models.forward import Forward
from refseg_jax.prediction.many import Answer
from refseg_jax.prediction.painting import Painter, Prediction
from tests.refseg_jax.training.tiny_run import UNIRES, random_params, save_unires

ROOT = Path(__file__).resolve().parents[3]
NAMES = ("a.png", "b.png", "c.png")

pytestmark = pytest.mark.usefixtures("one_compilation")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    forward = Forward(lambda rngs: build_model(UNIRES, rngs=rngs))
    save_unires(folder, random_params(forward), threshold=0.5)
    return folder


@pytest.fixture
def images(tmp_path: Path) -> Path:
    folder = tmp_path / "images"
    folder.mkdir()
    for number, name in enumerate(NAMES):
        save(folder / name, number)
    return folder


def save(path: Path, number: int = 0) -> None:
    pixels = np.random.default_rng(number).integers(0, 256, (20, 30, 3), np.uint8)
    # By a file, because Pillow takes its format from the name.
    with path.open("wb") as file:
        Image.fromarray(pixels).save(file, "PNG")


def flags(run: Path, images: Path, out: Path, *more: str) -> list[str]:
    return [f"--checkpoint={run}", f"--image={images}", f"--output_dir={out}", *more]


def lines(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "predictions.jsonl").read_text().splitlines()]


def errors(capsys: pytest.CaptureFixture[str]) -> list[str]:
    said = capsys.readouterr().err.replace("\r", "\n").splitlines()
    return [line.strip() for line in said if "error: " in line]


def at_picture(name: str, patch: pytest.MonkeyPatch, act: Callable[[], None]) -> None:
    """Does something while a picture is predicted, after its first mask."""
    each = Answer.__iter__

    def painting(self: Answer) -> Iterator[Prediction]:
        for number, one in enumerate(each(self)):
            if number == 1 and isinstance(self.image, Path) and self.image.name == name:
                act()
            yield one

    patch.setattr(Answer, "__iter__", painting)


@pytest.mark.parametrize(
    "error",
    [
        MemoryError("Unable to allocate 3 TiB"),
        RuntimeError("RESOURCE_EXHAUSTED: Out of memory\nallocating"),
        ZeroDivisionError("a warp\x1b[31m"),
        ValueError("cannot reshape"),
    ],
)
def test_whatever_one_picture_raises_the_others_are_kept(
    error: Exception,
    run: Path,
    images: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def act() -> None:
        raise error

    out = tmp_path / "out"
    at_picture("b.png", monkeypatch, act)
    assert predict.main(flags(run, images, out, "--text=x", "--text=y")) == 1
    (line,) = errors(capsys)
    kind = type(error).__name__
    assert line.startswith(f"error: {images}/b.png: cannot be predicted ({kind}: ")
    assert line.endswith("; scale it down or replace it") and "\x1b" not in line
    assert [line["id"] for line in lines(out)] == ["a.png#0", "a.png#1", "c.png#0", "c.png#1"]
    # Its first mask was written already.
    assert not list(out.glob("b.png*")) and len(list(out.glob("c.png*"))) == 4
    matches = [json.loads(line) for line in (out / "matches.jsonl").read_text().splitlines()]
    assert not any(match["image"] == "b.png" for row in matches for match in row["matches"])


def test_names_that_cannot_be_written_are_told_and_left_out(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, out = tmp_path / "images", tmp_path / "out"
    folder.mkdir()
    fits, long = "f" * 234 + ".png", "l" * 241 + ".png"
    odd = "new\nline\x1b[31m.png"
    for name in (os.fsdecode(b"\xd6\xd0.png"), fits, long, odd, "中文.png"):
        save(folder / name)
    assert predict.main(flags(run, folder, out, "--text=x")) == 1
    assert errors(capsys) == [
        rf"error: {folder}/\udcd6\udcd0.png: its name is not UTF-8; rename it",
        f"error: {folder}/{long}: its results cannot be written (File name too long); rename it",
    ]
    assert [line["image"] for line in lines(out)] == [fits, odd, "中文.png"]
    for name in (fits, odd, "中文.png"):
        assert (out / f"{name}-0-mask.png").is_file()
    assert not list(out.glob(".*"))


def test_a_full_disk_ends_the_run_with_one_line_and_whole_lines(
    run: Path,
    images: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def act() -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    at_picture("b.png", monkeypatch, act)
    out = tmp_path / "out"
    assert predict.main(flags(run, images, out, "--text=x", "--text=y")) == 1
    assert len(errors(capsys)) == 1
    assert [line["id"] for line in lines(out)] == ["a.png#0", "a.png#1"]
    assert not list(out.glob("b.png*"))


def test_lines_that_do_not_fit_are_no_half_lines(tmp_path: Path) -> None:
    class Full:
        """A file on a disk that has room for 90 bytes."""

        def __init__(self, file: Any) -> None:
            self._file = file

        def write(self, data: Any) -> int:
            room = 90 - self._file.tell()
            if not room:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return self._file.write(data[:room])

        def __getattr__(self, name: str) -> Any:
            return getattr(self._file, name)

    with pytest.raises(OSError, match="No space"), Results(tmp_path / "out") as results:
        results._lines = Full(results._lines)  # pyright: ignore[reportAttributeAccessIssue]
        for name in NAMES:
            with results.of(name) as one:
                one.save("0-mask", np.zeros((2, 2), np.uint8))
                one.lines += [{"id": f"{name}#{k}"} for k in range(2)]
    assert [line["id"] for line in lines(tmp_path / "out")] == [
        *("a.png#0", "a.png#1", "b.png#0", "b.png#1")
    ]
    assert {path.name for path in (tmp_path / "out").glob("*.png")} == {
        *("a.png-0-mask.png", "b.png-0-mask.png")
    }


def test_lines_are_there_as_soon_as_their_picture_is_done(
    run: Path, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    seen: list[int] = []
    at_picture("c.png", monkeypatch, lambda: seen.append(len(lines(out))))
    assert predict.main(flags(run, images, out, "--text=x", "--text=y")) == 0
    assert seen == [4] and len(lines(out)) == 6


@pytest.mark.parametrize(
    ("number", "code", "words"),
    [
        (signal.SIGTERM, 143, "stopped by SIGTERM"),
        (signal.SIGINT, 130, "stopped by Ctrl-C"),
    ],
)
def test_signals_end_it_with_one_line_and_nothing_half_written(
    number: signal.Signals,
    code: int,
    words: str,
    run: Path,
    images: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    at_picture("b.png", monkeypatch, lambda: signal.raise_signal(number))
    out = tmp_path / "out"
    try:
        assert predict.main(flags(run, images, out, "--text=x", "--text=y")) == code
    finally:
        signal.signal(signal.SIGINT, before)
    assert capsys.readouterr().err.splitlines()[-1] == words
    assert [line["id"] for line in lines(out)] == ["a.png#0", "a.png#1"]
    assert not list(out.glob("b.png*")) and not list(out.glob(".*"))
    assert not (out / "matches.jsonl").exists()


_KILLED = """
import os, signal, sys
from refseg_jax.cli import predict
from refseg_jax.prediction.many import Answer

each = Answer.__iter__

def painting(self):
    if self.image.name == "c.png":
        os.kill(os.getpid(), signal.SIGKILL)
    return each(self)

Answer.__iter__ = painting
predict.main(sys.argv[1:])
"""


def test_a_killed_run_leaves_the_pictures_before_and_the_same_command_goes_on(
    run: Path, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    command = [sys.executable, "-c", _KILLED, *flags(run, images, out, "--text=x", "--text=y")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, timeout=300)
    assert done.returncode == -signal.SIGKILL
    assert [line["id"] for line in lines(out)] == ["a.png#0", "a.png#1", "b.png#0", "b.png#1"]
    assert (out / "predictions.jsonl").read_bytes().endswith(b"}\n")
    # As if it had been killed within a write, too.
    with (out / "predictions.jsonl").open("ab") as file:
        file.write(b'{"id": "c.png#0", "image": "c.png"}\n{"id": "c.p')
    kept = (out / "predictions.jsonl").read_bytes().splitlines()[:4]
    masks = {path: path.stat().st_mtime_ns for path in out.glob("[ab].png*")}
    assert predict.main(flags(run, images, out, "--text=x", "--text=y")) == 0
    printed = capsys.readouterr().out
    assert f"{out}: images: 3 (2 of an earlier call), texts: 2" in printed
    assert (out / "predictions.jsonl").read_bytes().splitlines()[:4] == kept
    assert {path: path.stat().st_mtime_ns for path in out.glob("[ab].png*")} == masks
    whole = tmp_path / "whole"
    assert predict.main(flags(run, images, whole, "--text=x", "--text=y")) == 0
    assert {p.name: p.read_bytes() for p in out.iterdir()} == {
        p.name: p.read_bytes() for p in whole.iterdir()
    }
    # Another question begins anew.
    assert predict.main(flags(run, images, out, "--text=z")) == 0
    assert [line["expression"] for line in lines(out)] == ["z"] * 3


def test_an_earlier_calls_lines_do_not_stay_and_its_links_are_not_followed(
    run: Path, images: Path, tmp_path: Path
) -> None:
    out, mine = tmp_path / "out", tmp_path / "mine.txt"
    out.mkdir()
    mine.write_text("mine")
    (out / "predictions.jsonl").symlink_to(mine)
    assert predict.main(flags(run, images / "a.png", out, "--text=x")) == 0
    assert mine.read_text() == "mine" and len(lines(out)) == 1


def test_a_folder_takes_one_prediction_at_a_time(
    run: Path, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    with Results(out) as first:
        assert predict.main(flags(run, images, out, "--text=x")) == 1
        with first.of("a.png") as one:
            one.lines.append({"id": "first"})
        assert predict.main(flags(run, images, out, "--text=x")) == 1
    start = f"error: {out}: another prediction (process {os.getpid()} on "
    assert [line.startswith(start) for line in errors(capsys)] == [True, True]
    assert [line["id"] for line in lines(out)] == ["first"]
    assert [path.name for path in out.iterdir()] == ["predictions.jsonl"]
    assert predict.main(flags(run, images, out, "--text=x")) == 0
    assert len(lines(out)) == 3


def test_results_that_would_replace_pictures_are_refused_before_anything_is_written(
    run: Path, images: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert predict.main(flags(run, images, images, "--text=x")) == 0
    there = {path.name: path.read_bytes() for path in images.iterdir()}
    # Its masks and overlays lie among the pictures now.
    assert predict.main(flags(run, images, images, "--text=x")) == 1
    (line,) = errors(capsys)
    assert line.startswith(
        f"error: {images}/a.png-0-mask.png: this picture has the name of a result"
    )
    assert {path.name: path.read_bytes() for path in images.iterdir()} == there
    # A single picture may have its results beside it.
    assert predict.main(flags(run, images / "a.png", images, "--text=x")) == 0


def test_sub_folders_have_their_results_in_sub_folders(
    run: Path, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (images / "sub").mkdir()
    save(images / "sub" / "a.png", 9)
    out = images / "out"
    assert predict.main(flags(run, images, out, "--text=x", "--recursive")) == 0
    names = [*NAMES, "sub/a.png"]
    assert [line["image"] for line in lines(out)] == names
    assert all((out / f"{name}-0-mask.png").is_file() for name in names)
    assert "note:" not in capsys.readouterr().err
    # Its own results are not entered.
    assert predict.main(flags(run, images, out, "--text=x", "--recursive")) == 0
    assert [line["image"] for line in lines(out)] == names
    assert predict.main(flags(run, images, tmp_path / "flat", "--text=x")) == 0
    said = capsys.readouterr().err
    # Where results go elsewhere, this is a folder as any.
    assert f"note: {images}/out and 1 more: not entered; --recursive enters sub-folders" in said


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
def test_texts_of_a_file_come_after_those_of_flags(
    encoding: str, run: Path, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file, out = tmp_path / "texts.txt", tmp_path / "out"
    texts = ["the red box", "红色", "a\u2028b", "the blue box"]
    file.write_bytes(
        "the red box\r\n \r\n红色\n\u00a0\u200b\na\u2028b\rthe blue box".encode(encoding)
    )
    more = ("--text=first", f"--expressions={file}")
    assert predict.main(flags(run, images / "a.png", out, *more)) == 0
    assert [line["expression"] for line in lines(out)] == ["first", *texts]
    assert f"warning: {file}:2 and 1 more: no word, skipped" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "no line has a word; write one text a line"),
        (b" \n\n", "no line has a word; write one text a line"),
        (b"\xff\xfea", "is damaged UTF-16"),
        ("a red box".encode("utf-16-le"), "is UTF-16 or no text, not UTF-8; save it as UTF-8"),
        (b"caf\xe9\n", "is not UTF-8"),
        (None, "No such file or directory; check --expressions"),
    ],
)
def test_a_file_of_texts_that_cannot_be_used_is_one_line(
    data: bytes | None,
    words: str,
    run: Path,
    images: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    file = tmp_path / "texts.txt"
    if data is not None:
        file.write_bytes(data)
    assert predict.main(flags(run, images, tmp_path / "out", f"--expressions={file}")) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: {file}: {words}")
    assert not (tmp_path / "out").exists()


def test_a_call_without_a_text_is_refused(
    run: Path, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as left:
        predict.main(flags(run, images, tmp_path / "out"))
    assert left.value.code == 2
    assert "give --text, or --expressions with a file of them" in capsys.readouterr().err


def test_many_texts_are_not_in_memory_together(
    run: Path, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []
    paint = Painter.__call__

    def counted(self: Painter, *arguments: Any, **options: Any) -> Any:
        asked.append(arguments[2])
        return paint(self, *arguments, **options)

    monkeypatch.setattr(Painter, "__call__", counted)
    texts = [f"--text=box {k}" for k in range(20)]
    assert predict.main(flags(run, images / "a.png", tmp_path / "out", *texts)) == 0
    assert asked == [8, 8, 4]
    assert len(lines(tmp_path / "out")) == 20
