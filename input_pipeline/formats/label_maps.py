"""Datasets whose annotation of an image is another image: maps of classes, of saliency.

A map is a PNG of its picture's size, and only its stored numbers count: a palette is decoration, and
grey values of fewer than 8 bits are taken as they are (Pillow stretches them to 0..255).
"""

import dataclasses
import io
import os
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, UnidentifiedImageError
from pycocotools import mask as coco_mask

from input_pipeline import prompts
from input_pipeline.building.conversion import ItemError, Outcome, Plan, SourceError, read_image
from input_pipeline.schema import Expression, Target
from refseg_jax.images.preprocess import MAX_PIXELS

#: A note of a build.
NOTHING = "images without a labelled pixel, left out"

_IMAGES, _MAPS = (".jpg", ".jpeg"), (".png",)

#: By what Pillow multiplies grey values of so many bits.
_STRETCHED = {2: 85, 4: 17}


@dataclasses.dataclass(frozen=True)
class MapItem:
    """An image and its map.

    Attributes:
        image, labels: their files.
        image_id: of the record.
        key: begins the ids of its expressions; unique in the dataset.
        names: of classes, where the release says them; else empty.
    """

    image: Path
    labels: Path
    image_id: str
    key: str
    names: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Classes:
    """What the values of a map mean.

    Attributes:
        names: of the values `first`, `first + 1`, ...
        void: the value of pixels of no class.
        first: the value of the first class.
        stuff: values of classes that have no single objects.
    """

    names: tuple[str, ...]
    void: int
    first: int = 1
    stuff: frozenset[int] = frozenset()

    def name(self, value: int) -> str:
        """Of the class of a value.

        Raises:
            KeyError: it has none.
        """
        if not self.first <= value < self.first + len(self.names):
            raise KeyError(value)
        return self.names[value - self.first]


@dataclasses.dataclass(frozen=True)
class Files:
    """Images and maps of the same name: `found` as (name without suffix, image, map), sorted."""

    found: tuple[tuple[str, Path, Path], ...]
    problems: tuple[str, ...]


def convert_categories(item: MapItem, source: str, *, classes: Classes, cure: str) -> Outcome:
    """An image with a target for each class in its map, each asked for by "all {}".

    Args:
        item: the image.
        source: the record's `source`.
        classes: what the values mean.
        cure: what to do about a wrong map.

    Returns:
        The record; `None` where every pixel is void.

    Raises:
        ItemError: a file is missing, they differ in size, or a value is no class.
        ImageError: the image is damaged.
    """
    labels = read_labels(item.labels, cure=cure)
    image = read_image(item.image, size=labels.shape, cure=cure)
    regions = encode_labels(labels, without=(classes.void,))
    try:
        found = [(value, classes.name(value), counts) for value, counts in regions.items()]
    except KeyError as error:
        raise ItemError(f"{item.labels}: {error.args[0]} is no class; {cure}") from None
    if not found:
        return Outcome(None, notes={NOTHING: 1})
    record = image.record(
        item.image_id,
        source,
        targets=tuple(
            Target(counts, name, granularity="stuff" if value in classes.stuff else "object")
            for value, name, counts in found
        ),
        expressions=tuple(
            Expression(f"{item.key}-{value}", prompts.category(name), (k,), "category", k)
            for k, (value, name, _) in enumerate(found)
        ),
    )
    return Outcome(record)


def read_labels(path: Path, *, cure: str) -> np.ndarray:
    """The numbers of an indexed or grey PNG, i32 `[H, W]`.

    Raises:
        ItemError: it is missing, damaged, in colour, or no PNG.
    """
    image, bits = _read_png(path, cure)
    if image.mode not in ("1", "L", "P") and not image.mode.startswith("I"):
        raise ItemError(f"{path}: is in colour ({image.mode}), a map of classes is not; {cure}")
    values = np.asarray(image).astype(np.int32)
    return values // _STRETCHED.get(bits, 1) if image.mode == "L" else values


def read_colours(path: Path, *, cure: str) -> np.ndarray:
    """The numbers of a PNG in colour, u8 `[H, W, 3]`; raises as `read_labels` does."""
    image, bits = _read_png(path, cure)
    if image.mode != "RGB" or bits != 8:
        raise ItemError(f"{path}: is not in colour of 8 bits ({image.mode}, {bits} bits); {cure}")
    return np.asarray(image)


def read_levels(path: Path, *, cure: str) -> np.ndarray:
    """How bright a PNG without colour is, u8 `[H, W]`; transparency does not count.

    Raises:
        ItemError: it is missing, damaged, in colour, or no PNG.
    """
    image, _ = _read_png(path, cure)
    if image.mode.startswith("I"):
        deep = np.asarray(image).astype(np.int64)
        return np.round(deep / 257).clip(0, 255).astype(np.uint8)
    # The palette of such a map says how bright its indices are.
    levels = np.asarray(image.convert("RGB"))
    if (levels != levels[..., :1]).any():
        raise ItemError(f"{path}: is in colour, such a map is grey; {cure}")
    return levels[..., 0]


def encode_labels(labels: np.ndarray, *, without: Collection[int] = ()) -> dict[int, bytes]:
    """The regions of a map, each as compressed COCO RLE counts, in the order of their values.

    All of them in one pass: a region's runs are runs of equal values down the columns.

    Args:
        labels: integers `[H, W]`.
        without: values that are left out.
    """
    height, width = labels.shape
    flat = labels.ravel(order="F")
    starts = np.append(0, np.flatnonzero(flat[1:] != flat[:-1]) + 1)
    stops = np.append(starts[1:], flat.size)
    order = np.argsort(flat[starts], kind="stable")
    values, firsts = np.unique(flat[starts][order], return_index=True)
    regions = {}
    for value, of_value in zip(values.tolist(), np.split(order, firsts[1:]), strict=True):
        if value in without:
            continue
        begin, end = starts[of_value], stops[of_value]
        counts = np.stack([begin - np.append(0, end[:-1]), end - begin], 1).ravel().tolist()
        rest = [flat.size - int(end[-1])] if end[-1] < flat.size else []
        coded: Any = {"size": [height, width], "counts": counts + rest}
        rle: Any = coco_mask.frPyObjects(coded, height, width)
        regions[value] = rle["counts"]
    return regions


def pair_files(images: Path, maps: Path, *, cure: str) -> Files:
    """The images (JPEG) and maps (PNG) of two folders, which may be one, by their names.

    Args:
        images, maps: the folders; each is listed once.
        cure: what to do about one that lacks the other.

    Raises:
        SourceError: a folder cannot be read.
    """
    problems: list[str] = []
    of_image = list_files(images, _IMAGES, problems, cure=cure)
    of_map = list_files(maps, _MAPS, problems, cure=cure)
    for stem in sorted(of_image.keys() ^ of_map.keys()):
        alone, folder, lacks = (
            (of_image[stem], maps, f"{stem}.png")
            if stem in of_image
            else (of_map[stem], images, f"{stem}.jpg")
        )
        problems.append(f"{alone}: {lacks} is not in {folder}; {cure}")
    both = sorted(of_image.keys() & of_map.keys())
    return Files(tuple((stem, of_image[stem], of_map[stem]) for stem in both), tuple(problems))


def list_files(
    folder: Path, suffixes: Sequence[str], problems: list[str], *, cure: str
) -> dict[str, Path]:
    """The files of a folder by name without suffix; hidden ones are not of a dataset.

    Args:
        folder: it is listed once.
        suffixes: in lower case, e.g. `(".png",)`.
        problems: those found are appended: names that are not UTF-8, or occur twice.
        cure: what to do about them.

    Raises:
        SourceError: the folder cannot be read.
    """
    try:
        with os.scandir(folder) as entries:
            names = sorted(entry.name for entry in entries)
    except OSError as error:
        raise SourceError(f"{folder}: {error.strerror}; {cure}") from None
    found: dict[str, Path] = {}
    for name in names:
        stem, dot, suffix = name.rpartition(".")
        if name.startswith(".") or (dot + suffix).lower() not in suffixes:
            continue
        if not name.isascii() and any("\ud800" <= letter <= "\udfff" for letter in name):
            problems.append(f"{folder}: the name {name!a} is not UTF-8; {cure}")
        elif stem in found:
            problems.append(f"{folder / name}: {found[stem].name} has the same name; {cure}")
        else:
            found[stem] = folder / name
    return found


def first_folders(source: Path, choices: Sequence[tuple[str, ...]], *, layout: str) -> list[Path]:
    """The first of some ways to name folders of which all are there.

    Raises:
        SourceError: none is; the message says that `source` must hold `layout`.
    """
    for names in choices:
        folders = [source / name for name in names]
        if all(folder.is_dir() for folder in folders):
            return folders
    raise SourceError(f"{source}: --source_dir must hold {layout}")


def plan_pairs(
    source: Path,
    choices: Mapping[str, Sequence[tuple[str, str]]],
    *,
    image_id: Callable[[str], str],
    layout: str,
    cure: str,
) -> Plan:
    """The plan of a dataset whose splits are folders of images and folders of maps.

    Args:
        source: the downloaded files.
        choices: by split, the ways to name its folders of images and of maps.
        image_id: name of an image without its suffix -> its id.
        layout: what `source` must hold.
        cure: what to do about a file that is missing.

    Returns:
        The plan of the splits that are there: `MapItem`s by name.

    Raises:
        SourceError: no split is there, or the maps of one without its images.
    """
    splits: dict[str, tuple[MapItem, ...]] = {}
    problems: list[str] = []
    for split, folders in choices.items():
        if not any((source / maps).is_dir() for _, maps in folders):
            continue
        images, maps = first_folders(source, folders, layout=layout)
        files = pair_files(images, maps, cure=cure)
        problems += files.problems
        splits[split] = tuple(
            MapItem(image, labels, image_id(stem), stem) for stem, image, labels in files.found
        )
    if not splits:
        raise SourceError(f"{source}: --source_dir must hold {layout}")
    return Plan(splits, tuple(problems), held_out=held_out(splits))


def held_out(splits: Mapping[str, Sequence[MapItem]]) -> dict[str, tuple[str, ...]]:
    """Image ids by evaluation split, as a `Plan` has them."""
    return {
        split: tuple(item.image_id for item in items)
        for split, items in splits.items()
        if not split.startswith("train")
    }


def _read_png(path: Path, cure: str) -> tuple[Image.Image, int]:
    """The decoded image, and the bits of a sample."""
    try:
        data = path.read_bytes()
        with Image.open(io.BytesIO(data), formats=("PNG",)) as image:
            if image.width * image.height > MAX_PIXELS:
                raise ItemError(
                    f"{path}: {image.width} x {image.height} pixels are too many; {cure}"
                )
            image.load()
            # The header's 25th byte, by the PNG specification.
            return image, data[24]
    except ItemError:
        raise
    except UnidentifiedImageError:
        raise ItemError(f"{path}: damaged or no PNG; {cure}") from None
    except OSError as error:
        reason = error.strerror or " ".join(str(error).split())[:120]
        raise ItemError(f"{path}: {reason}; {cure}") from None
    except Exception as error:  # Pillow raises whatever it likes on damaged bytes.
        reason = " ".join(str(error).split())[:120]
        raise ItemError(f"{path}: the PNG is damaged ({reason}); {cure}") from None
