"""One's own pictures and words: a folder of images and a file of JSON lines for each split.

    DIR/train.jsonl    {"image": "a.jpg", "expression": "the red car", "mask": "a-0.png"}
    DIR/val.jsonl      {"image": "b/c.png", "expression": "a dog", "mask": null}

A line is one expression of one image. What it means is one of

- `mask`: an image file of the picture's size (PNG, BMP, GIF or TIFF), or a list of them (several
  targets): pixels that are not zero;
- `segmentation`: COCO polygons or RLE, as in the `predictions.jsonl` that `tools.predict` writes, whose
  lines are therefore lines of this format;

and `null`, or an RLE without a pixel, says that nothing matches. Optional are `granularity` (else
`object`, `multi` for several masks; `none` exactly where nothing matches), `category` (of the region
where it comes first) and `id`. Paths count from `DIR`. Pictures are taken as their pixels are stored:
one that an EXIF flag turns is refused, because masks drawn on the turned picture would lie elsewhere.
"""

import dataclasses
import functools
import io
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
from PIL import Image, UnidentifiedImageError
from pycocotools import mask as coco_mask

from input_pipeline.datasets.building import BuildError
from input_pipeline.datasets.own import build_records
from input_pipeline.schema import Expression, Record, Target, encode_mask
from input_pipeline.segmentation import SegmentationError, checked_rle, encode_segmentation
from refseg_jax.batch import GRANULARITIES
from refseg_jax.naming import unknown
from refseg_jax.preprocess import MAX_PIXELS, ImageError, decode_image

#: Formats that keep every pixel of a mask as it was (a TIFF may hold a JPEG, which does not).
_MASKS = ("PNG", "BMP", "GIF", "TIFF")

#: The EXIF field of a picture's orientation; 1 is as stored.
_ORIENTATION = 0x0112

_FIELDS = frozenset(
    {"image", "expression", "mask", "segmentation", "granularity", "category", "id"}
    # What `predictions.jsonl` has beside.
    | {"score", "present"}
)
_TEXTS = frozenset({"image", "expression", "granularity", "category", "id"})


@dataclasses.dataclass(frozen=True)
class Line:
    """One expression, with where it stands (`train.jsonl:7`) for errors."""

    where: str
    id: str
    text: str
    masks: tuple[str, ...]
    segmentation: Any
    granularity: str
    category: str


@dataclasses.dataclass(frozen=True)
class ImageLines:
    """An image of a split and its expressions, in their order."""

    image: str
    lines: tuple[Line, ...]


def build(
    name: str,
    source_dir: Path,
    *,
    data_dir: Path,
    splits: Sequence[str] = (),
    num_workers: int = 0,
) -> Path:
    """Builds the dataset `name` of a folder; `splits` (default: all) are names of its files.

    Raises:
        BuildError: the first thing that is wrong: file, line, reason and cure.
        ImageError: a damaged image.
    """
    files = {path.stem: path for path in sorted(source_dir.glob("*.jsonl"))}
    for split, path in files.items():
        # TFDS reads `train+val` and `train[0]` as expressions over splits, `all` as all of them.
        if not re.fullmatch(r"[A-Za-z]\w*", split, re.ASCII) or split == "all":
            raise BuildError(f"{path}: a split cannot be called {split!r}; use letters, digits, _")
    if not files:
        raise BuildError(f"{source_dir}: no *.jsonl there; write one for each split (train.jsonl)")
    for split in splits:
        if split not in files:
            raise BuildError(f"{source_dir}: {unknown('split', split, files)}")
    plan = {split: read_lines(path) for split, path in files.items() if split in (splits or files)}
    make = functools.partial(make_record, folder=source_dir, source=name)
    return build_records(name, plan, make, data_dir=data_dir, num_workers=num_workers)


def read_lines(path: Path) -> list[ImageLines]:
    """The lines of a file by image, images in the order of their first line.

    Raises:
        BuildError: a line that is no expression, or a file that is not UTF-8.
    """
    try:
        # Some editors begin a file with a mark.
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise BuildError(f"{path}: not UTF-8 ({error.reason}); save it as UTF-8") from None
    except OSError as error:
        raise BuildError(f"{path}: {error.strerror}; it must be a file") from None
    images: dict[str, list[Line]] = {}
    # Not `splitlines`: JSON may hold its other line ends within a text.
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            image, read = _read_line(line, f"{path}:{number}", f"{path.stem}-{number}")
            images.setdefault(image, []).append(read)
    return [ImageLines(image, tuple(lines)) for image, lines in images.items()]


def make_record(item: ImageLines, *, folder: Path, source: str) -> Record:
    """Reads an image and its masks; runs in worker processes.

    Raises:
        BuildError: a file is missing, or a region does not fit the image.
        ImageError: an image is damaged.
    """
    path = folder / item.image
    data = _read(path, item.lines[0].where)
    height, width, _ = decode_image(data, name=str(path)).shape
    with Image.open(io.BytesIO(data)) as image:
        if image.getexif().get(_ORIENTATION, 1) != 1:
            raise BuildError(f"{path}: an EXIF flag turns it; save it as it is to be seen")
    targets: dict[bytes, int] = {}
    categories: list[str] = []
    referents: dict[Any, int] = {}
    expressions = []
    for line in item.lines:
        chosen: set[int] = set()
        for counts in _regions(line, folder, (height, width)):
            number = targets.setdefault(counts, len(targets))
            categories += [""] * (len(targets) - len(categories))
            categories[number] = categories[number] or line.category
            chosen.add(number)
        means = tuple(sorted(chosen))
        if (line.granularity == "none") != (not means) and line.granularity:
            raise BuildError(
                f"{line.where}: granularity {line.granularity!r} with {len(means)} targets; it is "
                "'none' exactly where nothing matches"
            )
        expression = Expression(
            id=line.id,
            text=line.text,
            targets=means,
            granularity=line.granularity or ("none", "object", "multi")[min(len(means), 2)],
            # Two texts that match nothing are not about the same thing.
            referent=referents.setdefault(means or line.text, len(referents)),
        )
        expressions.append(expression)
    return Record(
        image=data,
        image_id=f"{source}/{item.image}",
        file_name=item.image,
        height=height,
        width=width,
        source=source,
        targets=tuple(map(Target, targets, categories)),
        expressions=tuple(expressions),
    )


def read_mask(data: bytes, *, name: str) -> np.ndarray:
    """bool `[H, W]`, true where a mask's file is not zero (its palette and its alpha do not count).

    Raises:
        ImageError: it is damaged, too large, or of a format whose compression smears zeros.
    """
    try:
        with Image.open(io.BytesIO(data), formats=_MASKS) as image:
            if image.width * image.height > MAX_PIXELS:
                raise ImageError(f"{name}: {image.width} x {image.height} pixels are too many")
            if "jpeg" in str(image.info.get("compression", "")):
                raise ImageError(f"{name}: a JPEG keeps no exact mask; save it as PNG")
            values = np.asarray(image)
            if image.mode in ("LA", "RGBA"):
                values = values[..., :-1]
    except ImageError:
        raise
    except UnidentifiedImageError:
        raise ImageError(
            f"{name}: damaged, or no {', '.join(_MASKS)}, which keep masks exactly; save it as PNG"
        ) from None
    except Exception as error:  # Pillow raises whatever it likes on damaged bytes.
        reason = " ".join(str(error).split())[:120]
        raise ImageError(f"{name}: the mask is damaged ({reason}); replace the file") from None
    return np.asarray(values.any(-1) if values.ndim == 3 else values != 0)


def _read_line(text: str, where: str, default_id: str) -> tuple[str, Line]:
    try:
        line = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise BuildError(f"{where}: no JSON ({error}); one object a line") from None
    if not isinstance(line, dict):
        raise BuildError(f"{where}: a {type(line).__name__}; write one JSON object a line")
    for field, value in line.items():
        if field not in _FIELDS:
            raise BuildError(f"{where}: {unknown('field', field, _FIELDS)}")
        if field in _TEXTS and not _is_text(value):
            raise BuildError(f"{where}: {field!r} is {value!r:.40}, no text; correct or leave out")
    for field in ("image", "expression"):
        if field not in line:
            raise BuildError(f"{where}: {field!r} is missing; each line needs it")
    if ("mask" in line) == ("segmentation" in line):
        raise BuildError(f"{where}: give either 'mask' or 'segmentation' (null: nothing matches)")
    granularity = line.get("granularity", "")
    if granularity not in ("", *GRANULARITIES):
        raise BuildError(f"{where}: {unknown('granularity', granularity, GRANULARITIES)}")
    read = Line(
        where=where,
        id=line.get("id", default_id),
        text=line["expression"],
        masks=_mask_names(line.get("mask"), where),
        segmentation=line.get("segmentation"),
        granularity=granularity,
        category=line.get("category", ""),
    )
    return line["image"], read


def _is_text(value: Any) -> bool:
    """Some words, which a file can hold: neither a zero byte nor half a character."""
    if not isinstance(value, str) or not value.strip() or "\0" in value:
        return False
    return not any("\ud800" <= letter <= "\udfff" for letter in value)


def _mask_names(masks: Any, where: str) -> tuple[str, ...]:
    if masks is None:
        return ()
    names = [masks] if isinstance(masks, str) else masks
    if not isinstance(names, list) or not names or not all(_is_text(name) for name in names):
        raise BuildError(f"{where}: 'mask' is {masks!r:.40}; name a file, a list of files, or null")
    return tuple(names)


def _regions(line: Line, folder: Path, size: tuple[int, int]) -> list[bytes]:
    """RLE counts of what the line means."""
    counts = [_file_counts(folder / name, size, line.where) for name in line.masks]
    region = line.segmentation
    try:
        empty = isinstance(region, Mapping) and not coco_mask.area(
            cast(Any, checked_rle(region, *size))
        )
        if region is not None and not empty:
            counts.append(encode_segmentation(region, *size).counts)
    except SegmentationError as error:
        raise BuildError(f"{line.where}: {error}; correct the segmentation") from None
    return counts


def _file_counts(path: Path, size: tuple[int, int], where: str) -> bytes:
    mask = read_mask(_read(path, where), name=str(path))
    if mask.shape != size:
        raise BuildError(
            f"{where}: {path.name} is {mask.shape[1]} x {mask.shape[0]}, its image "
            f"{size[1]} x {size[0]}; draw it at the image's size"
        )
    if not mask.any():
        raise BuildError(f"{where}: {path.name} has no pixel; write null where nothing matches")
    return encode_mask(mask)


def _read(path: Path, where: str) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise BuildError(f"{where}: {path}: {error.strerror}; correct the name") from None
