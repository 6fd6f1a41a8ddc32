"""One's own pictures and words: a folder of images and a file of JSON lines for each split.

    DIR/train.jsonl    {"image": "a.jpg", "expression": "the red car", "mask": "a-0.png"}
    DIR/val.jsonl      {"image": "b/c.png", "expression": "a dog", "mask": null}

A line is one expression of one image. What it means is one of

- `mask`: an image file of the picture's size, or a list of them (several targets): pixels that are
  not zero;
- `segmentation`: COCO polygons or RLE, as in `predictions.jsonl` (see `refseg_jax.predictions`), whose
  lines are therefore lines of this format;

and `null`, or an RLE without a pixel, says that nothing matches. Optional are `granularity` (else
`object`, `multi` for several masks, `none` where nothing matches), `category` and `id`. Paths count
from `DIR`.
"""

import dataclasses
import functools
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from pycocotools import mask as coco_mask

from input_pipeline.datasets.building import BuildError, build_records
from input_pipeline.schema import Expression, Record, Target, encode_mask
from input_pipeline.segmentation import SegmentationError, checked_rle, encode_segmentation
from refseg_jax.batch import GRANULARITIES
from refseg_jax.naming import unknown
from refseg_jax.preprocess import MAX_PIXELS, ImageError, decode_image

_FIELDS = frozenset(
    {"image", "expression", "mask", "segmentation", "granularity", "category", "id"}
    # What `predictions.jsonl` has beside.
    | {"score", "present"}
)


@dataclasses.dataclass(frozen=True)
class Line:
    """One expression, with where it stands (`train.jsonl:7`) for errors."""

    where: str
    id: str
    text: str
    regions: tuple[Any, ...]
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
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise BuildError(f"{path}: not UTF-8 ({error.reason}); save it as UTF-8") from None
    images: dict[str, list[Line]] = {}
    for number, line in enumerate(text.splitlines(), 1):
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
    data = _read(folder / item.image, item.lines[0].where)
    height, width, _ = decode_image(data, name=str(folder / item.image)).shape
    targets: dict[bytes, int] = {}
    categories: list[str] = []
    referents: dict[tuple[int, ...], int] = {}
    expressions = []
    for line in item.lines:
        chosen: list[int] = []
        for region in line.regions:
            counts = _counts(region, folder, (height, width), line.where)
            if counts is None:
                continue
            if counts not in targets:
                categories.append(line.category)
            chosen.append(targets.setdefault(counts, len(targets)))
        means = tuple(dict.fromkeys(chosen))
        referent = referents.setdefault(means, len(referents))
        granularity = line.granularity or ("object", "multi")[len(means) > 1]
        if not means:
            granularity = "none"
        expressions.append(Expression(line.id, line.text, means, granularity, referent))
    return Record(
        image=data,
        image_id=f"{source}/{item.image}",
        file_name=item.image,
        height=height,
        width=width,
        source=source,
        targets=tuple(
            Target(counts, category) for counts, category in zip(targets, categories, strict=True)
        ),
        expressions=tuple(expressions),
    )


def read_mask(data: bytes, *, name: str) -> np.ndarray:
    """bool `[H, W]`, true where a mask's file is not zero (its palette and its alpha do not count).

    Raises:
        ImageError: it is damaged, too large, or a JPEG, whose compression smears zeros.
    """
    try:
        with Image.open(io.BytesIO(data)) as image:
            if image.format == "JPEG":
                raise ImageError(f"{name}: a JPEG keeps no exact mask; save it as PNG")
            if image.width * image.height > MAX_PIXELS:
                raise ImageError(f"{name}: {image.width} x {image.height} pixels are too many")
            values = np.asarray(image)
            if image.mode in ("LA", "RGBA"):
                values = values[..., :-1]
    except ImageError:
        raise
    except Exception as error:  # Pillow raises whatever it likes on damaged bytes.
        reason = " ".join(str(error).split())[:120]
        raise ImageError(f"{name}: the mask is damaged ({reason}); replace the file") from None
    return np.asarray(values.any(-1) if values.ndim == 3 else values != 0)


def _read_line(text: str, where: str, default_id: str) -> tuple[str, Line]:
    try:
        line = json.loads(text)
    except ValueError as error:
        raise BuildError(f"{where}: no JSON ({error}); one object a line") from None
    if not isinstance(line, dict):
        raise BuildError(f"{where}: a {type(line).__name__}; write one JSON object a line")
    for field in line:
        if field not in _FIELDS:
            raise BuildError(f"{where}: {unknown('field', field, _FIELDS)}")
    for field in ("image", "expression"):
        if not isinstance(line.get(field), str) or not line[field].strip():
            raise BuildError(f"{where}: {field!r} is no text; each line needs it")
    if ("mask" in line) == ("segmentation" in line):
        raise BuildError(f"{where}: give either 'mask' or 'segmentation' (null: nothing matches)")
    granularity = line.get("granularity", "")
    if granularity not in ("", *GRANULARITIES):
        raise BuildError(f"{where}: {unknown('granularity', str(granularity), GRANULARITIES)}")
    read = Line(
        where=where,
        id=str(line.get("id", default_id)),
        text=line["expression"],
        regions=_regions(line, where),
        granularity=granularity,
        category=str(line.get("category", "")),
    )
    return line["image"], read


def _regions(line: Mapping[str, Any], where: str) -> tuple[Any, ...]:
    """File names of masks, or one segmentation; nothing where the line says that nothing matches."""
    if "segmentation" in line:
        return () if line["segmentation"] is None else (line["segmentation"],)
    masks = line["mask"]
    if masks is None:
        return ()
    names = [masks] if isinstance(masks, str) else masks
    if not isinstance(names, list) or not all(isinstance(n, str) and n for n in names):
        raise BuildError(f"{where}: 'mask' is {masks!r:.40}; name a file, a list of files, or null")
    return tuple(names)


def _counts(region: Any, folder: Path, size: tuple[int, int], where: str) -> bytes | None:
    """RLE counts of a mask's file or of a segmentation; `None` for an RLE without a pixel."""
    if isinstance(region, str):
        mask = read_mask(_read(folder / region, where), name=str(folder / region))
        if mask.shape != size:
            raise BuildError(
                f"{where}: {region} is {mask.shape[1]} x {mask.shape[0]}, its image "
                f"{size[1]} x {size[0]}; draw it at the image's size"
            )
        if not mask.any():
            raise BuildError(f"{where}: {region} has no pixel; write null where nothing matches")
        return encode_mask(mask)
    try:
        if isinstance(region, Mapping) and not _any_pixel(region, size):
            return None
        return encode_segmentation(region, *size).counts
    except SegmentationError as error:
        raise BuildError(f"{where}: {error}; correct the segmentation") from None


def _any_pixel(rle: Mapping[str, Any], size: tuple[int, int]) -> bool:
    counted: Any = checked_rle(rle, *size)
    return bool(coco_mask.area(counted))


def _read(path: Path, where: str) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise BuildError(f"{where}: {path}: {error.strerror}; correct the name") from None
