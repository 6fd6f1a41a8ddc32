"""Reads datasets that annotate an image by a second image: a map of classes, or one of saliency.

A map is a PNG of the image's size. Of a map of classes, only the stored numbers count: its palette is
ignored, and the stretching of Pillow, which maps grey values of 2 or 4 bits to 0..255, is undone. A map
of saliency is a mask, of which counts what it shows (`input_pipeline.formats.mask_files`).
"""

import dataclasses
import io
import os
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, UnidentifiedImageError
from pycocotools import mask as coco_mask

from input_pipeline import prompts
from input_pipeline.building.conversion import ItemError, Outcome, Plan, SourceError, read_image
from input_pipeline.schema import AskedClass, Expression, Target
from refseg_jax.images.decoding import MAX_PIXELS
from refseg_jax.images.files import read_file, same_name
from refseg_jax.images.kinds import kind_of
from refseg_jax.images.orientation import exif_orientation
from refseg_jax.images.png import check_png

#: A note in the report of a build.
NOTHING = "images without a labelled pixel, left out"

_IMAGES, _MAPS = (".jpg", ".jpeg"), (".png",)

#: Bits of a grey value -> the factor by which Pillow multiplies it.
_STRETCHED = {2: 85, 4: 17}


@dataclasses.dataclass(frozen=True)
class MapItem:
    """An image and its map.

    Attributes:
        image: path of the image.
        labels: path of the map.
        image_id: as in `Record`.
        key: beginning of the ids of its expressions, unique in the dataset.
        names: names that the release states for its classes or for the image's group; else empty.
    """

    image: Path
    labels: Path
    image_id: str
    key: str
    names: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Classes:
    """The meaning of a map's values.

    Attributes:
        names: names of the classes with the values `first`, `first + 1`, ...
        void: the value of pixels without a class.
        first: the value of the first class.
        stuff: values of classes that are not countable objects.
    """

    names: tuple[str, ...]
    void: int
    first: int = 1
    stuff: frozenset[int] = frozenset()

    def name(self, value: int) -> str:
        """Name of the class of a value.

        Raises:
            KeyError: no class has the value.
        """
        if not self.first <= value < self.first + len(self.names):
            raise KeyError(value)
        return self.names[value - self.first]


@dataclasses.dataclass(frozen=True)
class Files:
    """Pairs of images and maps with the same name.

    Attributes:
        found: (name without suffix, image, map) of each pair, sorted by name.
        problems: one line for each file that cannot be used.
    """

    found: tuple[tuple[str, Path, Path], ...]
    problems: tuple[str, ...]


def asked_classes(names: Iterable[str]) -> dict[str, tuple[AskedClass, ...]]:
    """`Plan.classes` of categories with the prompt "all {}"."""
    return {"category": tuple(AskedClass(prompts.category(name), name) for name in names)}


def convert_categories(item: MapItem, source: str, *, classes: Classes, cure: str) -> Outcome:
    """Converts an image with a map of classes: a target and the prompt "all {}" for each class.

    Args:
        item: the image and its map.
        source: the record's `source`.
        classes: meaning of the map's values.
        cure: what to do about a wrong map, for messages.

    Returns:
        The outcome, without a record if every pixel is void.

    Raises:
        ItemError: a file is missing, the sizes differ, or a value has no class.
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
    """Reads the stored numbers of an indexed or grey PNG, i32 `[H, W]`.

    Args:
        path: the file.
        cure: what to do about a wrong file, for messages.

    Raises:
        ItemError: the file is missing, damaged, in colour, or not a PNG.
    """
    image, bits = _read_png(path, cure)
    if image.mode not in ("1", "L", "P") and not image.mode.startswith("I"):
        raise ItemError(f"{path}: is in colour ({image.mode}), a map of classes is not; {cure}")
    values = np.asarray(image).astype(np.int32)
    return values // _STRETCHED.get(bits, 1) if image.mode == "L" else values


def read_colours(path: Path, *, cure: str) -> np.ndarray:
    """Reads a PNG with RGB colours of 8 bits, u8 `[H, W, 3]`.

    Raises:
        ItemError: the file is missing, damaged, or not such a PNG.
    """
    image, bits = _read_png(path, cure)
    if image.mode != "RGB" or bits != 8:
        raise ItemError(f"{path}: is not in colour of 8 bits ({image.mode}, {bits} bits); {cure}")
    return np.asarray(image)


def encode_labels(labels: np.ndarray, *, without: Collection[int] = ()) -> dict[int, bytes]:
    """Encodes all regions of a map in one pass.

    The runs of a region's RLE are runs of equal values down the columns of the map.

    Args:
        labels: integers `[H, W]`.
        without: values to leave out.

    Returns:
        Value -> compressed COCO RLE counts, in ascending order of the values.
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
    """Pairs the images (JPEG) and maps (PNG) of two folders by their names.

    Args:
        images, maps: the folders, which may be the same.
        cure: what to do about a file without a partner, for messages.

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
    """Lists the files of a folder by name without suffix; leaves out hidden files.

    Names are keys in one spelling (`same_name`): a copy from macOS decomposes accents, and its images
    are to meet the maps of another copy.

    Args:
        folder: the folder.
        suffixes: suffixes of the files in lower case, e.g. `(".png",)`.
        problems: a line is appended for each name that is not UTF-8 or occurs twice.
        cure: what to do about them, for messages.

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
        elif (key := same_name(stem)) in found:
            problems.append(f"{folder / name}: {found[key].name} has the same name; {cure}")
        else:
            found[key] = folder / name
    return found


def first_folders(source: Path, choices: Sequence[tuple[str, ...]], *, layout: str) -> list[Path]:
    """The folders of the first choice of which all exist.

    Args:
        source: the source folder.
        choices: possible names of the folders below it.
        layout: description of the folders, for the message.

    Raises:
        SourceError: no choice has all its folders.
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
    """Plans a dataset whose splits are folders of images and folders of maps.

    Args:
        source: the source folder.
        choices: split -> possible names of its folders of images and of maps.
        image_id: name of an image without its suffix -> its id.
        layout: description of the folders that `source` must hold, for messages.
        cure: what to do about a missing file, for messages.

    Returns:
        The plan of the splits that exist, with a `MapItem` for each image, sorted by name.

    Raises:
        SourceError: no split exists, or one has maps but no images.
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
    """Evaluation split -> image ids, for `Plan.held_out`."""
    return {
        split: tuple(item.image_id for item in items)
        for split, items in splits.items()
        if not split.startswith("train")
    }


def _read_png(path: Path, cure: str) -> tuple[Image.Image, int]:
    """The decoded image, and the bits of a sample (a stored number)."""
    data = b""
    try:
        data = read_file(path)
        with Image.open(io.BytesIO(data), formats=("PNG",)) as image:
            if image.width * image.height > MAX_PIXELS:
                raise ItemError(
                    f"{path}: {image.width} x {image.height} pixels are too many; {cure}"
                )
            check_png(data)
            image.load()
            if exif_orientation(image.info.get("exif", b"")) != 1:
                raise ItemError(f"{path}: an EXIF flag turns it, no map is turned; {cure}")
            # The PNG specification puts the bit depth into the file's 25th byte.
            return image, data[24]
    except ItemError:
        raise
    except UnidentifiedImageError:
        kind = kind_of(data)
        what = (
            "damaged or no PNG" if kind is None or kind.name == "PNG" else f"is {kind.name}, no PNG"
        )
        raise ItemError(f"{path}: {what}; {cure}") from None
    except OSError as error:
        reason = error.strerror or " ".join(str(error).split())[:120]
        raise ItemError(f"{path}: {reason}; {cure}") from None
    except Exception as error:  # Pillow raises many types of errors for damaged bytes.
        reason = " ".join(str(error).split())[:120]
        raise ItemError(f"{path}: the PNG is damaged ({reason}); {cure}") from None
