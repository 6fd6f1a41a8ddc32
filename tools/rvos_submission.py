r"""Writes the folder that the server of Ref-YouTube-VOS takes.

    python -m tools.rvos_submission --checkpoint=runs/unilseg --source_dir=ref-youtube-vos \
        --split=valid --output_dir=out
    (cd out && zip -qr submission.zip Annotations)

The masks of `valid` and `test` are not public; the server scores them. `--source_dir` holds

    meta_expressions/{valid,test}/meta_expressions.json
    <split>/JPEGImages/<video>/<frame>.jpg

For each expression of each video, and each frame that the file of expressions lists, it writes
`Annotations/<video>/<number of the expression>/<frame>.png`: 8 bits, 0 or 255, of the frame's size.
Where the file of `test` is there, its videos are left out of `valid`, which lists them too: the server
wants 202 videos. Frames are predicted one by one, as UniLSeg does; the expressions of a video are
encoded once. The same command goes on where it was stopped.

A frame that is missing or damaged gets empty masks of its neighbours' size, since the server wants a
complete folder; it is told, and the exit code is 1. `bad_frames.json` lists such frames, which the same
command tries again. The layout of the folder is that of ReferFormer's `inference_ytvos.py`, whose
results the server scores.
"""

import argparse
import functools
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
from tqdm import tqdm

from input_pipeline.datasets.ref_youtube_vos import SPLITS, Question, Video, videos
from refseg_jax.checkpoints.folder import read_json
from refseg_jax.cli.command_line import Result, add_json_flag, command_parser, ended, path
from refseg_jax.cli.frames import Frame
from refseg_jax.cli.mask_files import MaskFiles, check_apart, going_on, identity, write_json
from refseg_jax.cli.predictors import add_predictor_flags, open_predictor
from refseg_jax.cli.signals import leave
from refseg_jax.cli.texts import warn_of_cut
from refseg_jax.cli.video import predict_frames
from refseg_jax.errors import UserError, escaped
from refseg_jax.prediction.painting import Prediction
from refseg_jax.prediction.pictures import read_picture
from refseg_jax.prediction.predictor import Predictor
from refseg_jax.text.cleaning import has_word

#: Files of the output folder.
RECORD, MASKS, BAD = "submission.json", "Annotations", "bad_frames.json"


class _VideoMasks:
    """Predicts and writes the masks of one video.

    Attributes:
        bad: frames that could not be used.
    """

    def __init__(self, video: Video, images: Path, out: Path, bad: Iterable[str]) -> None:
        self.bad = set(bad)
        self._video, self._images = video, images / video.name
        self._asked = [q for q in video.questions if has_word(q.text)]
        blank = [q for q in video.questions if not has_word(q.text)]
        self._masks = _files(video, out, self._asked)
        self._blank = _files(video, out, blank)
        self._size: tuple[int, int] | None = None

    def is_done(self, frame: str) -> bool:
        """Whether all masks of a frame are there."""
        return frame not in self.bad and self._masks.has(frame) and self._blank.has(frame)

    def predict(self, predictor: Predictor) -> None:
        """Writes the masks of all frames that are not done and can be used."""
        left = [frame for frame in self._video.frames if not self.is_done(frame)]
        self.bad = set(left) if self._asked else set()
        if left and self._asked:
            words = predictor.words([question.text for question in self._asked])
            predict_frames(
                self._frames(left), predictor, words, self.is_done, self._write, progress=False
            )

    def complete(self) -> None:
        """Writes empty masks for bad frames and for expressions without a word.

        From then on, only `bad` tells these frames from those that were predicted.
        """
        for frame in self._video.frames:
            for files in (self._masks, self._blank):
                if not files.has(frame):
                    size = self._size = self._size or self._known_size()
                    files.write(frame, [np.zeros(size, bool)] * files.count)

    def _frames(self, names: Sequence[str]) -> Iterator[Frame]:
        for name in names:
            file = self._images / f"{name}.jpg"
            yield Frame(name, functools.partial(read_picture, file))

    def _write(self, frame: str, answers: Sequence[Prediction]) -> None:
        self._masks.write(frame, [one.mask for one in answers])
        self.bad.discard(frame)
        self._size = answers[0].mask.shape[0], answers[0].mask.shape[1]

    def _known_size(self) -> tuple[int, int]:
        """Size of any frame of the video."""
        for name in self._video.frames:
            if self._masks.count and self._masks.has(name):
                return self._masks.read(name)[0].shape
            try:
                return read_picture(self._images / f"{name}.jpg").pixels.shape[:2]
            except UserError:
                continue
        raise UserError(
            f"{self._images}: no frame of this video can be read; unpack the frames of the split again"
        )


def _files(video: Video, out: Path, questions: Sequence[Question]) -> MaskFiles:
    return MaskFiles(out / MASKS / video.name, [question.number for question in questions])


def run(options: argparse.Namespace) -> Result:
    """Writes the masks of all videos; the exit code is 1 if frames could not be used."""
    source, out, split = options.source_dir, options.output_dir, options.split
    images = source / split / "JPEGImages"
    if not images.is_dir():
        raise UserError(f"{images}: no such folder; --source_dir must hold {split}/JPEGImages")
    check_apart(source, out)
    found = videos(source, split)
    _tell_of_test(source, split, len(found))
    predictor = open_predictor(options)
    warn_of_cut(
        predictor.cut_short([q.text for v in found for q in v.questions if has_word(q.text)])
    )
    asked = {
        "source": str(source.resolve()),
        "split": split,
        "thresholds": predictor.thresholds.as_json(),
        "checkpoint": identity(options.checkpoint, options.step),
    }
    expressions = sum(len(video.questions) for video in found)
    with going_on(out, RECORD, asked):
        bad_of = read_json(out / BAD) if (out / BAD).is_file() else {}
        for video in tqdm(found, unit="video", disable=None):
            masks = _VideoMasks(video, images, out, bad_of.pop(video.name, ()))
            masks.predict(predictor)
            if masks.bad:
                bad_of[video.name] = sorted(masks.bad)
            write_json(out / BAD, bad_of)
            masks.complete()
    _tell_of_others(out / MASKS, {video.name for video in found})
    bad = sum(len(bad_of.get(video.name, ())) for video in found)
    empty = f"; {bad} frames could not be used and have empty masks" if bad else ""
    print(f"{escaped(str(out / MASKS))}: videos: {len(found)}, expressions: {expressions}{empty}")
    content = {
        "masks": out / MASKS,
        "videos": len(found),
        "expressions": expressions,
        "unusable_frames": bad,
    }
    return Result(content, min(bad, 1))


def _tell_of_others(masks: Path, names: set[str]) -> None:
    """Names what an earlier call has left, e.g. one before the file of `test` was there."""
    others = sorted({folder.name for folder in masks.iterdir()} - names)
    if others:
        more = f" and {len(others) - 1} more" if len(others) > 1 else ""
        print(
            f"warning: {escaped(str(masks / others[0]))}{more}: not of this split, and the server wants "
            "no other videos; delete them before you zip",
            file=sys.stderr,
        )


def _tell_of_test(source: Path, split: str, count: int) -> None:
    if split == "valid" and not (source / "meta_expressions" / "test").is_dir():
        print(
            f"warning: {escaped(str(source))}: meta_expressions/test is not there; the file of valid "
            f"also lists the videos of test, so that {count} videos may be more than the server wants",
            file=sys.stderr,
        )


def make_parser() -> argparse.ArgumentParser:
    """The flags of the command."""
    parser = command_parser("tools.rvos_submission", __doc__)
    add_predictor_flags(parser)
    parser.add_argument("--source_dir", type=path, required=True, help="Ref-YouTube-VOS, unpacked")
    parser.add_argument("--split", choices=SPLITS[1:], default="valid")
    parser.add_argument("--output_dir", type=path, required=True)
    add_json_flag(parser, "what was written")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit code."""
    options = make_parser().parse_args(arguments)
    return ended(lambda: run(options), report=options.json)


if __name__ == "__main__":
    leave(main())
