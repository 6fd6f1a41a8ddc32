"""Segments pictures by words.

    python -m tools.predict --checkpoint=runs/scenes_unires --image=FILE_OR_FOLDER \
        --text="the red car" --text="the wheels of the red car" --output_dir=out

For each pair of an image and a text, it writes a mask (PNG, 0 or 255, of the image's size as a person
sees it), an overlay, and one line of `predictions.jsonl`. The mask is empty if the text matches
nothing. For a folder of images, `matches.jsonl` lists for each text the images that contain what it
means, by score (the mean probability inside the mask). A text with more tokens than the model reads
is cut, with a warning. An image that cannot be used is left out, with an error; the exit code is then
1. The checkpoint may also be a folder that `tools.export` wrote. `--group_maps` also draws the maps
of the group tokens (UniRES's Figure 5), `--region_maps` the minimap and the highest regions of each
pair (ReLA's Figure 7).

A line of `predictions.jsonl` is the same as an evaluation dumps. If a presence head says that nothing is
there, the line has `"present": false` and the mask before it was cleared, which ReLA's evaluator scores.
If the head says that something is there but the mask has no pixel, the line has `"present": true` and an
empty mask. With `--maps` it also has a `"map"`: the probabilities as a grey PNG in base64
(docs/protocols.md).
"""

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image
from tqdm import tqdm

from refseg_jax.checkpoints.folder import step_choice
from refseg_jax.errors import UserError
from refseg_jax.evaluation.predictions import jsonl_writer, prediction_line
from refseg_jax.images.decoding import ImageError
from refseg_jax.images.drawing import PREDICTED_COLOUR, draw_regions
from refseg_jax.models.region_maps import RegionMap
from refseg_jax.prediction.predictor import Prediction, Predictor, read_picture
from refseg_jax.reporting.pictures import assignment_map, region_panel

#: At most this many matches of a text are printed; the file has all of them.
_PRINTED = 10

_ENDINGS = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff")


def find_images(path: Path) -> list[Path]:
    """The file itself, or the images of a folder in order of their names.

    Raises:
        UserError: the path does not exist, or the folder has no images.
    """
    if path.is_file():
        return [path]
    if not path.is_dir():
        what = "is no file" if path.exists() else "no such file or folder"
        raise UserError(f"{path}: {what}; name an image with --image")
    # Hidden files are companions that macOS writes (._NAME).
    shown = (p for p in path.iterdir() if p.name[0] != ".")
    found = sorted(p for p in shown if p.suffix.lower() in _ENDINGS and p.is_file())
    if not found:
        raise UserError(f"{path}: no images ({', '.join(_ENDINGS)}) in this folder")
    return found


def make_folder(path: Path) -> None:
    """Makes the output folder; removes the `matches.jsonl` of an earlier call, which would be stale.

    Raises:
        UserError: the path is a file, or lies below one.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError):
        raise UserError(f"{path}: not a folder; name another --output_dir") from None
    (path / "matches.jsonl").unlink(missing_ok=True)


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
            print(f"{text}: {f'in {len(found)} of {images} images' if found else 'no match'}")
            for match in found[:_PRINTED]:
                print(f"  {match.score:.2f}  {match.image}")
            if len(found) > _PRINTED:
                print(f"  and {len(found) - _PRINTED} more, see {path}")


def write_pictures(
    folder: Path, image: Path, rgb: np.ndarray, predictions: Sequence[Prediction]
) -> None:
    """Writes `<image name>-<k>-mask.png` and `<image name>-<k>-overlay.png` for each prediction.

    The overlay outlines the mask and dims the rest; if nothing matches, it dims the whole image.
    """
    for k, prediction in enumerate(predictions):
        drawn = draw_regions(rgb, [prediction.mask], [PREDICTED_COLOUR])
        mask = prediction.mask.astype(np.uint8) * 255
        for kind, pixels in (("mask", mask), ("overlay", drawn)):
            _save(folder / f"{image.name}-{k}-{kind}.png", pixels)


def write_group_maps(
    folder: Path, image: Path, network: np.ndarray, levels: Mapping[str, np.ndarray]
) -> None:
    """Writes `<image name>-groups-<level>.png`: each patch in the colour of its group token.

    Args:
        folder: where to write.
        image: path of the image, for the name.
        network, levels: from `Predictor.group_assignment`.
    """
    for level, similarity in levels.items():
        _save(folder / f"{image.name}-groups-{level}.png", assignment_map(network, similarity))


def write_region_maps(
    folder: Path,
    image: Path,
    rgb: np.ndarray,
    texts: Sequence[str],
    predictions: Sequence[Prediction],
    regions: Sequence[RegionMap],
) -> None:
    """Writes `<image name>-<k>-regions.png`: mask, minimap, region masks, presence of each pair."""
    for k, (text, one, found) in enumerate(zip(texts, predictions, regions, strict=True)):
        _save(folder / f"{image.name}-{k}-regions.png", region_panel(rgb, one.mask, found, text))


def _save(path: Path, pixels: np.ndarray) -> None:
    partial = path.with_suffix(".partial")
    Image.fromarray(pixels).save(partial, "PNG")
    partial.replace(path)


def _line(pair: str, image: str, text: str, one: Prediction) -> dict[str, Any]:
    return prediction_line(
        pair, image, text, one.uncleared, one.score, present=one.present, soft_map=one.soft_map
    )


def run(options: argparse.Namespace) -> int:
    """Predicts all pairs; returns the number of images that could not be used."""
    images, folder = find_images(options.image), options.image.is_dir()
    predictor = Predictor.from_checkpoint(options.checkpoint, step=step_choice(options.step))
    for text in predictor.cut_short(options.text):
        print(
            f"warning: --text={text[:60]!r} ... is longer than what the model reads "
            "(config.data.context_length); its end is left out",
            file=sys.stderr,
        )
    make_folder(options.output_dir)
    bad = 0
    told: set[str] = set()
    matches: list[list[Match]] = [[] for _ in options.text]
    with jsonl_writer(options.output_dir / "predictions.jsonl") as write:
        for image in tqdm(images, unit="image", disable=len(images) == 1):
            try:
                picture = read_picture(image)
            except ImageError as error:
                # `print` would write into the line of the progress bar.
                tqdm.write(f"error: {error}", file=sys.stderr)
                bad += 1
                continue
            rgb = picture.pixels
            for note in picture.notes:
                if note not in told:
                    tqdm.write(f"warning: {note} (first: {image})", file=sys.stderr)
                    told.add(note)
            # Before anything is written, because models without these maps raise an error.
            groups = predictor.group_assignment(rgb) if options.group_maps else None
            regions = predictor.region_maps(rgb, options.text) if options.region_maps else None
            predictions = predictor.predict(rgb, options.text, maps=options.maps)
            write_pictures(options.output_dir, image, rgb, predictions)
            if groups is not None:
                write_group_maps(options.output_dir, image, *groups)
            if regions is not None:
                write_region_maps(
                    options.output_dir, image, rgb, options.text, predictions, regions
                )
            for k, (text, one) in enumerate(zip(options.text, predictions, strict=True)):
                write(_line(f"{image.name}#{k}", image.name, text, one))
                # A presence head may say yes although the mask has no pixel.
                if one.mask.any():
                    matches[k].append(Match(image.name, one.score, int(one.mask.sum())))
                if not folder:
                    print(f"{text}: {_told(one)}")
    if folder:
        write_matches(options.output_dir, len(images) - bad, options.text, matches)
    skipped = f"; {bad} could not be used" if bad else ""
    print(f"{options.output_dir}: images: {len(images) - bad}, texts: {len(options.text)}{skipped}")
    return bad


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m tools.predict", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument(
        "--checkpoint", required=True, help="a run's workdir, one checkpoint, or an export"
    )
    parser.add_argument("--step", default="latest", help="of a workdir: latest, best or a number")
    parser.add_argument("--image", type=Path, required=True, help="an image or a folder of images")
    parser.add_argument("--text", action="append", required=True, help="may be given several times")
    parser.add_argument("--output_dir", type=Path, required=True)
    parser.add_argument("--group_maps", action="store_true", help="draw the group tokens too")
    parser.add_argument(
        "--region_maps", action="store_true", help="draw minimap and region masks too (ReLA)"
    )
    parser.add_argument(
        "--maps", action="store_true", help="a line has its soft map too, for tools.score's sod"
    )
    options = parser.parse_args(arguments)
    try:
        return 1 if run(options) else 0
    except (UserError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
