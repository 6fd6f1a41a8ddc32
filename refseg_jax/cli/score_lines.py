"""Joins the lines of predictions and references by id, checks them, and makes pairs of them.

The lines of the two files may be in different orders. The files are read side by side. Of a line whose
partner has not been read yet, only the id and the place in the file are kept.
"""

import base64
import binascii
import functools
import io
import itertools
import os
import unicodedata
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
from PIL import Image, UnidentifiedImageError

from refseg_jax import naming
from refseg_jax.batch import ABSENCES, GRANULARITIES
from refseg_jax.errors import UserError, shown
from refseg_jax.evaluation.predictions import encode
from refseg_jax.evaluation.protocols import Pair
from refseg_jax.evaluation.protocols.regions import RleRegions
from refseg_jax.images.decoding import MAX_PIXELS
from refseg_jax.images.files import read_file, spellings
from refseg_jax.images.kinds import kind_of
from refseg_jax.images.placement import misplaced
from refseg_jax.images.png import check_png
from refseg_jax.images.segmentation import (
    EmptyRegion,
    SegmentationError,
    are_plain,
    checked_rle,
    encode_segmentation,
)
from refseg_jax.images.units import Evidence
from refseg_jax.text.encoding import EncodingError, is_blank, json_of

#: Number of pairs whose RLE is checked at once.
_AT_ONCE = 64

#: Errors of reading a soft map that is damaged or not a PNG.
_UNREADABLE = (OSError, SyntaxError, ValueError, Image.DecompressionBombError)


class LineError(UserError):
    """A `UserError` that begins with the file and the line."""


class Line(NamedTuple):
    """A JSON object of a file.

    Attributes:
        path: the file.
        number: number of the line, from 1.
        fields: the object.
    """

    path: Path
    number: int
    fields: dict[str, Any]

    def error(self, reason: object) -> LineError:
        """An error with the file and the line before the reason."""
        return LineError(f"{self.path}:{self.number}: {reason}")


class _Place(NamedTuple):
    side: int
    number: int
    offset: int


def joined(predictions: Path, references: Path) -> Iterator[tuple[Line, Line]]:
    """Yields each prediction with its reference.

    Raises:
        UserError: a line is not a JSON object with an id, an id occurs twice in a file or is missing
            in the other, or a file has no lines. Missing ids are reported once both files are read.
    """
    with predictions.open("rb") as first, references.open("rb") as second:
        files = (_File(predictions, first), _File(references, second))
        waiting: dict[str, _Place | None] = {}
        for places in itertools.zip_longest(*(file.places(i) for i, file in enumerate(files))):
            for side, place in enumerate(places):
                if place is None:
                    continue
                line = files[side].last
                name = _id_of(line)
                if name not in waiting:
                    waiting[name] = place
                    continue
                known = waiting[name]
                if known is None or known.side == side:
                    raise line.error(
                        f"the id {shown(name)!r} stands in this file for the second time"
                    )
                waiting[name] = None
                partner = files[1 - side].at(known)
                yield (partner, line) if side else (line, partner)
    _check_all_joined(waiting, (predictions, references))


class _File:
    """A file of JSON lines that can be read in order, and again at a place."""

    def __init__(self, path: Path, file: BinaryIO) -> None:
        self._path, self._file = path, file
        self.last = Line(path, 0, {})

    def places(self, side: int) -> Iterator[_Place]:
        """Yields the place of each line that is not blank, after storing the line as `last`."""
        offset = 0
        for number in itertools.count(1):
            # `at` may have moved the position since the last line.
            if self._file.tell() != offset:
                self._file.seek(offset)
            text = self._file.readline()
            if not text:
                break
            if not is_blank(text):
                self.last = self._parse(text, number)
                yield _Place(side, number, offset)
            offset += len(text)
        if not self.last.number:
            raise UserError(f"{self._path}: has no lines; give one JSON object a line")

    def at(self, place: _Place) -> Line:
        """The line at a place."""
        if self.last.number == place.number:
            return self.last
        self._file.seek(place.offset)
        return self._parse(self._file.readline(), place.number)

    def _parse(self, text: bytes, number: int) -> Line:
        try:
            fields = json_of(text)
        except EncodingError as error:
            raise UserError(f"{self._path}:{number}: {error}") from None
        except (ValueError, RecursionError) as error:
            raise UserError(f"{self._path}:{number}: is no JSON ({error})") from None
        line = Line(self._path, number, fields)
        if not isinstance(fields, dict):
            raise line.error(f"is a {type(fields).__name__}, not a JSON object")
        return line


def _id_of(line: Line) -> str:
    name = line.fields.get("id")
    if isinstance(name, bool) or not isinstance(name, str | int):
        raise line.error(f'"id" is {name!r:.40}; give every pair a name')
    return str(name)


def _check_all_joined(waiting: Mapping[str, _Place | None], paths: tuple[Path, Path]) -> None:
    missing = [(place, name) for name, place in waiting.items() if place is not None]
    if not missing:
        return
    place, name = min(missing)
    others = f" ({len(missing)} ids are in one file only)" if len(missing) > 1 else ""
    raise UserError(
        f"{paths[place.side]}:{place.number}: the id {shown(name)!r} is not in "
        f"{os.fspath(paths[1 - place.side])}{others}"
    )


class _Draft(NamedTuple):
    """A pair whose compressed counts are not checked yet."""

    prediction: Line
    reference: Line
    size: tuple[int, int]
    predicted: bytes
    target: bytes


class ReadPair(NamedTuple):
    """A pair, and the line of its reference."""

    pair: Pair
    reference: Line


def read_pairs(predictions: Path, references: Path) -> Iterator[ReadPair]:
    """Yields the pairs of two files.

    Raises:
        UserError: as in `joined`, or a field of a line is missing or invalid; the message names file
            and line.
    """
    lines = joined(predictions, references)
    evidence, categories = Evidence(), _Spellings()
    while drafts := [_draft(*both) for both in itertools.islice(lines, _AT_ONCE)]:
        for draft in drafts:
            line = draft.reference
            evidence.add(line.fields["segmentation"], line.number, draft.size)
        counts = [text for draft in drafts for text in (draft.predicted, draft.target)]
        pixels = [draft.size[0] * draft.size[1] for draft in drafts for _ in range(2)]
        plain = are_plain(counts, pixels)
        for draft in drafts:
            read = _pair(draft if plain else _mended(draft))
            categories.check(read)
            yield read
    # Only all references together tell the unit of their coordinates.
    if unit := evidence.find():
        raise LineError(f"{references}:{evidence.first}: {unit}")


class _Spellings:
    """Finds categories that differ in capitals or in the form of Unicode alone: they are one."""

    def __init__(self) -> None:
        self._first: dict[str, tuple[str, int]] = {}

    def check(self, read: ReadPair) -> None:
        """Raises a `LineError` if the category of a pair was spelt in another way before."""
        name, line = read.pair.category, read.reference
        key = unicodedata.normalize("NFC", name).casefold()
        first, number = self._first.setdefault(key, (name, line.number))
        if first != name:
            raise line.error(
                f"the category {name!a:.80} is {first!a:.80} in line {number}; spell it in one way"
            )


def _draft(prediction: Line, reference: Line) -> _Draft:
    segmentation = prediction.fields.get("segmentation")
    if not isinstance(segmentation, dict):
        raise prediction.error('"segmentation" is no RLE: give {"size": [h, w], "counts": ...}')
    size = _size(prediction, segmentation)
    predicted = segmentation.get("counts")
    if not isinstance(predicted, str):
        predicted = _region(prediction, segmentation, size)
    if "segmentation" not in reference.fields:
        raise reference.error('no "segmentation"; an empty one is []')
    segmentation = reference.fields["segmentation"]
    rle = segmentation if isinstance(segmentation, dict) else {}
    if rle and (found := _size(reference, rle)) != size:
        turned = ': one of them has its "size" as [width, height]' if found[::-1] == size else ""
        raise reference.error(
            f"the reference has {found[0]} x {found[1]} pixels (height x width), the prediction "
            f"{size[0]} x {size[1]} ({prediction.path}:{prediction.number}){turned}"
        )
    target = rle.get("counts")
    if not isinstance(target, str):
        target = _region(reference, segmentation, size)
    return _Draft(
        prediction, reference, size, _ascii(prediction, predicted), _ascii(reference, target)
    )


def _ascii(line: Line, counts: str | bytes) -> bytes:
    if isinstance(counts, bytes):
        return counts
    try:
        return counts.encode("ascii")
    except UnicodeEncodeError:
        raise line.error("the RLE's counts are damaged") from None


def _size(line: Line, segmentation: Mapping[str, Any]) -> tuple[int, int]:
    size = segmentation.get("size")
    if not isinstance(size, list) or len(size) != 2 or any(type(n) is not int for n in size):
        raise line.error(f'the segmentation\'s "size" is {size!r:.40}, not [height, width]')
    height, width = size
    if min(size) < 1 or height * width > MAX_PIXELS:
        what = f"{height} x {width}" if max(size) < 10**12 else "too many"
        raise line.error(f"{what} pixels; there are 1 to {MAX_PIXELS}")
    return height, width


def _region(line: Line, segmentation: Any, size: tuple[int, int]) -> bytes:
    """Compressed counts of a segmentation of any kind; `[]`, `{}` and `null` are empty masks."""
    counts = b""
    try:
        if segmentation:
            counts = encode_segmentation(segmentation, *size).counts
    except EmptyRegion:
        pass
    except SegmentationError as error:
        raise line.error(error) from None
    # Polygons do not state the size of their image. Those of another size would be cut at the border
    # and scored as another region, or as none.
    if segmentation and misplaced(segmentation, counts, (), *size):
        raise line.error(
            f"a polygon leaves the prediction's {size[0]} x {size[1]} pixels (height x width); give "
            "predictions of the image's own size, or references as RLE of the predictions'"
        )
    return counts or encode(np.zeros(size, bool))["counts"].encode()


def _mended(draft: _Draft) -> _Draft:
    """The draft with counts that pycocotools can read; raises a `LineError` for damaged ones."""
    return draft._replace(
        predicted=_checked(draft.prediction, draft.predicted, draft.size),
        target=_checked(draft.reference, draft.target, draft.size),
    )


def _checked(line: Line, counts: bytes, size: tuple[int, int]) -> bytes:
    try:
        # As text, so that texts that other programs make of counts are told.
        return checked_rle({"size": list(size), "counts": counts.decode("ascii")}, *size)["counts"]
    except SegmentationError as error:
        raise line.error(error) from None


def _pair(draft: _Draft) -> ReadPair:
    prediction, reference = draft.prediction, draft.reference
    size = list(draft.size)
    soft_map = prediction.fields.get("map")
    regions = RleRegions(
        draft.size,
        {"size": size, "counts": draft.predicted},
        {"size": size, "counts": draft.target},
        None if soft_map is None else functools.partial(_grey, prediction, soft_map, draft.size),
    )
    present = prediction.fields.get("present")
    if present is None:
        present = regions.counts().prediction > 0
    elif not isinstance(present, bool):
        raise prediction.error(f'"present" is {present!r:.40}, not true or false')
    granularity, group, category, form = (
        _text(reference, name) for name in ("granularity", "group", "category", "form")
    )
    for field, value, known in (
        ("granularity", granularity, GRANULARITIES),
        ("form", form, ABSENCES),
    ):
        if value and value not in known:
            raise reference.error(naming.unknown(field, value, known))
    empty = reference.fields.get("empty")
    if empty is not None and not isinstance(empty, bool):
        raise reference.error(f'"empty" is {empty!r:.40}, not true or false')
    for text in (group, category):
        if text != text.strip():
            raise reference.error(f"{text!r:.60} begins or ends with a blank; leave the blank out")
    name = _id_of(reference)
    pair = Pair(name, regions, present, granularity, group, category, empty, form)
    return ReadPair(pair, reference)


def _text(line: Line, name: str) -> str:
    value = line.fields.get(name)
    if value is None:
        return ""
    if not isinstance(value, str):
        raise line.error(f'"{name}" is {value!r:.40}, not a text')
    return value


def _grey(line: Line, soft_map: Any, size: tuple[int, int]) -> np.ndarray:
    """A map as u8 `[H, W]`: base64 of a PNG, or the name of a PNG file beside the predictions."""
    if not isinstance(soft_map, str):
        raise line.error('"map" is no text: give base64 of a PNG, or the name of a PNG file')
    try:
        if soft_map.lower().endswith(".png"):
            data = read_file(_beside(line, soft_map))
        else:
            data = base64.b64decode(soft_map, validate=True)
        with Image.open(io.BytesIO(data), formats=["PNG"]) as image:
            # The header has both, so nothing is decoded before this check.
            if image.mode != "L" or image.size != size[::-1]:
                raise line.error(
                    f"the map is a picture of {image.height} x {image.width} pixels in mode "
                    f"{image.mode}; it has to be grey (L) and {size[0]} x {size[1]}"
                )
            check_png(data)
            return np.asarray(image)
    except UnidentifiedImageError:
        kind = kind_of(data)
        other = kind is not None and kind.name != "PNG"
        what = f"is {kind.name}" if kind and other else "is damaged or no picture"
        raise line.error(f"the map {what}; save it as a grey PNG") from None
    except binascii.Error as error:
        raise line.error(
            f"the map cannot be read ({error}); give base64 of a PNG without line ends or a prefix, or "
            "the name of a .png beside the predictions"
        ) from None
    except _UNREADABLE as error:
        raise line.error(f"the map cannot be read: {error}; save it again as a grey PNG") from None


def _beside(line: Line, name: str) -> Path:
    """Path of a file in the folder of the predictions, in whichever spelling it is there."""
    inside = [path for text in spellings(name) if not _leads_out(path := Path(text))]
    if not inside:
        raise line.error(f"the map {name!r:.80} lies elsewhere; put it beside the predictions")
    paths = [line.path.parent / path for path in inside]
    return next(filter(os.path.exists, paths), paths[0])


def _leads_out(path: Path) -> bool:
    return path.is_absolute() or ".." in path.parts
