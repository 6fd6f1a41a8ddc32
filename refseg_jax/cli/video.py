"""Predicts the masks of a video, frame by frame; see `refseg_jax.cli.predict`."""

import argparse
import contextlib
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

import cv2
import numpy as np
from tqdm import tqdm

from refseg_jax.cli.command_line import error_line
from refseg_jax.cli.frames import Frame, open_video, silence_opencv
from refseg_jax.cli.mask_files import (
    FrameLines,
    MaskFiles,
    check_apart,
    going_on,
    identity,
    writing,
)
from refseg_jax.cli.pairs import line_of
from refseg_jax.cli.pictures import costing_itself
from refseg_jax.cli.predictors import open_predictor, tiles_of
from refseg_jax.cli.texts import warn_of_cut
from refseg_jax.errors import UserError, escaped
from refseg_jax.images.decoding import Decoded, ImageError
from refseg_jax.images.drawing import draw_regions
from refseg_jax.prediction.painting import Prediction
from refseg_jax.prediction.predictor import Predictor, Words
from refseg_jax.prediction.tiles import Tiles

#: Files of the output folder.
RECORD, LINES, OVERLAY, MASKS = "video.json", "predictions.jsonl", "overlay.mp4", "masks"


class Notes:
    """Prints each note of decoded frames once."""

    def __init__(self) -> None:
        self._known: set[str] = set()

    def __call__(self, decoded: Decoded, name: str) -> None:
        """Prints what is new of a frame."""
        for note in decoded.notes:
            if note not in self._known:
                line = f"warning: {note} (first: {escaped(name)})"
                tqdm.write(line, file=sys.stderr)
                self._known.add(note)


def run_video(options: argparse.Namespace, texts: Sequence[str]) -> int:
    """Predicts all frames; returns the number of frames that could not be used."""
    video, out = open_video(options.video, options.max_pixels), options.output_dir
    for source in (options.video, *video.files):
        check_apart(source, out)
    for note in video.notes:
        print(escaped(note), file=sys.stderr)
    if not options.no_overlay:
        check_writer()
    predictor, tiles = open_predictor(options), tiles_of(options)
    warn_of_cut(predictor.cut_short(texts))
    asked = {
        "video": str(options.video.resolve()),
        # Frames of a folder may be put back, and frames that failed are then repeated.
        "content": None if options.video.is_dir() else writing(options.video),
        "texts": list(texts),
        **{name: getattr(options, name) for name in ("maps", "tile", "overlap")},
        "thresholds": predictor.thresholds.as_json(),
        "checkpoint": identity(options.checkpoint, options.step),
    }
    masks = MaskFiles(out / MASKS, [str(k) for k in range(len(texts))])
    with going_on(out, RECORD, asked), FrameLines(out / LINES, len(texts)) as lines:
        done = lambda name: name in lines.frames and masks.has(name)  # noqa: E731
        write = _Writer(masks, lines, texts, options.maps)
        words = predictor.words(texts)
        before, bad = len(lines.frames), video.problems
        bad += predict_frames(video, predictor, words, done, write, maps=options.maps, tiles=tiles)
        used = len(lines.frames)
        if used and not options.no_overlay:
            rate = options.fps or video.rate
            write_overlay(out / OVERLAY, (f for f in video if done(f.name)), masks.read, rate)
        _tell_found(texts, masks, filter(masks.has, lines.frames))
    went_on = f" ({before} of an earlier call)" if before else ""
    skipped = f"; {bad} could not be used" if bad else ""
    print(f"{escaped(str(out))}: frames: {used}{went_on}, texts: {len(texts)}{skipped}")
    return bad


def _tell_found(texts: Sequence[str], masks: MaskFiles, frames: Iterable[str]) -> None:
    """Prints in how many frames each text has a mask, those of earlier calls included."""
    total, found = 0, [0] * len(texts)
    for frame in frames:
        total += 1
        for k, mask in enumerate(masks.read(frame)):
            found[k] += bool(mask.any())
    for text, number in zip(texts, found, strict=True):
        print(f"{escaped(text)}: in {number} of {total} frames")


class _Writer:
    """Writes the masks and lines of a frame."""

    def __init__(
        self, masks: MaskFiles, lines: FrameLines, texts: Sequence[str], maps: bool
    ) -> None:
        self._masks, self._lines, self._texts, self._maps = masks, lines, texts, maps

    def __call__(self, frame: str, answers: Sequence[Prediction]) -> None:
        self._masks.write(frame, [one.mask for one in answers])
        if frame not in self._lines.frames:
            self._lines.add(
                frame,
                [
                    line_of(f"{frame}#{k}", frame, text, one)
                    for k, (text, one) in enumerate(zip(self._texts, answers, strict=True))
                ],
            )


def predict_frames(
    frames: Iterable[Frame],
    predictor: Predictor,
    words: Words,
    done: Callable[[str], bool],
    write: Callable[[str, list[Prediction]], None],
    *,
    maps: bool = False,
    tiles: Tiles | None = None,
    progress: bool = True,
) -> int:
    """Predicts frames that are not done; a frame that fails costs itself alone, with an error.

    Args:
        frames: the frames.
        predictor, words: the model, and the expressions that it has encoded.
        done: whether the frame of a name needs nothing.
        write: writes the predictions of a frame.
        maps: whether the predictions have soft maps.
        tiles: cuts frames that are larger.
        progress: whether to show a progress bar.

    Returns:
        The number of frames that failed.
    """
    note, bad = Notes(), 0
    for frame in tqdm(frames, unit="frame", disable=None if progress else True):
        if done(frame.name):
            continue
        try:
            with costing_itself(f"frame {frame.name}"):
                decoded = frame.read()
                note(decoded, frame.name)
                answers = predictor.predict_words(decoded.pixels, words, maps=maps, tiles=tiles)
                write(frame.name, list(answers))
        except ImageError as error:
            tqdm.write(error_line(error), file=sys.stderr)
            bad += 1
    return bad


def check_writer() -> None:
    """Checks that OpenCV can write the overlay.

    Raises:
        UserError: it lacks the codec.
    """
    silence_opencv()
    if not cv2.videoio_registry.hasBackend(cv2.CAP_FFMPEG):
        raise UserError(
            f"OpenCV {cv2.__version__} has no FFmpeg here, so that it cannot write mp4v videos; pip "
            "install opencv-python-headless, or leave the overlay out with --no_overlay"
        )


def write_overlay(
    path: Path, frames: Iterable[Frame], masks: Callable[[str], Sequence[np.ndarray]], rate: float
) -> None:
    """Writes a video of the frames with outlined masks; complete or not at all.

    The codec is MPEG-4 part 2 (`mp4v`), which wants even sides: the last row or column of an odd one
    is repeated.

    Args:
        path: the video, `.mp4`.
        frames: the frames, which share one size; others are left out.
        masks: name of a frame -> its masks, bool `[H, W]`.
        rate: frames a second.

    Raises:
        UserError: OpenCV cannot write it.
    """
    partial = path.with_name(f".partial{path.suffix}")
    writer: cv2.VideoWriter | None = None
    first: tuple[int, ...] = ()
    try:
        for frame, drawn in _drawn(frames, masks):
            if writer is None:
                first = drawn.shape
                code = cv2.VideoWriter.fourcc(*"mp4v")
                side = (drawn.shape[1], drawn.shape[0])
                writer = cv2.VideoWriter(str(partial), cv2.CAP_FFMPEG, code, rate, side)
                if not writer.isOpened():
                    raise UserError(
                        f"{path}: OpenCV {cv2.__version__} cannot write mp4v (MPEG-4) of {side[0]} x "
                        f"{side[1]}; the masks are there: pip install opencv-python-headless, or leave "
                        "the overlay out with --no_overlay"
                    )
            if drawn.shape != first:
                line = f"warning: {escaped(frame)}: of another size, not in the overlay"
                print(line, file=sys.stderr)
                continue
            writer.write(drawn)
        if writer is not None:
            writer.release()
            partial.replace(path)
    finally:
        if writer is not None:
            writer.release()
        with contextlib.suppress(FileNotFoundError):
            partial.unlink()


def _drawn(
    frames: Iterable[Frame], masks: Callable[[str], Sequence[np.ndarray]]
) -> Iterator[tuple[str, np.ndarray]]:
    """Name and picture of each frame, u8 BGR with even sides."""
    for frame in frames:
        with contextlib.suppress(ImageError):
            pixels = frame.read().pixels
            drawn = draw_regions(pixels, masks(frame.name))
            height, width = drawn.shape[:2]
            even = np.pad(drawn, ((0, height % 2), (0, width % 2), (0, 0)), mode="edge")
            yield frame.name, cv2.cvtColor(even, cv2.COLOR_RGB2BGR)
