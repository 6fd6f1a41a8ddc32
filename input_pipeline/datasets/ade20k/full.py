"""The whole ADE20K: every object of a scene, its parts, and the parts of those.

    SOURCE/images/ADE/{training,validation}/<kind>/<scene>/ADE_train_<8 digits>.jpg     and beside it
        ..._seg.png         class R / 10 * 256 + G and object B of each pixel
        ..._parts_<k>.png   the same of parts, k = 1 of objects, 2 of parts of k = 1, ...
        ....json            names; latin-1

That is the release of 17 January 2021 as it unpacks. (Class, B) is one object, or one part; a target
is what is seen of it. All targets of a class answer "all {class}", all parts of a class on objects of
a class "{part} of {object}". Names are the first of each class's in the JSON (`car, auto, automobile`
is `car`); where two classes begin with the same one, their regions answer the same text. The release
does not say which classes are stuff, so all targets are `object` or `part`.

A part's parent is the region one level below that it shares most pixels with, out of the classes
that the JSON names as owners of such parts: the numbers in B are no ids of the JSON. In the three
images of CSAILVision/ADE20K all 30 parts get the JSON's own parent that way. The masks of
`instance_*.png`, which also hold what is hidden, are not read.
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

#: Notes of a build.
UNNAMED = "regions whose class has no name in the JSON, left out"
OUTSIDE = "parts outside of every object that may own them, left out"

_CURE = "unpack ADE20K_2021_17_01.zip again"
_SPLITS = {"train": "training", "val": "validation"}


@dataclasses.dataclass(frozen=True)
class FullItem:
    """An image; `maps` are of its objects, of their parts, of those of these, ..."""

    image: Path
    annotation: Path
    maps: tuple[Path, ...]


@dataclasses.dataclass(frozen=True)
class Names:
    """What a JSON says.

    Attributes:
        of_class: first name by class number.
        owners: by (level, class number) of parts, the class numbers of what has such parts.
    """

    of_class: Mapping[int, str]
    owners: Mapping[tuple[int, int], frozenset[int]]


def read_plan(source: Path) -> Plan:
    """Lists the folders of all scenes, once each.

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
    """An image with its objects and parts.

    Args:
        item: the image.
        source: the record's `source`.

    Returns:
        The record; `None` where nothing of it is named.

    Raises:
        ItemError: a file is missing, damaged or of another size.
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
        ItemError: it is missing, damaged, or of another form.
    """
    try:
        # Latin-1, as its writers read it; a stray byte in a person's note must not lose the image.
        stored = json.loads(path.read_bytes().decode("latin-1"))
        found: Any = stored["annotation"]["object"]
        objects = [found] if isinstance(found, dict) else found
        number_of = {int(o["id"]): int(o["name_ndx"]) for o in objects}
        of_class = {int(o["name_ndx"]): _first_name(o["name"]) for o in objects}
        owners: dict[tuple[int, int], frozenset[int]] = {}
        for o in objects:
            owner = o["parts"]["ispartof"]
            # MATLAB's empty array stands for "of nothing".
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
    """`"car, auto"` -> `"car"`; `""` for the `"-"` of what nobody could name."""
    first = name.split(",")[0].strip()
    return first if any(letter.isalpha() for letter in first) else ""


def _regions_of(path: Path) -> np.ndarray:
    """i32 `[H, W]`: class number * 256 + B, 0 where there is no class."""
    red, green, blue = np.moveaxis(read_colours(path, cure=_CURE).astype(np.int32), -1, 0)
    number = red // 10 * 256 + green
    return np.where(number > 0, number * 256 + blue, 0)


def _targets(
    maps: list[np.ndarray], names: Names
) -> tuple[list[Target], dict[tuple[str, str], list[int]], dict[str, int]]:
    """Targets, their indices by (granularity, text), and notes."""
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
    """Of each part, the region below that it shares most pixels with and that may own it."""
    both = (parts > 0) & (below > 0)
    pairs = parts[both].astype(np.int64) << 32 | below[both]
    found, shared = np.unique(pairs, return_counts=True)
    parents: dict[int, int] = {}
    # Of equal shares, that of the smaller number.
    for pair in found[np.argsort(-shared, kind="stable")].tolist():
        part, owner = pair >> 32, pair & 0xFFFFFFFF
        if owner // 256 in names.owners.get((level, part // 256), ()):
            parents.setdefault(part, owner)
    return parents


def _items(root: Path, problems: list[str]) -> Iterator[FullItem]:
    """The images of a folder and of those in it."""
    with os.scandir(root) as entries:
        # Links to folders are not followed: they may form a ring.
        listed = sorted((e.name, e.is_dir(follow_symlinks=False)) for e in entries)
    files = {name for name, is_folder in listed if not is_folder}
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
        yield FullItem(root / f"{stem}.jpg", root / needed[0], tuple(root / name for name in maps))
    for name, is_folder in listed:
        # A folder called like an image holds its masks one by one.
        if is_folder and name not in images:
            yield from _items(root / name, problems)


def _image_id(item: FullItem) -> str:
    return f"ade20k/{item.image.stem}"


CONVERSIONS = (Conversion("ade20k/full", read_plan, convert),)
