"""The full ADE20K: all objects of a scene, their parts, and parts of parts.

    SOURCE/images/ADE/{training,validation}/<kind>/<scene>/ADE_train_<8 digits>.jpg     and beside it
        ..._seg.png         of each pixel: class R / 10 * 256 + G, object B
        ..._parts_<k>.png   the same for parts: k = 1 parts of objects, 2 parts of these parts, ...
        ....json            names; latin-1

This is the content of the release of 17 January 2021. Pixels with the same class and B are one object,
or one part; a target is its visible region. "all {class}" means all objects of a class, and "{part} of
{object}" all parts of a class on objects of a class. The name of a class is the first of its names in
the JSON (`car, auto, automobile` is `car`); classes with the same first name share their expression. The
release does not say which classes are stuff, so all targets are `object` or `part`.

B is no id of the JSON, so the parent of a part has to be found: among the regions one level lower (level
0 has the objects) whose class owns such parts in the JSON, it is the one that shares most pixels with
the part. For all 30 parts in the three images of CSAILVision/ADE20K, this is the parent that the JSON
states. The masks of `instance_*.png`, which include hidden pixels, are not read.
"""

import dataclasses
import json
import os
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from input_pipeline import prompts
from input_pipeline.building.conversion import (
    Conversion,
    ItemError,
    Outcome,
    Plan,
    SourceError,
    read_image,
)
from input_pipeline.facts.published import facts_of
from input_pipeline.formats.label_maps import NOTHING, encode_labels, read_colours
from input_pipeline.schema import Expression, Target
from refseg_jax.images.files import same_name

#: Notes in the build report.
UNNAMED = "regions whose class has no name in the JSON, left out"
OUTSIDE = "parts outside of every object that may own them, left out"

_CURE = "unpack ADE20K_2021_17_01.zip again"
_SPLITS = {"train": "training", "val": "validation"}


@dataclasses.dataclass(frozen=True)
class FullItem:
    """An image to convert.

    Attributes:
        image: path of the image file.
        annotation: path of its JSON.
        maps: paths of the map of objects and of the maps of parts, level by level.
    """

    image: Path
    annotation: Path
    maps: tuple[Path, ...]


@dataclasses.dataclass(frozen=True)
class Names:
    """Content of an image's JSON.

    Attributes:
        of_class: class number -> first name of the class; unnamed classes are missing.
        owners: (level, class number) of a part -> class numbers of the regions that own such parts.
    """

    of_class: Mapping[int, str]
    owners: Mapping[tuple[int, int], frozenset[int]]


def read_plan(source: Path) -> Plan:
    """Lists the images of all scenes.

    Raises:
        SourceError: neither split is there.
    """
    roots = [source / "images" / "ADE", source / "ADE20K_2021_17_01" / "images" / "ADE"]
    there = [
        (split, root / folder)
        for split, folder in _SPLITS.items()
        for root in roots
        if (root / folder).is_dir()
    ]
    if not there:
        raise SourceError(f"{source}: --source_dir must hold {facts_of('ade20k/full').layout}")
    splits: dict[str, tuple[FullItem, ...]] = {}
    problems: list[str] = []
    for split, folder in there:
        splits[split] = tuple(_items(folder, problems))
    held_out = {"val": tuple(_image_id(item) for item in splits.get("val", ()))}
    return Plan(splits, tuple(problems), held_out=held_out if "val" in splits else {})


def convert(item: FullItem, source: str) -> Outcome:
    """Makes the record of an image, with its objects and parts.

    Args:
        item: the image.
        source: the record's `source`.

    Returns:
        The outcome, without a record if no region has a name.

    Raises:
        ItemError: a file is missing or damaged, or the sizes differ.
        ImageError: the image is damaged.
    """
    names = read_names(item.annotation)
    maps = [_regions_of(path) for path in item.maps]
    for path, regions in zip(item.maps, maps, strict=True):
        if regions.shape != maps[0].shape:
            raise ItemError(f"{path}: is not of the size of {item.maps[0].name}; {_CURE}")
    image = read_image(item.image, size=maps[0].shape, cure=_CURE)
    targets, texts, notes = _targets(maps, names)
    if not targets:
        return Outcome(None, notes=notes | {NOTHING: 1})
    record = image.record(
        _image_id(item),
        source,
        targets=tuple(targets),
        expressions=tuple(
            Expression(
                f"{item.image.stem}-{text.replace(' ', '_')}", text, tuple(found), granularity, k
            )
            for k, ((granularity, text), found) in enumerate(texts.items())
        ),
    )
    return Outcome(record, notes=notes)


def read_names(path: Path) -> Names:
    """Reads the JSON of an image.

    Raises:
        ItemError: the file is missing, damaged or of another format.
    """
    try:
        # Latin-1, as ADE20K's own code reads it: no byte of an annotator's note can make it fail.
        stored = json.loads(path.read_bytes().decode("latin-1"))
        found: Any = stored["annotation"]["object"]
        objects = [found] if isinstance(found, dict) else found
        number_of = {int(o["id"]): int(o["name_ndx"]) for o in objects}
        of_class = {int(o["name_ndx"]): _first_name(o["name"]) for o in objects}
        owners: dict[tuple[int, int], frozenset[int]] = {}
        for o in objects:
            owner = o["parts"]["ispartof"]
            # An object that is no part has MATLAB's empty array here.
            if isinstance(owner, int) and owner in number_of:
                key = (int(o["parts"]["part_level"]), int(o["name_ndx"]))
                owners[key] = owners.get(key, frozenset()) | {number_of[owner]}
    except OSError as error:
        raise ItemError(f"{path}: {error.strerror}; {_CURE}") from None
    except (KeyError, TypeError, ValueError, AttributeError, RecursionError) as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:120]
        raise ItemError(f"{path}: damaged or not ADE20K's ({reason}); {_CURE}") from None
    return Names({number: name for number, name in of_class.items() if name}, owners)


def _first_name(name: str) -> str:
    """`"car, auto"` -> `"car"`; `""` for `"-"`, which stands for an object that nobody could name."""
    first = name.split(",")[0].strip()
    return first if any(letter.isalpha() for letter in first) else ""


def _regions_of(path: Path) -> np.ndarray:
    """Reads a map: i32 `[H, W]`, class number * 256 + B, or 0 for pixels without a class."""
    red, green, blue = np.moveaxis(read_colours(path, cure=_CURE).astype(np.int32), -1, 0)
    number = red // 10 * 256 + green
    return np.where(number > 0, number * 256 + blue, 0)


def _targets(
    maps: list[np.ndarray], names: Names
) -> tuple[list[Target], dict[tuple[str, str], list[int]], dict[str, int]]:
    """Targets; (granularity, text) of an expression -> indices of its targets; notes."""
    targets: list[Target] = []
    texts: dict[tuple[str, str], list[int]] = {}
    notes: Counter[str] = Counter()
    below: dict[int, int] = {}
    for level, regions in enumerate(maps):
        parents = _parents(regions, maps[level - 1], level, names) if level else {}
        here: dict[int, int] = {}
        for region, counts in encode_labels(regions, without=(0,)).items():
            name = names.of_class.get(region // 256)
            parent = below.get(parents.get(region, 0), -1)
            if name is None or (level and parent < 0):
                notes[UNNAMED if name is None else OUTSIDE] += 1
                continue
            if level:
                key = ("part", prompts.part(name, targets[parent].category))
            else:
                key = ("category", prompts.category(name))
            here[region] = len(targets)
            texts.setdefault(key, []).append(len(targets))
            targets.append(Target(counts, name, parent, "part" if level else "object"))
        below = here
    return targets, texts, dict(notes)


def _parents(parts: np.ndarray, below: np.ndarray, level: int, names: Names) -> dict[int, int]:
    """Part -> the region one level lower that may own it and shares most pixels with it."""
    both = (parts > 0) & (below > 0)
    pairs = parts[both].astype(np.int64) << 32 | below[both]
    found, shared = np.unique(pairs, return_counts=True)
    parents: dict[int, int] = {}
    # A stable sort: of regions with equally many pixels, the one with the smaller number wins.
    for pair in found[np.argsort(-shared, kind="stable")].tolist():
        part, owner = pair >> 32, pair & 0xFFFFFFFF
        if owner // 256 in names.owners.get((level, part // 256), ()):
            parents.setdefault(part, owner)
    return parents


def _items(root: Path, problems: list[str]) -> Iterator[FullItem]:
    """Yields the images of a folder and of the folders in it."""
    with os.scandir(root) as entries:
        # Links to folders are not followed, because they may form a cycle.
        listed = sorted((e.name, e.is_dir(follow_symlinks=False)) for e in entries)
    files = {same_name(name): root / name for name, is_folder in listed if not is_folder}
    images = {Path(name).stem for name in files if name.endswith(".jpg") and name[0] != "."}
    for stem in sorted(images):
        needed = [f"{stem}.json", f"{stem}_seg.png"]
        missing = [name for name in needed if name not in files]
        if missing:
            problems.append(f"{root / missing[0]}: not there; {_CURE}")
            continue
        maps = [f"{stem}_seg.png"]
        while (parts := f"{stem}_parts_{len(maps)}.png") in files:
            maps.append(parts)
        image, stated = files[f"{stem}.jpg"], files[needed[0]]
        yield FullItem(image, stated, tuple(files[name] for name in maps))
    for name, is_folder in listed:
        # A folder with the name of an image holds the image's instance masks.
        if is_folder and same_name(name) not in images:
            yield from _items(root / name, problems)


def _image_id(item: FullItem) -> str:
    return f"ade20k/{item.image.stem}"


CONVERSIONS = (Conversion("ade20k/full", read_plan, convert),)
