"""Makes lines of a user's own data of regions that other tools or models have drawn.

`input_pipeline.datasets.masks` says which lines a region gets. The lines are those of
`input_pipeline.datasets.jsonl`, so that everything that is checked there is checked here.
"""

import dataclasses
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from pycocotools import mask as coco_mask

from input_pipeline.building.conversion import NO_WORD, BuildError, SourceError
from input_pipeline.formats.json_stream import words
from input_pipeline.formats.jsonl_lines import Line, parse_line
from input_pipeline.formats.places import Places
from input_pipeline.formats.regions import counts_of
from refseg_jax.images.decoding import MAX_PIXELS
from refseg_jax.images.placement import check_inside, is_of_corners, nested
from refseg_jax.images.segmentation import SegmentationError, check_form
from refseg_jax.images.units import Evidence
from refseg_jax.text.cleaning import has_word

#: Notes in the report of a build.
EMPTY = "regions without a pixel, left out"
NO_MASK = "regions that are no masks (boxes, points), left out"
NO_REGION = "pictures without a region, left out"
UNSURE = "regions with a score below 0.5, left out"

#: Score from which on a prediction counts: SAM 3's own (paper, section 5; `threshold` of its
#: evaluator).
SURE = 0.5

#: Fields of a region that hold expressions: a text or a list of texts.
TEXT_FIELDS = (
    *("expression", "expressions", "caption", "captions"),
    *("phrase", "phrases", "noun_phrase", "noun_phrases"),
)

#: Folders in which exports have their pictures, relative to that of the annotations' parent.
_FOLDERS = ("", "images/", "data/", "images/{split}/", "{split}/", "{split}2017/", "{split}2014/")


@dataclasses.dataclass(frozen=True)
class Found:
    """A region of a picture.

    Attributes:
        where: its place in the file, for errors.
        counts: compressed RLE at the size of the picture.
        texts: what is said of it.
        categories: names of its kind.
        box: (x, y, width, height) in pixels as stated, or empty.
    """

    where: str
    counts: bytes
    texts: tuple[str, ...] = ()
    categories: tuple[str, ...] = ()
    box: tuple[float, ...] = ()


@dataclasses.dataclass
class _Picture:
    size: tuple[int, int]
    where: str
    regions: list[Found] = dataclasses.field(default_factory=list)
    asked: dict[str, str] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class ExchangedImage:
    """A picture with its lines.

    Attributes:
        name: name of the picture's file.
        stem: beginning of the ids of its expressions.
        first: number of its first line in the split.
        stored: (place in the file of the tool, line as JSON) of each expression.
    """

    name: str
    stem: str
    first: int
    stored: tuple[tuple[str, bytes], ...]

    @property
    def key(self) -> str:
        """Unique in the dataset."""
        return self.name

    @property
    def threshold(self) -> None:
        """The regions are RLE: no mask has to be cut."""
        return None

    def lines(self) -> list[Line]:
        """The expressions, with the ids that they have if the lines are read from a file."""
        return [
            parse_line(data, where, f"{self.stem}-{number}")
            for number, (where, data) in enumerate(self.stored, self.first)
        ]

    def read(self, name: str, places: Places, where: str) -> bytes:
        """Reads a file that a line names; raises a `BuildError` if that fails."""
        return places.read(name, where)


class Collected:
    """The pictures of a split, with their regions and what is asked of them.

    Attributes:
        notes: what the report of the build counts.
    """

    def __init__(self) -> None:
        self.notes: Counter[str] = Counter()
        self._pictures: dict[str, _Picture] = {}
        self._evidence = Evidence()

    def picture(self, name: str, size: tuple[int, int], where: str) -> None:
        """Adds a picture of `size` (height, width), unless it is there.

        Raises:
            BuildError: no picture is so small or so large, or it is there with another size.
        """
        if min(size) < 1 or size[0] * size[1] > MAX_PIXELS:
            what = f"{size[1]} x {size[0]}" if max(map(abs, size)) < 10**12 else "too many"
            raise BuildError(f"{where}: {what} pixels; there are 1 to {MAX_PIXELS:,}; correct it")
        known = self._pictures.setdefault(name, _Picture(size, where))
        if known.size != size:
            raise BuildError(
                f"{where}: {name} is {size[1]} x {size[0]}, and {known.size[1]} x {known.size[0]} at "
                f"{known.where}; correct one of them"
            )

    def ask(self, name: str, text: str, where: str) -> None:
        """Asks a picture for a text, whether or not a region matches it."""
        for clean in self.cleaned([text]):
            self._pictures[name].asked.setdefault(clean, where)

    def cleaned(self, texts: Iterable[Any]) -> tuple[str, ...]:
        """Texts without those that have no word, each once."""
        found = dict.fromkeys(words(text) for text in texts)
        kept = tuple(text for text in found if has_word(text))
        if len(kept) < len(found):
            self.notes[NO_WORD] += len(found) - len(kept)
        return kept

    def add(
        self,
        name: str,
        where: str,
        segmentation: Any,
        *,
        texts: Iterable[Any] = (),
        categories: Iterable[Any] = (),
        box: Sequence[float] = (),
    ) -> None:
        """Adds a region of a picture that is there; counts one without a pixel.

        Args:
            name: name of the picture.
            where: place of the region in its file, for errors.
            segmentation: COCO's polygons or RLE.
            texts, categories: what is said of it, and names of its kind.
            box: (x, y, width, height) in pixels as stated, or empty.

        Raises:
            BuildError: the segmentation is malformed, or does not fit the picture or the box.
        """
        size = self._pictures[name].size
        self._evidence.add(segmentation, where, size)
        stated = tuple(box) if len(box) == 4 and min(box[2:]) > 0 else ()
        try:
            check_form(segmentation)
            check_inside(segmentation, *size)
            counts = counts_of(segmentation, size, self.notes, empty=EMPTY, box=stated)
            if counts is None:
                return
            self.notes.update(nested(segmentation, *size))
        except SegmentationError as error:
            raise BuildError(f"{where}: {error.with_cure('correct it and export again')}") from None
        if stated and is_of_corners({"size": list(size), "counts": counts}, stated):
            raise BuildError(
                f"{where}: its box {list(stated)} is [left, top, right, bottom]; write [x, y, width, "
                "height] in pixels"
            )
        said, kinds = self.cleaned(texts), self.cleaned(categories)
        self._pictures[name].regions.append(Found(where, counts, said, kinds, stated))

    def images(self, stem: str) -> list[ExchangedImage]:
        """The pictures that have lines.

        Args:
            stem: beginning of the ids of expressions.

        Raises:
            BuildError: the coordinates of the split are evidently no pixels.
        """
        if unit := self._evidence.find():
            raise BuildError(f"{self._evidence.first}: {unit}")
        images, number = [], 1
        for name, picture in self._pictures.items():
            stored = tuple(
                (where, json.dumps({"image": name, **line}, ensure_ascii=False).encode())
                for where, line in _lines(picture)
            )
            if stored:
                images.append(ExchangedImage(name, stem, number, stored))
            else:
                self.notes[NO_REGION] += 1
            number += len(stored)
        return images


def _lines(picture: _Picture) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yields (place, fields of the line) of each text, then of each category."""
    said: dict[str, list[Found]] = {text: [] for text in picture.asked}
    kinds: dict[str, list[Found]] = {}
    for region in picture.regions:
        for text in region.texts:
            said.setdefault(text, []).append(region)
        for name in region.categories:
            kinds.setdefault(name, []).append(region)
    for text, regions in said.items():
        where = regions[0].where if regions else picture.asked[text]
        line: dict[str, Any] = {"expression": text, "segmentation": _union(regions, picture.size)}
        if len(regions) > 1:
            line["granularity"] = "multi"
        names = {name for region in regions for name in region.categories}
        if len(names) == 1:
            line["category"] = names.pop()
        yield where, line
    for name, regions in kinds.items():
        line = {"expression": name, "segmentation": _union(regions, picture.size)}
        yield regions[0].where, {**line, "granularity": "category", "category": name}


def _union(regions: Sequence[Found], size: tuple[int, int]) -> dict[str, Any] | None:
    if not regions:
        return None
    rles: Any = [{"size": list(size), "counts": region.counts} for region in regions]
    merged: Any = coco_mask.merge(rles)
    return {"size": list(size), "counts": merged["counts"].decode()}


def texts_of(entry: Mapping[str, Any]) -> list[Any]:
    """The texts in `TEXT_FIELDS` of a region, and in those of its `attributes` (CVAT).

    Raises:
        TypeError: such a field holds neither a text nor a list of texts.
    """
    attributes = entry.get("attributes")
    texts: list[Any] = []
    for fields in (entry, attributes if isinstance(attributes, Mapping) else {}):
        for name in TEXT_FIELDS:
            value = fields.get(name)
            if isinstance(value, Mapping):  # FiftyOne's attributes of old.
                value = value.get("value")
            texts += value if isinstance(value, list) else [] if value is None else [value]
    for text in texts:
        words(text)
    return texts


def is_sure(entry: Mapping[str, Any], field: str, notes: Counter[str]) -> bool:
    """Whether the score of a prediction counts; regions that people have drawn have none.

    Raises:
        TypeError: the score is no number.
    """
    score = entry.get(field)
    if score is not None and type(score) not in (int, float):
        raise TypeError(f"{field} {score!r:.40} is no number")
    if score is None or score >= SURE:
        return True
    notes[UNSURE] += 1
    return False


def located(name: str, split: str, places: Places) -> str:
    """A name of a picture that leads to a file, with the folder that the export has it in."""
    names = [folder.format(split=split) + name for folder in _FOLDERS]
    return next(filter(places.has, dict.fromkeys(names)), name)


def split_files(folder: Path, begins: str) -> dict[str, Path]:
    """The JSON files of an export: split -> file.

    They lie in the folder or in `annotations/`. `train.json` and `instances_train.json` are `train`. A
    single file of another name is `train`, because tools name their exports by projects and dates.

    Args:
        folder: folder of the export.
        begins: the character with which the JSON of such a file begins, `"{"` or `"["`.

    Raises:
        SourceError: there is no such file.
        BuildError: the names of several files do not tell which splits they are.
    """
    files = [
        path for where in ("", "annotations") for path in sorted((folder / where).glob("*.json"))
    ]
    # What begins with neither is damaged; reading it tells how.
    other = "[" if begins == "{" else "{"
    files = [path for path in files if path.name[:1] != "." and opening(path) != other]
    # COCO has captions and keypoints beside them.
    files = [path for path in files if path.name.startswith("instances_")] or files
    if not files:
        what = "an object" if begins == "{" else "a list"
        raise SourceError(
            f"{folder}: no JSON file that holds {what} there or in annotations/; put the export there"
        )
    named = {path.stem.removeprefix("instances_"): path for path in files}
    if len(files) == 1 and not named.keys() & {"val", "validation", "test"}:
        return {"train": files[0]}
    for split, path in named.items():
        if not split.isidentifier() or not split.isascii() or split[0] == "_" or split == "all":
            raise BuildError(
                f"{path}: a split cannot be called {split!r}; call it train.json or the like"
            )
    if len(named) < len(files):
        raise BuildError(f"{folder}: two files for one split; keep one")
    return named


def opening(path: Path) -> str:
    """The first character of a file that is no blank, or `""`."""
    with path.open("rb") as file:
        start = file.read(256).removeprefix(b"\xef\xbb\xbf").lstrip()
    return start[:1].decode("ascii", "replace")
