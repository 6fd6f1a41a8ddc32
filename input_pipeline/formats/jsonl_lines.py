"""Parses and checks the lines of a user's own files; `input_pipeline.datasets.jsonl` has the format."""

import dataclasses
from collections.abc import Sequence
from typing import Any

from input_pipeline.building.conversion import BuildError
from input_pipeline.schema import id_fault
from refseg_jax.batch import ABSENCES, GRANULARITIES
from refseg_jax.naming import unknown
from refseg_jax.text.cleaning import has_word
from refseg_jax.text.encoding import EncodingError, json_of

#: Value of `segmentation` that makes the rectangle of `box` the region.
BOX = "box"

_FIELDS = frozenset(
    {"image", "image_id", "expression", "mask", "segmentation", "box", "granularity", "category"}
    | {"parent", "id", "threshold", "form"}
    # Other fields of `predictions.jsonl`.
    | {"score", "present", "presence", "thresholds"}
)
#: No picture has so many pixels on a side.
_FURTHEST = 1e9
_TEXTS = frozenset(
    {"image", "image_id", "expression", "granularity", "form", "category", "parent", "id"}
)


@dataclasses.dataclass(frozen=True)
class Line:
    """One expression.

    Attributes:
        where: place of the line (`train.jsonl:7`), for errors.
        id: the given id, or one made from the file's name and the number of the line.
        image, image_id: as given, or `""`.
        text: the expression.
        masks: names of mask files.
        segmentation: COCO's polygons or RLE, `BOX`, or `None`.
        cleared: whether nothing matches although `segmentation` may have a region: a prediction with
            `"present": false` keeps the mask that was cleared.
        box: (x, y, width, height) in pixels, or empty.
        granularity, form, category: as given, or `""`; a line with a parent is a `part`.
        parent: id of the expression of the object that this part belongs to, or `""`.
        threshold: at which the masks are cut, 1..255, or `None`.
    """

    where: str
    id: str
    image: str
    image_id: str
    text: str
    masks: tuple[str, ...]
    segmentation: Any
    cleared: bool
    box: tuple[float, ...]
    granularity: str
    form: str
    category: str
    parent: str
    threshold: int | None

    @property
    def shape(self) -> Any:
        """The segmentation, with the corners of `box` where that is the region."""
        return [_corners(self.box)] if self.segmentation == BOX else self.segmentation


def parse_lines(data: bytes, where: str, default_id: str) -> list[Line]:
    """Parses the JSON of a sample of a tar: one object, or a list of them.

    Args:
        data: UTF-8, with or without a byte order mark.
        where: path of the JSON, for errors.
        default_id: beginning of the ids of expressions that give none.

    Raises:
        BuildError: an expression is malformed, or there is none.
    """
    stored = _loads(data, where)
    listed = stored if isinstance(stored, list) else [stored]
    if not listed:
        raise BuildError(f"{where}: an empty list; write an object for each expression")
    return [_line(s, f"{where}:{n}", f"{default_id}-{n}") for n, s in enumerate(listed, 1)]


def parse_line(data: bytes, where: str, default_id: str) -> Line:
    """Parses a line of a file.

    Args:
        data: UTF-8, with or without a byte order mark.
        where: place of the line, for errors.
        default_id: id of an expression that gives none.

    Raises:
        BuildError: the line is malformed.
    """
    line = _line(_loads(data, where), where, default_id)
    if not line.image:
        raise BuildError(f"{where}: 'image' is missing; each line needs it")
    return line


def _loads(data: bytes, where: str) -> Any:
    try:
        return json_of(data)
    except EncodingError as error:
        raise BuildError(f"{where}: {error}") from None
    except (ValueError, RecursionError) as error:
        raise BuildError(f"{where}: no JSON ({error}); one object a line") from None


def _line(line: Any, where: str, default_id: str) -> Line:
    if not isinstance(line, dict):
        raise BuildError(f"{where}: a {type(line).__name__}; write one JSON object a line")
    line = dict(line)
    if type(line.get("image_id")) is int:  # As COCO has it.
        line["image_id"] = str(line["image_id"])
    for field, value in line.items():
        if field not in _FIELDS:
            raise BuildError(f"{where}: {unknown('field', field, _FIELDS)}")
        if field in _TEXTS and not _is_text(value):
            raise BuildError(f"{where}: {field!r} is {value!r:.40}, no text; correct or leave out")
    if not has_word(line.get("expression", "a")):
        raise BuildError(
            f"{where}: 'expression' is {line['expression'][:40]!a}, which has no word; say what to look "
            "for, or leave the line out"
        )
    if "expression" not in line:
        raise BuildError(f"{where}: 'expression' is missing; each line needs it")
    if ("mask" in line) == ("segmentation" in line):
        box = '; a box alone needs "segmentation": "box"' if "box" in line else ""
        raise BuildError(
            f"{where}: give either 'mask' or 'segmentation' (null: nothing matches){box}"
        )
    present = line.get("present", True)
    if not isinstance(present, bool):
        raise BuildError(f"{where}: 'present' is {present!r:.40}; write true or false")
    region = line.get("segmentation")
    if not present and (line.get("mask") or region == BOX):
        raise BuildError(f"{where}: a region, and 'present' is false; leave one of them out")
    return Line(
        where=where,
        id=line.get("id", default_id),
        image=line.get("image", ""),
        image_id=_image_id(line.get("image_id", ""), where),
        text=line["expression"],
        masks=_mask_names(line.get("mask"), where),
        segmentation=region,
        cleared=not present,
        box=_box(line, where),
        granularity=_granularity(line, where),
        form=_form(line, where),
        category=line.get("category", "").strip(),
        parent=line.get("parent", ""),
        threshold=_threshold(line, where),
    )


def _threshold(line: dict[str, Any], where: str) -> int | None:
    level = line.get("threshold")
    if level is None:
        return None
    if type(level) is not int or not 1 <= level <= 255:
        raise BuildError(
            f"{where}: 'threshold' is {level!r:.40}; it is a level of 1 to 255, and 128 is half"
        )
    if not line.get("mask"):
        raise BuildError(f"{where}: a 'threshold' without a 'mask'; leave it out")
    return level


def _granularity(line: dict[str, Any], where: str) -> str:
    granularity = line.get("granularity", "part" if "parent" in line else "")
    if granularity not in ("", *GRANULARITIES):
        raise BuildError(f"{where}: {unknown('granularity', granularity, GRANULARITIES)}")
    if "parent" in line and granularity != "part":
        raise BuildError(f"{where}: a {granularity!r} with a parent; only a 'part' has one")
    return granularity


def _form(line: dict[str, Any], where: str) -> str:
    form = line.get("form", "")
    if form not in ("", *ABSENCES):
        raise BuildError(f"{where}: {unknown('form', form, ABSENCES)}")
    return form


def _image_id(text: str, where: str) -> str:
    """Refuses other spellings, because the id of an image must be equal wherever it occurs."""
    if fault := id_fault(text):
        raise BuildError(f"{where}: 'image_id' {text!r:.80} {fault}")
    return text


def _box(line: dict[str, Any], where: str) -> tuple[float, ...]:
    box = line.get("box")
    if box is None:
        if line.get("segmentation") == BOX:
            raise BuildError(f"{where}: 'segmentation' is 'box', and no 'box' is given")
        return ()
    sound = isinstance(box, list) and len(box) == 4
    # Compared before they become floats, which integers beyond 1.8e308 cannot.
    sound = sound and all(type(v) in (int, float) and abs(v) <= _FURTHEST for v in box)
    if not sound or box[2] <= 0 or box[3] <= 0:
        raise BuildError(f"{where}: 'box' is {box!r:.40}; write [x, y, width, height] in pixels")
    return tuple(float(value) for value in box)


def _corners(box: Sequence[float]) -> list[float]:
    x, y, width, height = box
    return [x, y, x + width, y, x + width, y + height, x, y + height]


def _is_text(value: Any) -> bool:
    """Whether it is a text with words that can be stored: no zero byte, no lone surrogate."""
    if not isinstance(value, str) or not value.strip() or "\0" in value:
        return False
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


def _mask_names(masks: Any, where: str) -> tuple[str, ...]:
    if masks is None:
        return ()
    names = [masks] if isinstance(masks, str) else masks
    if not isinstance(names, list) or not names or not all(_is_text(name) for name in names):
        raise BuildError(f"{where}: 'mask' is {masks!r:.40}; name a file, a list of files, or null")
    return tuple(names)
