r"""Segments pictures by words.

    python -m tools.predict --checkpoint=runs/scenes_unires --image=FILE_OR_FOLDER \
        --text="the red car" --text="the wheels of the red car" --output_dir=out

For each pair of an image and a text, it writes a mask (PNG, 0 or 255, of the image's size as a person
sees it), an overlay, and one line of `predictions.jsonl`. The mask is empty if the text matches
nothing. For a folder of images, `matches.jsonl` lists for each text the images that contain what it
means, by score (the mean probability inside the mask). The checkpoint may also be a folder that
`tools.export` wrote. `--group_maps` also draws the maps of the group tokens (UniRES's Figure 5),
`--region_maps` the minimap and the highest regions of each pair (ReLA's Figure 7).

Of a folder, all files are taken that are images by their content; `--recursive` also enters its
sub-folders. Whatever else is there is named once. An image that cannot be used is left out, with an
error, and all others are done; the exit code is then 1. `predictions.jsonl` grows image by image.

`--video=FILE_OR_FOLDER` takes the frames of a video one by one; the texts are encoded once. It writes
`masks/<number of the text>/<frame>.png`, the lines, and `overlay.mp4`. A frame of a file is named by its
number. The same command goes on where it was stopped:

    python -m tools.predict --checkpoint=runs/scenes_unires --video=clip.mp4 --text="the red car" \
        --output_dir=out

`--group` asks the pictures of a folder together: which of them show it, and where. GRSer lets them ask
each other, up to N at a time by the order of their names; other models answer picture by picture. It
writes `matches.jsonl` with a line for each pair (`present`, `score`, `margin`, `mask`; the margin is the
presence head's logit, above 0 if present), the masks, and `sheet-<number of the text>.png`. `--heatmaps`
draws what the words and each picture of a row point at, in their own order and in that of trust (GRSer's
Figure 4):

    python -m tools.predict --checkpoint=runs/scenes_grser --group --image=FOLDER --text="the red car" \
        --output_dir=out

`--texts=FILE` has a text on each line (UTF-8, or UTF-16 and UTF-32 with a byte order mark). They come
after those of `--text`. Lines without a word are skipped, with a warning. A text with more tokens than
the model reads is cut, with a warning.

A line of `predictions.jsonl` is the same as an evaluation dumps. If a presence head says that nothing is
there, the line has `"present": false` and the mask before it was cleared, which ReLA's evaluator scores.
If the head says that something is there but the mask has no pixel, the line has `"present": true` and an
empty mask. With `--maps` it also has a `"map"`: the probabilities as a grey PNG in base64
(docs/protocols.md).
"""

import argparse
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from tqdm import tqdm

from refseg_jax.checkpoints.folder import step_choice
from refseg_jax.cli.command_line import command_parser, ended, error_line, expanded, path
from refseg_jax.cli.frames import RATES
from refseg_jax.cli.groups import run_group
from refseg_jax.cli.pictures import (
    Picture,
    check_results,
    costing_itself,
    find_pictures,
    lines_of,
)
from refseg_jax.cli.results import PictureResults, Results
from refseg_jax.cli.signals import leave
from refseg_jax.cli.texts import read_texts, warn_of_cut
from refseg_jax.cli.video import run_video
from refseg_jax.errors import UserError, escaped
from refseg_jax.evaluation.predictions import jsonl_writer, prediction_line
from refseg_jax.images.decoding import ImageError
from refseg_jax.images.drawing import PREDICTED_COLOUR, draw_regions
from refseg_jax.models.region_maps import RegionMap
from refseg_jax.prediction.painting import Prediction
from refseg_jax.prediction.pictures import read_picture
from refseg_jax.prediction.predictor import EXPRESSIONS_AT_ONCE, Predictor
from refseg_jax.reporting.pictures import assignment_map, region_panel

#: At most this many matches of a text are printed; the file has all of them.
_PRINTED = 10


class Match(NamedTuple):
    """An image that contains what a text means.

    Attributes:
        image: name of the file.
        score: as in `Prediction`.
        pixels: number of pixels of the mask.
    """

    image: str
    score: float
    pixels: int


def _told(one: Prediction) -> str:
    """The text that is printed for one pair."""
    if one.mask.any():
        return f"score {one.score:.2f}, {int(one.mask.sum())} pixels"
    return "no match (its head says yes, but no pixel shows it)" if one.present else "no match"


def write_matches(
    folder: Path, images: int, texts: Sequence[str], matches: Sequence[list[Match]]
) -> None:
    """Writes `matches.jsonl`: for each text a line with its matches, highest score first.

    It also prints the first few.

    Args:
        folder: where to write.
        images: number of images that were used.
        texts: the expressions.
        matches: the matches of each text.
    """
    path = folder / "matches.jsonl"
    with jsonl_writer(path) as write:
        for text, unsorted in zip(texts, matches, strict=True):
            found = sorted(unsorted, key=lambda match: (-match.score, match.image))
            write({"expression": text, "matches": [match._asdict() for match in found]})
            many = f"in {len(found)} of {images} images"
            print(f"{escaped(text)}: {many if found else 'no match'}")
            for match in found[:_PRINTED]:
                print(f"  {match.score:.2f}  {escaped(match.image)}")
            if len(found) > _PRINTED:
                print(f"  and {len(found) - _PRINTED} more, see {escaped(str(path))}")


class _Run:
    """Predicts the pairs of a command and writes their results."""

    def __init__(
        self,
        options: argparse.Namespace,
        predictor: Predictor,
        texts: Sequence[str],
        results: Results,
    ) -> None:
        self.matches: list[list[Match]] = [[] for _ in texts]
        self._options, self._predictor, self._texts = options, predictor, texts
        self._results = results
        self._noted: set[str] = set()

    def add(self, picture: Picture) -> list[str]:
        """Predicts all pairs of a picture and writes their results, all or none.

        Returns:
            What is to be printed of each pair.

        Raises:
            UserError: this picture cannot be used (`ImageError`), or none can.
            OSError: nothing can be written.
        """
        with costing_itself(picture.path), self._results.of(picture.name) as results:
            matches, told = self._write(picture, results)
        for of_text, match in zip(self.matches, matches, strict=True):
            of_text += match
        return told

    def _write(
        self, picture: Picture, results: PictureResults
    ) -> tuple[list[list[Match]], list[str]]:
        options, predictor, name = self._options, self._predictor, picture.name
        image = read_picture(picture.path)
        rgb = image.pixels
        self._note(image.notes, picture.path)
        # Before anything is written, because models without these maps raise an error.
        if options.group_maps:
            network, levels = predictor.group_assignment(rgb)
            for level, similarity in levels.items():
                # Each patch in the colour of its group token.
                results.save(f"groups-{level}", assignment_map(network, similarity))
        regions = self._regions(rgb)
        matches, told = [], []
        pairs = zip(
            self._texts, predictor.predict_each(rgb, self._texts, maps=options.maps), strict=True
        )
        for k, (text, one) in enumerate(pairs):
            if options.region_maps:
                panel = region_panel(rgb, one.mask, next(regions), text)
                results.save(f"{k}-regions", panel)
            results.save(f"{k}-mask", one.mask.astype(np.uint8) * 255)
            # Outlines the mask and dims the rest; if nothing matches, the whole image.
            drawn = draw_regions(rgb, [one.mask], [PREDICTED_COLOUR])
            results.save(f"{k}-overlay", drawn)
            results.lines.append(_line(f"{name}#{k}", name, text, one))
            # A presence head may say yes although the mask has no pixel.
            pixels = int(one.mask.sum())
            matches.append([Match(name, one.score, pixels)] if pixels else [])
            told.append(f"{escaped(text)}: {_told(one)}")
        return matches, told

    def _regions(self, rgb: np.ndarray) -> Iterator[RegionMap]:
        """The maps of `--region_maps`, for a few texts at a time, since they are large."""
        for start in range(0, len(self._texts), EXPRESSIONS_AT_ONCE):
            part = self._texts[start : start + EXPRESSIONS_AT_ONCE]
            yield from self._predictor.region_maps(rgb, part)

    def _note(self, notes: Sequence[str], path: Path) -> None:
        """Prints each note once."""
        for note in notes:
            if note not in self._noted:
                line = f"warning: {note} (first: {escaped(str(path))})"
                tqdm.write(line, file=sys.stderr)
                self._noted.add(note)


def _line(pair: str, image: str, text: str, one: Prediction) -> dict[str, Any]:
    return prediction_line(
        pair, image, text, one.uncleared, one.score, present=one.present, soft_map=one.soft_map
    )


def run(options: argparse.Namespace) -> int:
    """Predicts all pairs; returns the number of images that could not be used."""
    texts = [*options.text, *(text for file in options.texts for text in read_texts(file))]
    if options.video is not None:
        return run_video(options, texts)
    if options.group:
        return run_group(options, texts)
    given, out = options.image, options.output_dir
    found = find_pictures(given, recursive=options.recursive, without=out)
    for line in lines_of(found):
        print(line, file=sys.stderr)
    if not found.pictures:
        if found.errors:
            return found.unusable
        raise UserError(f"{given}: no images in this folder; name another with --image")
    check_results(found.pictures, out)
    folder = given.is_dir()
    predictor = Predictor.from_checkpoint(options.checkpoint, step=step_choice(options.step))
    warn_of_cut(predictor.cut_short(texts))
    bad = found.unusable
    with Results(out) as results:
        work = _Run(options, predictor, texts, results)
        for picture in tqdm(found.pictures, unit="image", disable=len(found.pictures) == 1):
            try:
                told = work.add(picture)
            except ImageError as error:
                # `print` would write into the line of the progress bar.
                tqdm.write(error_line(error), file=sys.stderr)
                bad += 1
            else:
                if not folder:
                    print(*told, sep="\n")
        used = len(found.pictures) + found.unusable - bad
        if folder:
            write_matches(out, used, texts, work.matches)
    skipped = f"; {bad} could not be used" if bad else ""
    print(f"{escaped(str(out))}: images: {used}, texts: {len(texts)}{skipped}")
    return bad


def make_parser() -> argparse.ArgumentParser:
    """The flags of the command."""
    parser = command_parser("tools.predict", __doc__)
    parser.add_argument(
        "--checkpoint",
        type=expanded,
        required=True,
        help="a run's workdir, one checkpoint, or an export",
    )
    parser.add_argument("--step", default="latest", help="of a workdir: latest, best or a number")
    parser.add_argument("--image", type=path, help="an image or a folder of images")
    parser.add_argument("--video", type=path, help="a video file, or a folder of its frames")
    parser.add_argument(
        "--recursive", action="store_true", help="enter the sub-folders of --image, too"
    )
    parser.add_argument("--text", action="append", default=[], help="may be given several times")
    parser.add_argument(
        "--texts",
        type=path,
        action="append",
        default=[],
        metavar="FILE",
        help="a file of texts, one a line; may be given several times",
    )
    parser.add_argument("--output_dir", type=path, required=True)
    parser.add_argument(
        "--group", action="store_true", help="ask the pictures of a folder together (GRSer)"
    )
    parser.add_argument(
        "--heatmaps", action="store_true", help="of --group: draw the heatmaps in their order too"
    )
    parser.add_argument("--group_maps", action="store_true", help="draw the group tokens too")
    parser.add_argument(
        "--region_maps", action="store_true", help="draw minimap and region masks too (ReLA)"
    )
    parser.add_argument(
        "--maps", action="store_true", help="a line has its soft map too, for tools.score's sod"
    )
    parser.add_argument(
        "--fps", type=float, help="frames a second of the overlay; of a folder 6 by default"
    )
    parser.add_argument("--no_overlay", action="store_true", help="of --video: masks only")
    return parser


def _check_flags(parser: argparse.ArgumentParser, options: argparse.Namespace) -> None:
    """Refuses two sources, none, and flags that are of the other one."""
    if (options.image is None) == (options.video is None):
        parser.error("give either --image or --video")
    of_image = {
        name: getattr(options, name)
        for name in ("recursive", "group_maps", "region_maps", "group", "heatmaps")
    }
    of_video = {"fps": options.fps is not None, "no_overlay": options.no_overlay}
    wrong, other = (of_image, "--image") if options.video is not None else (of_video, "--video")
    for name, given in wrong.items():
        if given:
            parser.error(f"--{name} is for {other}")
    if options.heatmaps and not options.group:
        parser.error("--heatmaps is for --group")
    for name in ("group_maps", "region_maps"):
        if options.group and getattr(options, name):
            parser.error(f"--{name} is for single pictures; leave out --group")
    if options.fps is not None and not RATES[0] <= options.fps <= RATES[1]:
        parser.error(
            f"--fps={options.fps:g}: give a number of frames a second from {RATES[0]} to {RATES[1]:g}"
        )


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit code."""
    parser = make_parser()
    options = parser.parse_args(arguments)
    if not options.text and not options.texts:
        parser.error("give --text, or --texts with a file of them")
    _check_flags(parser, options)
    return ended(lambda: min(run(options), 1))


if __name__ == "__main__":
    leave(main())
