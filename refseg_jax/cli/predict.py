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
error, and all others are done; the exit code is then 1. `predictions.jsonl` grows image by image, and
the same command goes on where it was stopped. A call that asks something else replaces it.

`--format` chooses what is written beside the lines: `masks`, `overlays`, and `coco`, all masks in one
`coco.json`. `--tile=SIZE` looks at pictures that are larger than a tile piece by piece, with `--overlap`
pixels between neighbours; `--max_pixels` allows pictures of more than 50 million pixels.
`--thresholds=calibrated` decides by what `tools.calibrate` chose. Each line has its thresholds.

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

`--expressions=FILE` has a text on each line (UTF-8, or UTF-16 and UTF-32 with a byte order mark). They
come after those of `--text`. Lines without a word are skipped, with a warning. A file that ends with
`.jsonl` has pairs, `{"image": "a.jpg", "expression": "the red car"}`: each picture is asked its own. A
text with more tokens than the model reads is cut, with a warning.

A line of `predictions.jsonl` is the same as an evaluation dumps; `presence` is the presence head's
probability, `null` without one. If a presence head says that nothing is
there, the line has `"present": false` and the mask before it was cleared, which ReLA's evaluator scores.
If the head says that something is there but the mask has no pixel, the line has `"present": true` and an
empty mask. With `--maps` it also has a `"map"`: the probabilities as a grey PNG in base64
(docs/protocols.md).
"""

import argparse
import sys
from collections.abc import Sequence
from typing import Any, NamedTuple

from tqdm import tqdm

from refseg_jax.cli.command_line import (
    Result,
    add_json_flag,
    command_parser,
    ended,
    error_line,
    path,
)
from refseg_jax.cli.frames import RATES
from refseg_jax.cli.groups import run_group
from refseg_jax.cli.mask_files import identity
from refseg_jax.cli.pairs import USUAL, Asked, PairWriter, asked_of, parse_formats
from refseg_jax.cli.pictures import check_results, find_pictures, lines_of
from refseg_jax.cli.predictors import (
    add_predictor_flags,
    add_tile_flags,
    open_predictor,
    tiles_of,
)
from refseg_jax.cli.results import Results
from refseg_jax.cli.signals import leave
from refseg_jax.cli.texts import read_pairs, read_texts, warn_of_cut
from refseg_jax.cli.video import run_video
from refseg_jax.errors import UserError, escaped
from refseg_jax.images.decoding import ImageError
from refseg_jax.prediction.predictor import Predictor
from refseg_jax.prediction.tiles import Tiles

#: Flags that change what is written of a picture; a call with others does not go on with its lines.
_ANSWERED_BY = ("format", "tile", "overlap", "maps", "group_maps", "region_maps")


class Questions(NamedTuple):
    """The expressions of a command.

    Attributes:
        texts: for all pictures.
        pairs: name of a picture -> its own.
    """

    texts: list[str]
    pairs: dict[str, list[str]]

    @classmethod
    def of(cls, options: argparse.Namespace) -> "Questions":
        """Those of `--text` and `--expressions`; raises a `UserError` for a file that is none."""
        texts, pairs = list(options.text), {}
        for file in options.expressions:
            if file.suffix.lower() != ".jsonl":
                texts += read_texts(file)
                continue
            for image, own in read_pairs(file).items():
                known = pairs.setdefault(image, [])
                known += [text for text in own if text not in known]
        if pairs and (options.video is not None or options.group):
            raise UserError(
                "--expressions: a .jsonl names pictures one by one, which --group and --video ask for "
                "the same; give a file with a text on each line"
            )
        return cls(texts, pairs)


def run(options: argparse.Namespace) -> Result:
    """Predicts all pairs; the exit code is 1 if an image could not be used."""
    texts, pairs = Questions.of(options)
    if options.video is not None:
        return _result(options, run_video(options, texts))
    if options.group:
        return _result(options, run_group(options, texts))
    given, out = options.image, options.output_dir
    # Before anything of an earlier call is removed.
    formats, tiles = parse_formats(options.format), tiles_of(options)
    found = find_pictures(given, recursive=options.recursive, without=out)
    for line in lines_of(found):
        print(line, file=sys.stderr)
    if not found.pictures:
        if found.errors:
            return _result(options, found.unusable)
        raise UserError(f"{given}: no images in this folder; name another with --image")
    check_results(found.pictures, out)
    asked = asked_of(found.pictures, texts, pairs)
    predictor = open_predictor(options)
    warn_of_cut(predictor.cut_short([*dict.fromkeys(t for one in asked for t in one.texts)]))
    folder = given.is_dir()
    lines = {one.picture.name: len(one.texts) for one in asked}
    record = _record(options, texts, pairs, predictor)
    with Results(out, record if folder else None, lines) as results:
        _check_unchanged(asked, results)
        work = PairWriter(options, predictor, results, formats)
        left = [one for one in asked if one.picture.name not in results.done]
        before = len(asked) - len(left)
        failed = _predict(options, predictor, left, before, work, tiles, tell=not folder)
        matches = work.finish(folder)
    bad, used = found.unusable + failed, len(asked) - failed
    skipped = f"; {bad} could not be used" if bad else ""
    went_on = f" ({before} of an earlier call)" if before else ""
    many = str(len(texts)) if not pairs else f"{len(texts)} and those of each image"
    print(f"{escaped(str(out))}: images: {used}{went_on}, texts: {many}{skipped}")
    return _result(options, bad, images=used, resumed=before, matches=matches)


def _record(
    options: argparse.Namespace,
    texts: Sequence[str],
    pairs: dict[str, list[str]],
    predictor: Predictor,
) -> dict[str, Any]:
    """What tells whether an earlier call asked the same."""
    return {
        "image": str(options.image.resolve()),
        "texts": list(texts),
        "pairs": pairs,
        **{name: getattr(options, name) for name in _ANSWERED_BY},
        "thresholds": predictor.thresholds.as_json(),
        "checkpoint": identity(options.checkpoint, options.step),
    }


def _check_unchanged(asked: Sequence[Asked], results: Results) -> None:
    """Checks that no picture was replaced after an earlier call had answered for it.

    Raises:
        UserError: one was.
    """
    for one in asked:
        path = one.picture.path
        if one.picture.name in results.done and path.stat().st_mtime > results.begun:
            raise UserError(
                f"{path}: replaced since an earlier call began, whose answer lies in {results.folder}; "
                "delete that folder, or name another --output_dir"
            )


def _predict(
    options: argparse.Namespace,
    predictor: Predictor,
    asked: Sequence[Asked],
    before: int,
    work: PairWriter,
    tiles: Tiles | None,
    *,
    tell: bool,
) -> int:
    """Predicts pictures and writes their results; returns how many could not be used.

    Args:
        options: the flags.
        predictor: the model.
        asked: the pictures that are left.
        before: the number of those that are done.
        work: writes.
        tiles: cuts larger pictures.
        tell: whether to print each pair.
    """
    answers = predictor.predict_many(
        [one.picture.path for one in asked],
        [one.texts for one in asked] if _differ(asked) else asked[0].texts if asked else ["-"],
        maps=options.maps,
        tiles=tiles,
        batch_size=options.batch_size,
    )
    total, bad = before + len(asked), 0
    bar = tqdm(total=total, initial=before, unit="image", disable=total == 1)
    with bar:
        for one, answer in zip(asked, answers, strict=True):
            try:
                told = work.add(one, answer)
            except ImageError as error:
                # `print` would write into the line of the progress bar.
                tqdm.write(error_line(error), file=sys.stderr)
                bad += 1
            else:
                if tell:
                    print(*told, sep="\n")
            bar.update()
    return bad


def _differ(asked: Sequence[Asked]) -> bool:
    return any(one.texts != asked[0].texts for one in asked)


def _result(options: argparse.Namespace, bad: int, **more: Any) -> Result:
    content = {"output_dir": options.output_dir, "unusable": bad, **more}
    return Result(content, min(bad, 1))


def make_parser() -> argparse.ArgumentParser:
    """The flags of the command."""
    parser = command_parser("tools.predict", __doc__)
    add_predictor_flags(parser)
    parser.add_argument("--image", type=path, help="an image or a folder of images")
    parser.add_argument("--video", type=path, help="a video file, or a folder of its frames")
    parser.add_argument(
        "--recursive", action="store_true", help="enter the sub-folders of --image, too"
    )
    parser.add_argument("--text", action="append", default=[], help="may be given several times")
    parser.add_argument(
        "--expressions",
        type=path,
        action="append",
        default=[],
        metavar="FILE",
        help="texts, one a line, or a .jsonl of pairs; may be given several times",
    )
    parser.add_argument("--output_dir", type=path, required=True)
    parser.add_argument(
        "--format", default=USUAL, help="what is written: masks, overlays, jsonl, coco; with commas"
    )
    add_tile_flags(parser)
    parser.add_argument(
        "--batch_size", type=int, help="images at once; by default 1 on a CPU, else 8 a device"
    )
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
    add_json_flag(parser, "what was done")
    return parser


def _check_flags(parser: argparse.ArgumentParser, options: argparse.Namespace) -> None:
    """Refuses two sources, none, and flags that are of the other one."""
    if (options.image is None) == (options.video is None):
        parser.error("give either --image or --video")
    usual = {name: parser.get_default(name) for name in vars(options)}
    given = {name for name, value in vars(options).items() if value != usual[name]}
    of_image = (
        "recursive",
        "group_maps",
        "region_maps",
        "group",
        "heatmaps",
        "format",
        "batch_size",
    )
    of_video = ("fps", "no_overlay")
    wrong, other = (of_image, "--image") if options.video is not None else (of_video, "--video")
    for name in wrong:
        if name in given:
            parser.error(f"--{name} is for {other}")
    if options.heatmaps and not options.group:
        parser.error("--heatmaps is for --group")
    for name in ("group_maps", "region_maps", "format", "batch_size", "tile", "overlap"):
        if options.group and name in given:
            parser.error(f"--{name} is for single pictures; leave out --group")
    if options.batch_size is not None and options.batch_size < 1:
        parser.error(f"--batch_size={options.batch_size}: give at least 1")
    if options.fps is not None and not RATES[0] <= options.fps <= RATES[1]:
        parser.error(
            f"--fps={options.fps:g}: give a number of frames a second from {RATES[0]} to {RATES[1]:g}"
        )


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit code."""
    parser = make_parser()
    options = parser.parse_args(arguments)
    if not options.text and not options.expressions:
        parser.error("give --text, or --expressions with a file of them")
    _check_flags(parser, options)
    return ended(lambda: run(options), report=options.json)


if __name__ == "__main__":
    leave(main())
