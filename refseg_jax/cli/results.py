"""Writes the results of a prediction, picture by picture."""

import contextlib
import io
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from refseg_jax.errors import UserError
from refseg_jax.storage.locks import exclusive

_LINES, _LOCK = "predictions.jsonl", "predictions.lock"


class Results:
    """The output folder of a prediction.

    What belongs to one picture is there completely, or not at all. `predictions.jsonl` grows by the
    lines of one picture at a time, so that a run that is killed leaves those of all pictures before.
    The folder is locked meanwhile: two predictions would replace each other's results.

    Use it as a context manager.
    """

    def __init__(self, folder: Path) -> None:
        """Makes the folder, and removes the files of an earlier call that are about all pictures.

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
            for path in (folder / _LINES, folder / "matches.jsonl", *sheets):
                path.unlink(missing_ok=True)
            # Without a buffer, so that lines are in the file as soon as they are written.
            self._lines = held.enter_context((folder / _LINES).open("xb", buffering=0))
            self._held = held.pop_all()

    def __enter__(self) -> "Results":
        return self

    def __exit__(self, kind: object, *exception: object) -> None:
        with self._held:
            # A call that failed before its first picture leaves nothing.
            if kind is not None and not self._lines.tell():
                (self.folder / _LINES).unlink(missing_ok=True)

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
