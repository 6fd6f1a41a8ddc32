"""Predicts the pairs of pictures and expressions of a command, and writes their results."""

import argparse
import sys
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from pycocotools import mask as coco_mask
from tqdm import tqdm

from refseg_jax.cli.pictures import Picture, costing_itself
from refseg_jax.cli.results import PictureResults, Results, write_json
from refseg_jax.errors import UserError, escaped
from refseg_jax.evaluation.predictions import jsonl_writer, prediction_line
from refseg_jax.images.drawing import PREDICTED_COLOUR, draw_regions
from refseg_jax.models.region_maps import RegionMap
from refseg_jax.prediction.many import Answer
from refseg_jax.prediction.painting import Prediction
from refseg_jax.prediction.predictor import EXPRESSIONS_AT_ONCE, Predictor
from refseg_jax.reporting.pictures import assignment_map, region_panel

#: What `--format` chooses of, and what it is without the flag. Lines are always written: they tell what
#: is done.
FORMATS = ("masks", "overlays", "jsonl", "coco")
USUAL = "masks,overlays,jsonl"

#: At most this many matches of a text are printed; the file has all of them.
_PRINTED = 10


class Asked(NamedTuple):
    """A picture, and what it is asked for."""

    picture: Picture
    texts: Sequence[str]


def asked_of(
    pictures: Sequence[Picture], texts: Sequence[str], pairs: Mapping[str, Sequence[str]]
) -> list[Asked]:
    """What each picture is asked: the texts that all are asked, and then those of its own.

    Args:
        pictures: the pictures.
        texts: for all of them.
        pairs: name of a picture -> its own.

    Raises:
        UserError: there is no picture of a name.
    """
    known = {picture.name for picture in pictures}
    for name in pairs:
        if name not in known:
            raise UserError(
                f"--expressions: no picture {name!r} in --image; names are relative to its folder"
            )
    found = []
    for picture in pictures:
        own = [text for text in pairs.get(picture.name, ()) if text not in texts]
        if texts or own:
            found.append(Asked(picture, [*texts, *own]))
    return found


def parse_formats(text: str) -> frozenset[str]:
    """The value of `--format`.

    Raises:
        UserError: a name is unknown.
    """
    names = frozenset(text.split(","))
    if odd := sorted(names - set(FORMATS)):
        raise UserError(f"--format={odd[0]}: give some of {', '.join(FORMATS)}, with commas")
    return names


class PairWriter:
    """Writes the results of the pairs of a picture, all or none."""

    def __init__(
        self,
        options: argparse.Namespace,
        predictor: Predictor,
        results: Results,
        formats: Collection[str],
    ) -> None:
        self._options, self._predictor, self._results = options, predictor, results
        self._formats = formats
        self._noted: set[str] = set()

    def add(self, asked: Asked, answer: Answer) -> list[str]:
        """Writes the results of a picture.

        Returns:
            What is to be printed of each pair.

        Raises:
            UserError: this picture cannot be used (`ImageError`), or none can.
            OSError: nothing can be written.
        """
        picture = asked.picture
        with costing_itself(picture.path), self._results.of(picture.name) as results:
            if answer.error is not None:
                raise answer.error
            self._note(answer.notes, picture.path)
            return self._write(picture.name, answer, results)

    def _write(self, name: str, answer: Answer, results: PictureResults) -> list[str]:
        options, rgb = self._options, answer.pixels
        # Before anything is written, because models without these maps raise an error.
        if options.group_maps:
            network, levels = self._predictor.group_assignment(rgb)
            for level, similarity in levels.items():
                # Each patch in the colour of its group token.
                results.save(f"groups-{level}", assignment_map(network, similarity))
        regions = self._regions(rgb, answer.expressions)
        told = []
        for k, (text, one) in enumerate(zip(answer.expressions, answer, strict=True)):
            if options.region_maps:
                panel = region_panel(rgb, one.mask, next(regions), text)
                results.save(f"{k}-regions", panel)
            if "masks" in self._formats:
                results.save(f"{k}-mask", one.mask.astype(np.uint8) * 255)
            if "overlays" in self._formats:
                # Outlines the mask and dims the rest; if nothing matches, the whole image.
                results.save(f"{k}-overlay", draw_regions(rgb, [one.mask], [PREDICTED_COLOUR]))
            results.lines.append(line_of(f"{name}#{k}", name, text, one))
            told.append(f"{escaped(text)}: {_told(one)}")
        return told

    def _regions(self, rgb: np.ndarray, texts: Sequence[str]) -> Iterator[RegionMap]:
        """The maps of `--region_maps`, for a few texts at a time, since they are large."""
        for start in range(0, len(texts), EXPRESSIONS_AT_ONCE):
            yield from self._predictor.region_maps(rgb, texts[start : start + EXPRESSIONS_AT_ONCE])

    def _note(self, notes: Sequence[str], path: Path) -> None:
        """Prints each note once."""
        for note in notes:
            if note not in self._noted:
                line = f"warning: {note} (first: {escaped(str(path))})"
                tqdm.write(line, file=sys.stderr)
                self._noted.add(note)

    def finish(self, matches: bool) -> list[dict[str, Any]]:
        """Writes what is about all pictures, those of an earlier call included.

        Args:
            matches: whether to write and print the matches.

        Returns:
            The lines of `matches.jsonl`, or none.
        """
        if "coco" in self._formats:
            write_coco(self._results.folder / "coco.json", self._results.read())
        return write_matches(self._results.folder, self._results.read()) if matches else []


def line_of(pair: str, image: str, text: str, one: Prediction) -> dict[str, Any]:
    """The line of `predictions.jsonl` of a pair."""
    return prediction_line(
        pair, image, text, one.uncleared, one.score,
        present=one.present, presence=one.presence, thresholds=one.thresholds, soft_map=one.soft_map,
    )  # fmt: skip


def _told(one: Prediction) -> str:
    """The text that is printed for one pair."""
    if one.mask.any():
        return f"score {one.score:.2f}, {int(one.mask.sum())} pixels"
    return "no match (its head says yes, but no pixel shows it)" if one.present else "no match"


def write_matches(folder: Path, lines: Iterator[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Writes `matches.jsonl`: for each text a line with its matches, highest score first.

    It also prints the first few.

    Args:
        folder: where to write.
        lines: of `predictions.jsonl`.

    Returns:
        What was written.
    """
    asked: dict[str, int] = {}
    matches: dict[str, list[dict[str, Any]]] = {}
    for line in lines:
        text = line["expression"]
        asked[text] = asked.get(text, 0) + 1
        found = matches.setdefault(text, [])
        # A presence head may say yes although the mask has no pixel.
        pixels = int(coco_mask.area(line["segmentation"])) if line["present"] else 0
        if pixels:
            found.append({"image": line["image"], "score": line["score"], "pixels": pixels})
    path = folder / "matches.jsonl"
    written = []
    with jsonl_writer(path) as write:
        for text, found in matches.items():
            found.sort(key=lambda match: (-match["score"], match["image"]))
            written.append({"expression": text, "matches": found})
            write(written[-1])
            many = f"in {len(found)} of {asked[text]} images"
            print(f"{escaped(text)}: {many if found else 'no match'}")
            for match in found[:_PRINTED]:
                print(f"  {match['score']:.2f}  {escaped(match['image'])}")
            if len(found) > _PRINTED:
                print(f"  and {len(found) - _PRINTED} more, see {escaped(str(path))}")
    return written


def write_coco(path: Path, lines: Iterator[Mapping[str, Any]]) -> None:
    """Writes the masks as a dataset in COCO's format, with a category for each expression.

    Args:
        path: the file.
        lines: of `predictions.jsonl`; a pair without a match has no annotation.
    """
    images: dict[str, dict[str, Any]] = {}
    categories: dict[str, int] = {}
    annotations: list[dict[str, Any]] = []
    for line in lines:
        region, name, text = line["segmentation"], line["image"], line["expression"]
        height, width = region["size"]
        image = images.setdefault(
            name, {"id": len(images) + 1, "file_name": name, "height": height, "width": width}
        )
        category = categories.setdefault(text, len(categories) + 1)
        area = int(coco_mask.area(region)) if line["present"] else 0
        if area:
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": image["id"],
                    "category_id": category,
                    "segmentation": region,
                    "area": area,
                    "bbox": [float(x) for x in coco_mask.toBbox(region)],
                    "iscrowd": 0,
                    "score": line["score"],
                }
            )
    named = [{"id": number, "name": text} for text, number in categories.items()]
    write_json(
        path, {"images": [*images.values()], "categories": named, "annotations": annotations}
    )
