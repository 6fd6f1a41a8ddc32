"""Reads the frames of a video: a folder of pictures, or a file that OpenCV decodes."""

import functools
import io
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple, Protocol

# FFmpeg would print what it thinks of a file; errors here are one line.
os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")

import cv2
from PIL import Image

from refseg_jax.cli.pictures import Picture, find_pictures
from refseg_jax.errors import UserError
from refseg_jax.images.decoding import MAX_PIXELS, Decoded, ImageError
from refseg_jax.images.files import check_regular, read_file
from refseg_jax.images.kinds import HEAD, VIDEO, kind_of
from refseg_jax.images.orientation import exif_orientation
from refseg_jax.prediction.pictures import read_picture

#: Frames a second of a folder: Ref-YouTube-VOS annotates every fifth frame of 30.
FOLDER_RATE = 6.0

#: Least and largest number of frames a second that OpenCV writes.
RATES = (0.01, 1000.0)


class Frame(NamedTuple):
    """A frame of a video.

    Attributes:
        name: unique in the video.
        read: decodes it, only until the next frame is asked for; raises an `ImageError` if it is
            damaged.
    """

    name: str
    read: Callable[[], Decoded]


class Video(Protocol):
    """The frames of a video; it can be read several times.

    Attributes:
        rate: frames a second.
        notes: lines to print once, without `error: ` or `note: `.
        problems: number of files beside the frames that should be frames and cannot be used.
        files: the files that are read.
    """

    rate: float
    notes: list[str]
    problems: int
    files: list[Path]

    def __iter__(self) -> Iterator[Frame]:
        """The frames, in order."""
        ...


def open_video(path: Path, max_pixels: int = MAX_PIXELS) -> Video:
    """Opens a folder of frames or a video file.

    Args:
        path: the folder or the file.
        max_pixels: bound on height times width of a picture of a folder.

    Raises:
        UserError: there is no such path, no frame in it, the frames of a folder are of different
            sizes or share a name, or OpenCV cannot open the file.
    """
    if path.is_dir():
        return FolderVideo(path, max_pixels)
    if not path.exists():
        raise UserError(f"{path}: no such file or folder; name a video with --video")
    return FileVideo(path)


class FolderVideo:
    """The pictures of a folder, in the order of the numbers in their names; see `Video`."""

    def __init__(self, folder: Path, max_pixels: int = MAX_PIXELS) -> None:
        """Lists the pictures and compares their sizes, by their headers."""
        found = find_pictures(folder, recursive=None)
        self.rate, self._max_pixels = FOLDER_RATE, max_pixels
        self.notes = [*(f"error: {e}" for e in found.errors), *(f"note: {n}" for n in found.notes)]
        self.problems = found.unusable
        self._pictures = sorted(found.pictures, key=_in_order)
        if not self._pictures:
            raise UserError(f"{folder}: no frames (pictures) in this folder; name another --video")
        self.files = [picture.path for picture in self._pictures]
        _check_names(self._pictures)
        _check_sizes(self._pictures)

    def __iter__(self) -> Iterator[Frame]:
        """See `Video`."""
        for picture in self._pictures:
            read = functools.partial(read_picture, picture.path, max_pixels=self._max_pixels)
            yield Frame(Path(picture.name).stem, read)


class FileVideo:
    """A video file; see `Video`. Its frames are named by their numbers, `000000`, `000001`, ..."""

    def __init__(self, path: Path) -> None:
        """Checks that the file is a video and that OpenCV decodes it."""
        silence_opencv()
        self._path = path
        _check_is_video(path)
        stream = self._open()
        rate = stream.get(cv2.CAP_PROP_FPS)
        self._stated = int(stream.get(cv2.CAP_PROP_FRAME_COUNT))
        some = stream.grab()
        stream.release()
        if not some:
            raise UserError(f"{path}: no frame of this video can be read; save it again as MP4")
        self.rate = float(rate) if RATES[0] <= rate < RATES[1] else FOLDER_RATE
        self.notes: list[str] = []
        self.problems, self.files = 0, [path]

    def __iter__(self) -> Iterator[Frame]:
        """See `Video`. Where the file ends early, the last frame is one that cannot be read."""
        stream, number, reached = self._open(), 0, 0.0
        rate = stream.get(cv2.CAP_PROP_FPS)
        try:
            while stream.grab():
                reached = stream.get(cv2.CAP_PROP_POS_MSEC) / 1000.0
                name = f"{number:06d}"
                yield Frame(name, functools.partial(self._decoded, stream, name))
                number += 1
        finally:
            stream.release()
        # Some formats state no number of frames, or one that is off by one. Of others, OpenCV takes the
        # duration times the rate, which are more frames than there are where their distances vary.
        if max(number, reached * rate + 1.0) < self._stated - 1:
            yield Frame(f"{number:06d}", functools.partial(self._ended, number))

    def _open(self) -> cv2.VideoCapture:
        # The resolved path, which no protocol of FFmpeg can be read into.
        stream = cv2.VideoCapture(str(self._path.resolve()), cv2.CAP_FFMPEG)
        if not stream.isOpened():
            raise UserError(
                f"{self._path}: damaged, or in a codec that OpenCV {cv2.__version__} does not decode; "
                "save it again as MP4 (H.264), or give a folder of its frames"
            )
        return stream

    def _decoded(self, stream: cv2.VideoCapture, name: str) -> Decoded:
        done, frame = stream.retrieve()
        if not done or frame is None:
            raise ImageError(f"{self._path}: frame {name} is damaged; save the video again")
        return Decoded(cv2.cvtColor(frame, cv2.COLOR_BGR2RGB), False, ())

    def _ended(self, number: int) -> Decoded:
        raise ImageError(
            f"{self._path}: ends after {number} of {self._stated} frames; it was cut off, or is damaged "
            "there"
        )


def silence_opencv() -> None:
    """OpenCV would print what it thinks of a file; errors here are one line."""
    cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)


def _check_is_video(path: Path) -> None:
    """By content: FFmpeg also reads lists that name other files, and addresses."""
    try:
        check_regular(path)
        with path.open("rb") as file:
            kind = kind_of(file.read(HEAD))
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}; name a video with --video") from None
    if kind is None or kind.name != VIDEO:
        what = "is no video" if kind is None else f"is {kind.name}, no video"
        cure = "; name a picture with --image" if kind is not None and kind.is_picture else ""
        raise UserError(f"{path}: {what} (MP4, MOV, AVI, MKV or WebM){cure}")


def _in_order(picture: Picture) -> tuple[list[tuple[int, int, str]], str]:
    """Sorts `2.jpg` before `10.jpg`."""
    parts = re.split(r"(\d+)", picture.name)
    key = [(1, int(part), "") if part.isdecimal() else (0, 0, part) for part in parts]
    return key, picture.name


def _check_names(pictures: list[Picture]) -> None:
    seen: dict[str, str] = {}
    for picture in pictures:
        # Masks are named by the frame without its suffix, and some file systems fold capitals.
        first = seen.setdefault(Path(picture.name).stem.casefold(), picture.name)
        if first != picture.name:
            raise UserError(
                f"{picture.path}: {first} has the same name without its suffix; leave one of them out"
            )


def _check_sizes(pictures: list[Picture]) -> None:
    first: tuple[str, tuple[int, int]] | None = None
    for picture in pictures:
        size = _stated_size(picture.path)
        if size is None:
            continue
        if first is None:
            first = picture.name, size
        elif size != first[1]:
            raise UserError(
                f"{picture.path}: is {size[0]} x {size[1]}, {first[0]} is {first[1][0]} x {first[1][1]} "
                "(width x height); the frames of a video have one size: use --image for a folder of "
                "pictures"
            )


def _stated_size(path: Path) -> tuple[int, int] | None:
    """Width and height as a person sees them, by the header; `None` where that is damaged."""
    try:
        with Image.open(io.BytesIO(read_file(path))) as image:
            turned = exif_orientation(image.info.get("exif", b"")) >= 5
            width, height = image.size
            return (height, width) if turned else (width, height)
    except Exception:  # Pillow raises many types of errors; reading the frame tells which.
        return None
