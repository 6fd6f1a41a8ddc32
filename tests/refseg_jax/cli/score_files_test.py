"""Files of lines for `tools.score` as people have them: encodings, units, forms, names of maps."""

import codecs
import io
import json
import re
import signal
import unicodedata
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from refseg_jax.cli import score
from refseg_jax.evaluation.predictions import encode
from refseg_jax.evaluation.protocols import State

HEIGHT, WIDTH = 480, 640
#: A box in pixels.
BOX = (128, 96, 320, 240)


def polygon(*, whole: float | None = None, box: tuple[float, ...] = BOX) -> list[list[float]]:
    """A box as a polygon, in pixels or in parts of `whole`."""
    x0, y0, x1, y1 = box
    sides = (1.0, 1.0) if whole is None else (WIDTH / whole, HEIGHT / whole)
    corners = (x0, y0, x1, y0, x1, y1, x0, y1)
    return [[value / sides[k % 2] for k, value in enumerate(corners)]]


def mask(box: tuple[int, ...] = BOX) -> np.ndarray:
    drawn = np.zeros((HEIGHT, WIDTH), bool)
    drawn[box[1] : box[3], box[0] : box[2]] = True
    return drawn


def write(folder: Path, *references: Any, prediction: Any = None, **fields: Any) -> list[str]:
    """Writes both files; returns the command line."""
    predicted = encode(mask()) if prediction is None else prediction
    lines = {
        "P": [{"id": n, "segmentation": predicted, **fields} for n in range(len(references))],
        "R": [{"id": n, "segmentation": r} for n, r in enumerate(references)],
    }
    for name, of_file in lines.items():
        text = "".join(json.dumps(line) + "\n" for line in of_file)
        (folder / f"{name}.jsonl").write_text(text, encoding="utf-8")
    return arguments(folder)


def arguments(folder: Path, protocol: str = "cris") -> list[str]:
    files = (f"--predictions={folder / 'P.jsonl'}", f"--references={folder / 'R.jsonl'}")
    return [f"--protocol={protocol}", *files, f"--json={folder / 'out.json'}"]


def scored(folder: Path, command: list[str]) -> dict[str, float]:
    assert score.main(command) == 0
    return json.loads((folder / "out.json").read_text())


def refused(command: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    assert score.main(command) == 1
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    return error


def test_byte_order_marks_are_no_part_of_the_lines(tmp_path: Path):
    command = write(tmp_path, polygon(), polygon())
    expected = scored(tmp_path, command)
    for name in ("P", "R"):
        path = tmp_path / f"{name}.jsonl"
        marked = [codecs.BOM_UTF8 + line for line in path.read_bytes().splitlines(True)]
        # As of files that were joined, with a blank line.
        path.write_bytes(b"".join([*marked, codecs.BOM_UTF8 + b"\r\n"]))
    assert scored(tmp_path, command) == expected


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be", "utf-32", "latin-1"])
@pytest.mark.parametrize("name", ["P", "R"])
def test_other_encodings_are_told_with_the_cure(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], encoding: str, name: str
):
    command = write(tmp_path, polygon())
    path = tmp_path / f"{name}.jsonl"
    path.write_bytes(path.read_text().replace('{"id"', '{"ü": 1, "id"').encode(encoding))
    error = refused(command, capsys)
    assert error.startswith(f"error: {path}:1: is ")
    assert "UTF-8; save it as UTF-8" in error or "is not UTF-8" in error


def test_references_in_other_units_are_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    pixels = polygon()
    assert scored(tmp_path, write(tmp_path, pixels))["oIoU"] == pytest.approx(1, abs=0.01)
    for references, line, said in (
        ([polygon(whole=1)], 1, "its coordinates are shares of the picture (0..1), not pixels"),
        ([pixels, polygon(whole=1)], 2, "multiply x by 640 and y by 480"),
        # The whole picture, and its right half: each alone could be small and in pixels.
        ([polygon(whole=1, box=(0, 0, WIDTH, HEIGHT))], 1, "shares"),
        ([polygon(whole=100, box=(320, 0, WIDTH, HEIGHT))], 1, "per cent (0..100), not pixels"),
    ):
        error = refused(write(tmp_path, *references), capsys)
        assert error.startswith(f"error: {tmp_path / 'R.jsonl'}:{line}: ")
        assert said in error


def test_small_references_in_pixels_are_scored(tmp_path: Path):
    corner = polygon(box=(0, 0, 1, 1))
    scores = scored(tmp_path, write(tmp_path, corner, polygon(), prediction=encode(mask())))
    assert scores["mIoU"] == pytest.approx(0.5, abs=0.01)
    assert scored(tmp_path, write(tmp_path, polygon(box=(20, 14, 60, 50))))["oIoU"] == 0


@pytest.mark.parametrize(
    ("prediction", "said"),
    [
        ({"size": [HEIGHT, WIDTH], "counts": str(b"PX2")}, "Python's way of printing bytes"),
        ({"size": [HEIGHT, WIDTH], "counts": "300000 7200"}, "numbers in a text; write"),
        ({"size": [HEIGHT, WIDTH], "counts": [300_000.0, 7200]}, "a decimal point; write"),
        ({"size": [HEIGHT, WIDTH], "counts": [10**400]}, "do not fill"),
        ({"size": [10**400, WIDTH], "counts": []}, "pixels; there are"),
        (polygon(), '"segmentation" is no RLE'),
    ],
)
def test_forms_of_other_tools_in_predictions(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], prediction: Any, said: str
):
    error = refused(write(tmp_path, polygon(), prediction=prediction), capsys)
    assert error.startswith(f"error: {tmp_path / 'P.jsonl'}:1: ")
    assert said in error


@pytest.mark.parametrize(
    ("reference", "said"),
    [
        (polygon()[0], "a flat list of numbers; write"),
        (
            [polygon()[0][:2], polygon()[0][2:4], polygon()[0][4:6]],
            "a list of points .x, y.; write",
        ),
        ({"size": [WIDTH, HEIGHT], "counts": [HEIGHT * WIDTH]}, 'its "size" as .width, height.'),
        ([[10**400, 1, 2, 3, 4, 5]], "outside of the image"),
    ],
)
def test_forms_of_other_tools_in_references(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], reference: Any, said: str
):
    error = refused(write(tmp_path, reference), capsys)
    assert error.startswith(f"error: {tmp_path / 'R.jsonl'}:1: ")
    assert re.search(said, error), error


def test_empty_runs_change_no_score(tmp_path: Path):
    flat = np.diff(np.flatnonzero(np.diff(mask().T.ravel(), prepend=False, append=True)), prepend=0)
    runs = [int(run) for run in flat]
    assert sum(runs) == HEIGHT * WIDTH
    split = [runs[0] - 5, 0, 5, *runs[1:-1], runs[-1], 0]
    size = [HEIGHT, WIDTH]
    plain = scored(tmp_path, write(tmp_path, polygon(), prediction={"size": size, "counts": runs}))
    for reference in (polygon(), {"size": size, "counts": split}):
        command = write(tmp_path, reference, prediction={"size": size, "counts": split})
        assert scored(tmp_path, command) == plain


def grey() -> bytes:
    buffer = io.BytesIO()
    Image.fromarray((255 * mask()).astype(np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


def test_maps_lie_beside_the_predictions(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    folder = tmp_path / "own"
    (folder / "maps").mkdir(parents=True)
    decomposed = unicodedata.normalize("NFD", "tür")
    (folder / "maps" / f"{decomposed}.png").write_bytes(grey())
    (folder / "link.png").symlink_to(folder / "maps" / f"{decomposed}.png")
    (tmp_path / "other.png").write_bytes(grey())
    command = [*arguments(folder, "sod")]
    for name in ("maps/tür.png", "maps\\tür.png", "./maps/tür.png", "link.png"):
        write(folder, polygon(), map=name)
        assert scored(folder, command)["MAE"] < 1
    for name in ("../other.png", str(tmp_path / "other.png"), "maps\\..\\..\\other.png"):
        write(folder, polygon(), map=name)
        assert "P.jsonl:1: " in (error := refused(command, capsys))
        assert "put it beside the predictions" in error or "No such file" in error


def test_a_flipped_bit_in_a_map_is_found(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    data = bytearray(grey())
    data[data.index(b"IDAT") + 60] ^= 1
    (tmp_path / "a.png").write_bytes(data)
    write(tmp_path, polygon(), map="a.png")
    error = refused(arguments(tmp_path, "sod"), capsys)
    assert "the map cannot be read: the checksum of its chunk IDAT is wrong" in error


@pytest.mark.parametrize("name", ["P.jsonl", "R.jsonl"])
def test_scores_do_not_replace_what_they_are_made_of(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    command = write(tmp_path, polygon())
    before = (tmp_path / name).read_bytes()
    (tmp_path / "link.json").symlink_to(tmp_path / name)
    for output in (tmp_path / name, tmp_path / "link.json"):
        assert score.main([*command, f"--json={output}"]) == 1
        flag = {"P.jsonl": "--predictions", "R.jsonl": "--references"}[name]
        said = f"error: --json={output}: is the file of {flag}; name another\n"
        assert capsys.readouterr() == ("", said)
    assert (tmp_path / name).read_bytes() == before


def test_a_signal_ends_it_with_one_line_and_no_scores(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    command = write(tmp_path, polygon(), polygon())
    add, scores = State.add, tmp_path / "scores.json"

    def interrupted(self: State, *arguments: Any) -> None:
        add(self, *arguments)
        signal.raise_signal(signal.SIGTERM)

    monkeypatch.setattr(State, "add", interrupted)
    assert score.main([*command, f"--json={scores}"]) == 143
    assert capsys.readouterr() == ("", "stopped by SIGTERM\n")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["P.jsonl", "R.jsonl"]
