"""Asks the pictures of a folder together: `--group` of `refseg_jax.cli.predict`."""

import argparse
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from tqdm import tqdm

from refseg_jax.cli.command_line import error_line
from refseg_jax.cli.pairs import line_of
from refseg_jax.cli.pictures import (
    Picture,
    check_results,
    costing_itself,
    find_pictures,
    lines_of,
)
from refseg_jax.cli.predictors import open_predictor
from refseg_jax.cli.results import Results, write_png
from refseg_jax.cli.texts import warn_of_cut
from refseg_jax.cli.video import Notes
from refseg_jax.errors import UserError, escaped
from refseg_jax.evaluation.predictions import jsonl_writer
from refseg_jax.images.decoding import Decoded, ImageError
from refseg_jax.images.drawing import PREDICTED_COLOUR
from refseg_jax.images.groups import group_rows
from refseg_jax.images.sheets import captioned, fit_regions, grid, row
from refseg_jax.models.heat_maps import HeatMap
from refseg_jax.prediction.painting import Prediction
from refseg_jax.prediction.predictor import Predictor
from refseg_jax.reporting.pictures import heat_panel

#: Pictures of a sheet, side of a picture and gap between two in pixels; the most pictures of a sheet.
_COLUMNS, _SIDE, _GAP, _MOST = 5, 200, 12, 100

#: At most this many matches of a text are printed; the file has all of them.
_PRINTED = 10


def run_group(options: argparse.Namespace, texts: Sequence[str]) -> int:
    """Predicts all pairs of a folder; returns the number of pictures that could not be used."""
    given, out = options.image, options.output_dir
    if given.is_file():
        raise UserError(f"{given}: is one file, --group asks a folder; leave --group out")
    found = find_pictures(given, recursive=options.recursive, without=out)
    for line in lines_of(found):
        print(line, file=sys.stderr)
    if not found.pictures:
        if found.errors:
            return found.unusable
        raise UserError(f"{given}: no images in this folder; name another with --image")
    check_results(found.pictures, out)
    predictor = open_predictor(options)
    warn_of_cut(predictor.cut_short(texts))
    with Results(out) as results:
        group = _Group(options, predictor, texts, results)
        bad = found.unusable + group.check(found.pictures)
        bad += group.predict()
        group.write()
    skipped = f"; {bad} could not be used" if bad else ""
    print(f"{escaped(str(out))}: images: {group.used}, texts: {len(texts)}{skipped}")
    return bad


class _Group:
    """Predicts the pictures of a folder row by row, and writes their results.

    Attributes:
        used: number of pictures that were predicted.
    """

    def __init__(
        self,
        options: argparse.Namespace,
        predictor: Predictor,
        texts: Sequence[str],
        results: Results,
    ) -> None:
        self.used = 0
        self._options, self._predictor, self._texts = options, predictor, texts
        self._results, self._note = results, Notes()
        self._pictures: list[Picture] = []
        self._matches: list[list[dict[str, Any]]] = [[] for _ in texts]

    def check(self, pictures: Sequence[Picture]) -> int:
        """Reads all pictures, because a damaged one must not sit in a row; returns how many are."""
        bad = 0
        for picture in tqdm(pictures, unit="image read", disable=len(pictures) == 1):
            try:
                with costing_itself(picture.path):
                    self._note(self._predictor.read(picture.path), str(picture.path))
                self._pictures.append(picture)
            except ImageError as error:
                tqdm.write(error_line(error), file=sys.stderr)
                bad += 1
        return bad

    def predict(self) -> int:
        """Predicts all rows; returns the number of pictures whose rows failed."""
        size, bad = self._predictor.group_size, 0
        rows = group_rows([picture.name for picture in self._pictures], size)
        words = self._predictor.words(self._texts, images=min(size, max(1, len(self._pictures))))
        for one in tqdm(rows, unit="row", disable=len(rows) == 1):
            members = [self._pictures[index] for index in one.images]
            answered = members[one.reused :]
            try:
                with costing_itself(answered[0].path):
                    pixels = [self._predictor.read(picture.path).pixels for picture in members]
                    answers = self._predictor.predict_row(pixels, words, maps=self._options.maps)
                    heat = self._heat(pixels, words)
            except ImageError as error:
                tqdm.write(error_line(error), file=sys.stderr)
                bad += len(answered)
                continue
            names = [picture.name for picture in members]
            for place in range(one.reused, len(members)):
                bad += not self._add(
                    members[place], pixels[place], answers[place], heat[place], names
                )
        return bad

    def _heat(self, pixels: Sequence[np.ndarray], words: Any) -> list[list[HeatMap]]:
        if not self._options.heatmaps:
            return [[] for _ in pixels]
        return self._predictor.heat_maps(pixels, words)

    def _add(
        self,
        picture: Picture,
        pixels: np.ndarray,
        answers: Sequence[Prediction],
        heat: Sequence[HeatMap],
        names: Sequence[str],
    ) -> bool:
        """Writes the results of a picture, all or none; returns whether that was possible."""
        matches = []
        try:
            with costing_itself(picture.path), self._results.of(picture.name) as results:
                for k, (text, one) in enumerate(zip(self._texts, answers, strict=True)):
                    results.save(f"{k}-mask", one.mask.astype(np.uint8) * 255)
                    if heat:
                        results.save(
                            f"{k}-heatmaps", heat_panel(pixels, one.mask, heat[k], names, text)
                        )
                    results.lines.append(line_of(f"{picture.name}#{k}", picture.name, text, one))
                    matches.append(_match(picture.name, k, text, one))
        except ImageError as error:
            tqdm.write(error_line(error), file=sys.stderr)
            return False
        for known, match in zip(self._matches, matches, strict=True):
            known.append(match)
        self.used += 1
        return True

    def write(self) -> None:
        """Writes `matches.jsonl` and a sheet for each text, and prints the first matches."""
        folder = self._results.folder
        for known in self._matches:
            known.sort(key=_order)
        path = folder / "matches.jsonl"
        with jsonl_writer(path) as write:
            for match in (match for known in self._matches for match in known):
                write(match)
        read = self._predictor.read
        places = {picture.name: picture.path for picture in self._pictures}
        for k, (text, known) in enumerate(zip(self._texts, self._matches, strict=True)):
            shown = [match for match in known if match["pixels"]]
            told = f"in {len(shown)} of {len(known)} images" if shown else "no match"
            print(f"{escaped(text)}: {told if known else 'no picture could be asked'}")
            for match in shown[:_PRINTED]:
                print(f"  {escaped(match['image'])}: {_told(match)}")
            if len(shown) > _PRINTED:
                print(f"  and {len(shown) - _PRINTED} more, see {escaped(str(path))}")
            if known:
                write_png(folder / f"sheet-{k}.png", _sheet(text, known, places, folder, read))


def _match(name: str, k: int, text: str, one: Prediction) -> dict[str, Any]:
    """The line of `matches.jsonl` of a pair."""
    return {
        "expression": text,
        "image": name,
        "present": one.present,
        "score": one.score,
        "presence": one.presence,
        "margin": one.margin,
        "pixels": int(one.mask.sum()),
        "mask": f"{name}-{k}-mask.png",
    }


def _order(match: Mapping[str, Any]) -> tuple[bool, float, float, str]:
    """Pairs with a mask come first; then the larger margin, the larger score, the name."""
    margin = match["margin"] or 0.0
    return not match["pixels"], -margin, -match["score"], match["image"]


def _sheet(
    text: str,
    matches: Sequence[Mapping[str, Any]],
    places: Mapping[str, Path],
    folder: Path,
    read: Callable[[Path], Decoded],
) -> np.ndarray:
    """A contact sheet of the answers to a text, in their order: u8 `[h, w, 3]`."""
    cells = []
    for match in matches[:_MOST]:
        with Image.open(folder / match["mask"]) as image:
            mask = np.asarray(image) > 0
        pixels = read(places[match["image"]]).pixels
        view = fit_regions(pixels, [mask], _SIDE, [PREDICTED_COLOUR])
        cells.append(captioned(row([view], _SIDE), match["image"], [_told(match)], size=14))
    found = sum(bool(match["pixels"]) for match in matches)
    notes = [f"in {found} of {len(matches)} images"]
    if len(matches) > _MOST:
        notes.append(f"the first {_MOST} are shown")
    return captioned(grid(cells, min(_COLUMNS, len(cells)), _GAP), text, notes, size=20)


def _told(match: Mapping[str, Any]) -> str:
    """What stands below a picture of a sheet."""
    margin = "" if match["margin"] is None else f", margin {match['margin']:.2f}"
    if match["pixels"]:
        return f"score {match['score']:.2f}{margin}"
    return f"{'no pixel' if match['present'] else 'no match'}{margin}"
