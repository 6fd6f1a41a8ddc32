"""Writes the results of a prediction, picture by picture."""

import contextlib
import io
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from refseg_jax.errors import UserError
from refseg_jax.storage.locks import exclusive

#: What was asked in a folder: a call that asks the same goes on with its lines.
RECORD = "predictions.json"

_LINES, _LOCK = "predictions.jsonl", "predictions.lock"


class Results:
    """The output folder of a prediction.

    What belongs to one picture is there completely, or not at all. `predictions.jsonl` grows by the
    lines of one picture at a time, so that a run that is killed leaves those of all pictures before.
    The folder is locked meanwhile: two predictions would replace each other's results.

    Use it as a context manager.

    Attributes:
        folder: the folder.
        done: names of the pictures that a call has finished which asked the same.
        begun: when that call began, in seconds since 1970; infinite without one.
    """

    def __init__(
        self,
        folder: Path,
        asked: Mapping[str, Any] | None = None,
        lines_of: Mapping[str, int] | None = None,
    ) -> None:
        """Makes the folder, and removes the files of an earlier call that are about all pictures.

        Args:
            folder: the folder.
            asked: JSON values that tell what is predicted, and by what. If an earlier call asked the
                same, its lines stay. `None`: no call goes on with another's.
            lines_of: name of a picture -> the number of its lines, which tells a whole one.

        Raises:
            UserError: the path is a file or lies below one, or another prediction writes there.
            OSError: nothing can be written there.
        """
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except (FileExistsError, NotADirectoryError):
            raise UserError(f"{folder}: not a folder; name another --output_dir") from None
        self.folder = folder
        with contextlib.ExitStack() as held:
            held.enter_context(exclusive(folder / _LOCK, self._busy))
            sheets = [p for p in folder.glob("sheet-*.png") if p.stem[6:].isdecimal()]
            goes_on = asked is not None and self._asked_before(asked)
            kept = () if goes_on else (folder / _LINES, folder / RECORD)
            for path in (*kept, folder / "matches.jsonl", folder / "coco.json", *sheets):
                path.unlink(missing_ok=True)
            self.begun = (folder / RECORD).stat().st_mtime if goes_on else math.inf
            if asked is not None and not goes_on:
                write_json(folder / RECORD, asked)
            # Without a buffer, so that lines are in the file as soon as they are written.
            self._lines = held.enter_context((folder / _LINES).open("ab", buffering=0))
            self.done = self._resume(lines_of or {})
            self._held = held.pop_all()

    def _asked_before(self, asked: Mapping[str, Any]) -> bool:
        lines = self.folder / _LINES
        # A link may lead to a file of the user's.
        if not lines.is_file() or lines.is_symlink():
            return False
        try:
            known = json.loads((self.folder / RECORD).read_bytes())
        except (OSError, ValueError, RecursionError):
            return False
        return known == json.loads(json.dumps(asked))

    def _resume(self, lines_of: Mapping[str, int]) -> set[str]:
        """The pictures with all their lines; cuts off what a killed call has left of its last."""
        groups: list[tuple[str, int, int]] = []  # Name, number of lines, end in bytes.
        end = 0
        with (self.folder / _LINES).open("rb") as file:
            for line in file:
                name = _image_of(line)
                if name is None:
                    break
                end += len(line)
                number = 1
                if groups and groups[-1][0] == name:
                    number += groups.pop()[1]
                groups.append((name, number, end))
        if groups and groups[-1][1] < lines_of.get(groups[-1][0], 0):
            groups.pop()
        self._lines.truncate(groups[-1][2] if groups else 0)
        self._lines.seek(0, io.SEEK_END)
        return {name for name, *_ in groups}

    def read(self) -> Iterator[dict[str, Any]]:
        """All lines that are written, those of the call before included."""
        with (self.folder / _LINES).open() as file:
            yield from map(json.loads, file)

    def __enter__(self) -> "Results":
        return self

    def __exit__(self, kind: object, *exception: object) -> None:
        with self._held:
            # A call that failed before its first picture leaves nothing.
            if kind is not None and not self._lines.tell():
                for name in (_LINES, RECORD):
                    (self.folder / name).unlink(missing_ok=True)

    def _busy(self, who: str) -> UserError:
        return UserError(
            f"{self.folder}: another prediction ({who}) writes there; wait until that has ended, or "
            "name another --output_dir"
        )

    @contextlib.contextmanager
    def of(self, name: str) -> Iterator["PictureResults"]:
        """The results of a picture; if the block raises an exception, they are removed.

        Args:
            name: of the picture, with `/` after sub-folders.
        """
        results = PictureResults(self.folder / name)
        try:
            yield results
            append_lines(self._lines, results.lines)
        except BaseException:
            results.remove()
            raise


class PictureResults:
    """The results of one picture.

    Attributes:
        lines: its lines of `predictions.jsonl`.
    """

    def __init__(self, start: Path) -> None:
        """Prepares to write files whose paths begin with `start`."""
        self.lines: list[dict[str, Any]] = []
        self._start = start
        self._written: list[Path] = []

    def save(self, what: str, pixels: np.ndarray) -> None:
        """Writes `<start>-<what>.png`, complete or not at all."""
        path = self._start.with_name(f"{self._start.name}-{what}.png")
        write_png(path, pixels)
        self._written.append(path)

    def remove(self) -> None:
        """Removes what has been written."""
        for path in self._written:
            path.unlink(missing_ok=True)


def _image_of(line: bytes) -> str | None:
    """The picture of a line; `None` if the line is not whole."""
    if not line.endswith(b"\n"):
        return None
    try:
        return str(json.loads(line)["image"])
    except (ValueError, TypeError, KeyError):
        return None


def append_lines(file: io.FileIO, lines: Sequence[Mapping[str, Any]]) -> None:
    """Appends whole lines of JSON to an unbuffered file, or none."""
    data = memoryview("".join(json.dumps(line) + "\n" for line in lines).encode())
    start = file.tell()
    try:
        while data:
            data = data[file.write(data) :]
    except BaseException:
        file.truncate(start)
        file.seek(start)
        raise


def write_json(path: Path, values: Mapping[str, Any]) -> None:
    """Writes a JSON object, complete or not at all."""
    partial = path.with_name(f".{path.name}.partial")
    try:
        partial.write_text(json.dumps(values, indent=1) + "\n")
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def write_png(path: Path, pixels: np.ndarray) -> None:
    """Writes a PNG and the folders that it lies in; complete or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    # Short, as the name of the picture may have almost the length that is allowed.
    partial = path.with_name(".partial")
    try:
        Image.fromarray(pixels).save(partial, "PNG")
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
