"""Masks of video frames as files, written so that the same command goes on where it was stopped."""

import contextlib
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from refseg_jax.cli.results import append_lines, write_json, write_png
from refseg_jax.errors import UserError
from refseg_jax.storage import buckets
from refseg_jax.storage.hub import model_folder
from refseg_jax.storage.locks import exclusive

_LOCK = "predictions.lock"

#: Results that a folder without a record must not have.
_OWN = ("Annotations", "masks", "overlay.mp4", "predictions.jsonl")


class MaskFiles:
    """The masks of one video, `<folder>/<expression>/<frame>.png`: 8 bits, 0 or 255."""

    def __init__(self, folder: Path, expressions: Sequence[str]) -> None:
        """Prepares to write.

        Args:
            folder: where the masks go.
            expressions: name of each expression's folder.
        """
        self._folders = [folder / name for name in expressions]

    @property
    def count(self) -> int:
        """Number of expressions."""
        return len(self._folders)

    def has(self, frame: str) -> bool:
        """Whether all masks of a frame are there; each file is complete or not there."""
        return all((folder / f"{frame}.png").is_file() for folder in self._folders)

    def write(self, frame: str, masks: Sequence[np.ndarray]) -> None:
        """Writes the masks of a frame, bool `[H, W]`."""
        for folder, mask in zip(self._folders, masks, strict=True):
            write_png(folder / f"{frame}.png", mask.astype(np.uint8) * 255)

    def read(self, frame: str) -> list[np.ndarray]:
        """The masks of a frame, bool `[H, W]`."""
        masks = []
        for folder in self._folders:
            with Image.open(folder / f"{frame}.png") as image:
                masks.append(np.asarray(image) > 0)
        return masks


class FrameLines:
    """`predictions.jsonl` of a video, to which the lines of a frame are appended at once.

    Use it as a context manager.
    """

    def __init__(self, path: Path, expressions: int) -> None:
        """Opens the file, without what a killed run has left of its last frame."""
        self.frames: set[str] = set()
        sound = 0
        lines = path.read_bytes().splitlines(keepends=True) if path.exists() else []
        for start in range(0, len(lines), expressions):
            of_frame = lines[start : start + expressions]
            if len(of_frame) < expressions or not of_frame[-1].endswith(b"\n"):
                break
            self.frames.add(_image_of(of_frame[0], path))
            sound += sum(map(len, of_frame))
        self._file = path.open("ab", buffering=0)
        self._file.truncate(sound)
        self._file.seek(sound)

    def __enter__(self) -> "FrameLines":
        return self

    def __exit__(self, *exception: object) -> None:
        self._file.close()

    def add(self, frame: str, lines: Sequence[Mapping[str, Any]]) -> None:
        """Appends the lines of a frame, or none."""
        append_lines(self._file, lines)
        self.frames.add(frame)


def _image_of(line: bytes, path: Path) -> str:
    try:
        return str(json.loads(line)["image"])
    except (ValueError, TypeError, KeyError):
        raise UserError(
            f"{path}: a line of it is damaged; delete the folder, or name another --output_dir"
        ) from None


@contextlib.contextmanager
def going_on(folder: Path, record: str, asked: Mapping[str, Any]) -> Iterator[None]:
    """Holds an output folder; another call with the same questions goes on with its results.

    Args:
        folder: the output folder, which is made.
        record: name of the file in it that keeps `asked`.
        asked: JSON values that tell what is predicted, and by what.

    Raises:
        UserError: the folder has the results of another call, or another process writes there.
        OSError: nothing can be written there.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError):
        raise UserError(f"{folder}: not a folder; name another --output_dir") from None

    def busy(who: str) -> UserError:
        return UserError(
            f"{folder}: another prediction ({who}) writes there; wait until that has ended, or name "
            "another --output_dir"
        )

    with exclusive(folder / _LOCK, busy):
        _check_record(folder, record, json.loads(json.dumps(asked)))
        yield


def _check_record(folder: Path, record: str, asked: Mapping[str, Any]) -> None:
    path = folder / record
    if path.exists():
        try:
            known = json.loads(path.read_text())
        except ValueError:
            known = None
        if known == asked:
            return
        changed = [k for k, v in asked.items() if not isinstance(known, dict) or known.get(k) != v]
        raise UserError(
            f"{folder}: has the results of another call (other {', '.join(changed) or 'settings'}); "
            "delete it, or name another --output_dir"
        )
    others = sorted(p.name for p in folder.iterdir() if p.name in _OWN)
    if others:
        raise UserError(
            f"{folder}: {others[0]} of another call is there; delete it, or name another --output_dir"
        )
    write_json(path, asked)


def identity(checkpoint: str, step: str) -> dict[str, Any]:
    """What tells a checkpoint from a later one at the same place, for `going_on`.

    Returns:
        The path, the choice of the step, and each manifest's path, size and time of writing.
    """
    path = model_folder(checkpoint)
    found = {
        str(file.relative_to(path)): writing(file)
        for pattern in ("manifest.json", "*/manifest.json", "*/*/manifest.json")
        for file in path.glob(pattern)
    }
    whole = path if buckets.is_remote(path) else path.resolve()
    return {"path": str(whole), "step": step, "manifests": found}


def writing(file: Path) -> list[int]:
    """Size of a file in bytes, and time of its writing in ns or its version in a bucket."""
    if buckets.is_remote(file):
        ((_, *found),) = buckets.versions(file.parent, file.name)
        return found
    stat = file.stat()
    return [stat.st_size, stat.st_mtime_ns]


def check_apart(source: Path, out: Path) -> None:
    """Checks that no result can replace a frame or a video of the call.

    Raises:
        UserError: the source lies in the output folder.
    """
    if source.resolve() == out.resolve() or source.resolve().is_relative_to(out.resolve()):
        raise UserError(
            f"{source}: lies in --output_dir={out}, whose results might replace it; name another "
            "--output_dir"
        )
