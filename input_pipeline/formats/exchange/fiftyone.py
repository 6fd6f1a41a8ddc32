"""Reads exports of FiftyOne: the format `FiftyOneDataset`, `Detections` with masks.

An export has `samples.json` with the fields of each sample, and the pictures in `data/`. A detection
has its `label`, its `bounding_box` (x, y, width, height as shares of the picture), and `mask`: an array
that fills the box, as `numpy.save` writes it, compressed by zlib, in base64; or `mask_path`, the name
of a picture of that array (`fiftyone/core/labels.py` and `utils.py` of voxel51/fiftyone). A mask of
another size than its box is resized to it by nearest neighbour.
"""

import base64
import binascii
import io
import json
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from pycocotools import mask as coco_mask

from input_pipeline.building.conversion import BuildError, SourceError
from input_pipeline.formats.exchange.lines import NO_MASK, Collected, is_sure, texts_of
from input_pipeline.formats.json_stream import elements, integer, words
from input_pipeline.formats.mask_files import read_mask
from input_pipeline.formats.places import Places
from refseg_jax.errors import UserError, shown
from refseg_jax.images.decoding import MAX_PIXELS, ImageError, seen_size

_FILE = "samples.json"


def read(places: Places) -> dict[str, Collected]:
    """Reads the pictures of an export, or of one in each sub-folder, which is a split.

    Args:
        places: the folders that may hold the files; the first has the export.

    Raises:
        SourceError: there is no export, it is damaged, or several of its fields have masks.
        BuildError: a mask does not fit its picture.
    """
    folder = places.folder
    if (folder / _FILE).is_file():
        return {"train": _collected(folder / _FILE, "", places)}
    files = sorted(path for path in folder.glob(f"*/{_FILE}") if path.parent.name[:1] != ".")
    if not files:
        hint = " (export without use_dirs)" if (folder / "samples").is_dir() else ""
        raise SourceError(
            f"{folder}: no {_FILE} there{hint}; export as fiftyone.types.FiftyOneDataset, for several "
            "splits into sub-folders train, val"
        )
    for path in files:
        split = path.parent.name
        if not split.isidentifier() or not split.isascii() or split[0] == "_" or split == "all":
            raise BuildError(f"{path.parent}: a split cannot be called {split!r}; call it train")
    return {path.parent.name: _collected(path, f"{path.parent.name}/", places) for path in files}


def _collected(file: Path, inside: str, places: Places) -> Collected:
    """Reads the field that has masks; `inside` is the folder of the export in that of all."""
    fields: dict[str, Collected] = {}
    number = 0
    for key, sample in elements(file):
        if key != "samples":
            continue
        number += 1
        where = f"{file}: sample {number}"
        try:
            _sample(sample, where, fields, inside, places)
        except UserError:  # Among them errors of pictures, which are `ValueError`s.
            raise
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            reason = f"no {error}" if isinstance(error, KeyError) else str(error)
            raise SourceError(
                f"{where} is not FiftyOne's ({' '.join(reason.split())[:120]}); export it again"
            ) from None
    if not fields:
        raise SourceError(
            f"{file}: no Detections with a mask in {number} samples; other labels are not read"
        )
    if len(fields) > 1:
        raise SourceError(
            f"{file}: the fields {' and '.join(sorted(fields))} have masks; export one of them, by "
            f"dataset.select_fields({min(fields)!r}).export(...)"
        )
    return next(iter(fields.values()))


def _sample(
    sample: Mapping[str, Any],
    where: str,
    fields: dict[str, Collected],
    inside: str,
    places: Places,
) -> None:
    name = words(sample["filepath"]).replace("\\", "/")
    name = name if name.startswith("/") else inside + name
    size: tuple[int, int] | None = None
    for field, value in sample.items():
        if not isinstance(value, Mapping) or value.get("_cls") != "Detections":
            continue
        detections = value.get("detections") or []
        masked = [one for one in detections if one.get("mask") or one.get("mask_path")]
        if not masked:
            continue
        collected = fields.setdefault(field, Collected())
        if len(masked) < len(detections):
            collected.notes[NO_MASK] += len(detections) - len(masked)
        size = size or _size(sample, name, where, places)
        collected.picture(name, size, where)
        for one in masked:
            if is_sure(one, "confidence", collected.notes):
                _detection(one, name, size, where, collected, inside, places)


def _size(sample: Mapping[str, Any], name: str, where: str, places: Places) -> tuple[int, int]:
    """(height, width) as the metadata state it, else as the picture does."""
    metadata = sample.get("metadata") or {}
    if metadata.get("height") and metadata.get("width"):
        return integer(metadata["height"]), integer(metadata["width"])
    try:
        return seen_size(places.read(name, where))
    except ImageError as error:
        raise BuildError(f"{where}: {error}") from None


def _detection(
    one: Mapping[str, Any],
    name: str,
    size: tuple[int, int],
    where: str,
    collected: Collected,
    inside: str,
    places: Places,
) -> None:
    if one.get("mask"):
        mask = _decoded(one["mask"], where)
    else:
        file = words(one["mask_path"])
        file = file if file.startswith("/") else inside + file
        # Whatever is not 0 belongs to the region.
        read = read_mask(places.read(file, where), name=f"{where}: {shown(file)}", threshold=1)
        mask = read.region
    whole = _placed(mask, _edges(one["bounding_box"], size, where), size)
    rle: Any = coco_mask.encode(np.asfortranarray(whole, np.uint8))
    label = one.get("label")
    collected.add(
        name,
        where,
        {"size": list(size), "counts": rle["counts"].decode()},
        texts=texts_of(one),
        categories=[] if label is None else [label],
    )


def _edges(box: Any, size: tuple[int, int], where: str) -> tuple[int, int, int, int]:
    """Left, top, right and bottom of a box in whole pixels, at least one wide and high."""
    if not isinstance(box, list) or len(box) != 4 or any(type(v) not in (int, float) for v in box):
        raise TypeError(f"bounding_box {box!r:.60}")
    x, y, width, height = box
    # Detections may reach over the border a little.
    if not (-1 <= x <= 1 and -1 <= y <= 1 and 0 < width <= 2 and 0 < height <= 2):
        raise BuildError(
            f"{where}: bounding_box {box!r:.60} is no [x, y, width, height] in shares of the picture "
            "(0..1); correct it"
        )
    left, top = round(x * size[1]), round(y * size[0])
    right, bottom = round((x + width) * size[1]), round((y + height) * size[0])
    return left, top, max(right, left + 1), max(bottom, top + 1)


def _placed(
    mask: np.ndarray, edges: tuple[int, int, int, int], size: tuple[int, int]
) -> np.ndarray:
    """The mask resized to its box, in the picture, bool `[H, W]`; cut at the picture's border."""
    left, top, right, bottom = edges
    whole = np.zeros(size, bool)
    rows, columns = (
        np.arange(max(first, 0), min(last, length))
        for first, last, length in ((top, bottom, size[0]), (left, right, size[1]))
    )
    down = (2 * (rows - top) + 1) * mask.shape[0] // (2 * (bottom - top))
    across = (2 * (columns - left) + 1) * mask.shape[1] // (2 * (right - left))
    whole[np.ix_(rows, columns)] = mask[np.ix_(down, across)]
    return whole


def _decoded(stored: Any, where: str) -> np.ndarray:
    """A mask, bool `[h, w]`, of base64: a text, or MongoDB's `$binary` in its two forms."""
    if isinstance(stored, Mapping):
        stored = stored.get("$binary")
    if isinstance(stored, Mapping):
        stored = stored.get("base64")
    if not isinstance(stored, str):
        raise TypeError(f"mask {json.dumps(stored):.40}")
    room = MAX_PIXELS + 4096
    try:
        unpacker = zlib.decompressobj()
        data = unpacker.decompress(base64.b64decode(stored, validate=True), room)
        if unpacker.unconsumed_tail:
            raise BuildError(f"{where}: a mask of more than {MAX_PIXELS:,} bytes; save it as bool")
        # Objects in it would be code: they are refused.
        mask = np.load(io.BytesIO(data), allow_pickle=False)
    except (binascii.Error, zlib.error, ValueError, EOFError, OSError, MemoryError) as error:
        reason = " ".join(str(error).split())[:80]
        raise BuildError(f"{where}: a mask is damaged ({reason}); export it again") from None
    if not isinstance(mask, np.ndarray) or mask.ndim != 2 or not mask.size:
        raise BuildError(f"{where}: a mask is no array [height, width]; export it again")
    return mask > 0
