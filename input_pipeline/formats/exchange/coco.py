"""Reads COCO's JSON: of COCO, CVAT, FiftyOne and other tools, of SA-Co, and results of SAM 3.

An object has `images`, `annotations` and `categories`. A list has results, as SAM 3's evaluator writes
them: `image_id`, `segmentation`, `score` and perhaps `category_id`. They take the place of the
annotations of the object with the same images.

In SA-Co, an entry of `images` is a picture and a noun phrase (`text_input`); its annotations are the
instances of the phrase, and without one the phrase matches nothing
(`scripts/eval/gold/README.md` of facebookresearch/sam3). CVAT and Datumaro have further fields in the
`attributes` of an annotation, and masks as RLE with a list of counts and `iscrowd` 1; `iscrowd` says
nothing else here.
"""

import dataclasses
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from input_pipeline.building.conversion import SourceError
from input_pipeline.formats.exchange.lines import (
    NO_MASK,
    Collected,
    is_sure,
    located,
    opening,
    split_files,
    texts_of,
)
from input_pipeline.formats.json_stream import elements, integer, packed, words
from input_pipeline.formats.places import Places
from refseg_jax.errors import shown
from refseg_jax.images.placement import stated_box

#: Ends of the names of files of results; the rest is the name of the split.
_RESULTS = ("_results", "_predictions", ".results", ".predictions")

#: A note in the report of a build.
NOT_ALL = "phrases whose instances are not all annotated (is_instance_exhaustive), left out"


class _Region(NamedTuple):
    where: str
    image: str
    category: str | None
    segmentation: bytes
    box: tuple[float, ...]
    texts: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class _Image:
    where: str
    name: str
    size: tuple[int, int]
    phrase: str | None


@dataclasses.dataclass
class _Content:
    images: dict[str, _Image] = dataclasses.field(default_factory=dict)
    categories: dict[str, str] = dataclasses.field(default_factory=dict)
    regions: list[_Region] = dataclasses.field(default_factory=list)
    dropped: set[str] = dataclasses.field(default_factory=set)


def read(places: Places) -> dict[str, Collected]:
    """Reads the pictures of each split of an export.

    Args:
        places: the folders that may hold the files; the first has the JSON.

    Raises:
        SourceError: a file is missing, damaged or not COCO's.
        BuildError: a region does not fit its picture.
    """
    files = split_files(places.folder, "{")
    results = _result_files(places.folder, tuple(files))
    return {
        split: _collected(split, file, results.get(split), places) for split, file in files.items()
    }


def _result_files(folder: Path, splits: tuple[str, ...]) -> dict[str, Path]:
    """Split -> file of results. With one split, its name does not matter."""
    found: dict[str, Path] = {}
    for path in sorted(folder.glob("*.json")):
        if path.name.startswith(".") or opening(path) != "[":
            continue
        split = next((path.stem.removesuffix(e) for e in _RESULTS if path.stem.endswith(e)), "")
        split = splits[0] if len(splits) == 1 else split
        if split not in splits:
            raise SourceError(
                f"{path}: results of which of {', '.join(splits)}? call it SPLIT_results.json"
            )
        if split in found:
            raise SourceError(f"{path}: results beside {found[split].name}; keep one of them")
        found[split] = path
    return found


def _collected(split: str, file: Path, results: Path | None, places: Places) -> Collected:
    content, collected = _Content(), Collected()
    for key, number, entry in _numbered(file):
        if key in _READERS and not (key == "annotations" and results is not None):
            _checked(_READERS[key], entry, file, f"{key}[{number}]", content, collected)
    if results is not None:
        for _, number, entry in _numbered(results):
            _checked(_region, entry, results, f"result {number + 1}", content, collected)
    if not content.images:
        raise SourceError(f"{file}: it lists no images; export with them, in COCO's format")
    names = {number: located(image.name, split, places) for number, image in content.images.items()}
    for number, image in content.images.items():
        if number in content.dropped:
            collected.notes[NOT_ALL] += 1
            continue
        collected.picture(names[number], image.size, image.where)
        if image.phrase is not None:
            collected.ask(names[number], image.phrase, image.where)
    for region in content.regions:
        if region.image in content.dropped:
            continue
        image = content.images.get(region.image)
        if image is None:
            raise SourceError(
                f"{region.where}: the image {region.image} is not listed; export all images"
            )
        phrase = [] if image.phrase is None else [image.phrase]
        collected.add(
            names[region.image],
            region.where,
            json.loads(region.segmentation),
            texts=[*phrase, *region.texts],
            categories=[] if phrase else _category(region, content),
            box=region.box,
        )
    return collected


def _numbered(file: Path) -> Iterator[tuple[str, int, Any]]:
    """Yields (key, number from 0 within the key, element)."""
    numbers: dict[str, int] = {}
    for key, entry in elements(file):
        yield key, numbers.setdefault(key, 0), entry
        numbers[key] += 1


def _checked(
    reader: Any, entry: Any, file: Path, place: str, content: _Content, collected: Collected
) -> None:
    """Calls a reader; raises a `SourceError` with the place if the entry is not COCO's."""
    try:
        if not isinstance(entry, Mapping):
            raise TypeError(f"{entry!r:.40} is no object")
        reader(entry, f"{file}: {place}", content, collected)
    except (KeyError, TypeError, ValueError) as error:
        reason = f"no {error}" if isinstance(error, KeyError) else str(error)
        raise SourceError(
            f"{file}: {place} is not COCO's ({' '.join(reason.split())[:120]}); export it again"
        ) from None


def _image(entry: Mapping[str, Any], where: str, content: _Content, collected: Collected) -> None:
    del collected
    number = _id(entry["id"])
    if number in content.images:
        raise ValueError(f"the id {number} occurs twice")
    name = words(entry["file_name"]).replace("\\", "/")
    if not name or "\0" in name:
        raise ValueError(f"file_name {entry['file_name']!r:.40}")
    size = integer(entry["height"]), integer(entry["width"])
    phrase = entry.get("text_input")
    content.images[number] = _Image(
        f"{where} ({shown(name)})", name, size, None if phrase is None else words(phrase)
    )
    if entry.get("is_instance_exhaustive") in (False, 0):
        content.dropped.add(number)


def _category_name(
    entry: Mapping[str, Any], where: str, content: _Content, collected: Collected
) -> None:
    del where, collected
    content.categories[_id(entry["id"])] = words(entry["name"])


def _region(entry: Mapping[str, Any], where: str, content: _Content, collected: Collected) -> None:
    image = _id(entry["image_id"])
    segmentation = entry.get("segmentation")
    if not segmentation:
        collected.notes[NO_MASK] += 1
        return
    if not is_sure(entry, "score", collected.notes):
        return
    category = entry.get("category_id")
    if "id" in entry:
        where = f"{where.rpartition(': ')[0]}: annotation {_id(entry['id'])}"
    content.regions.append(
        _Region(
            where,
            image,
            None if category is None else _id(category),
            packed(segmentation),
            stated_box(entry.get("bbox")),
            tuple(texts_of(entry)),
        )
    )


_READERS = {"images": _image, "categories": _category_name, "annotations": _region}


def _category(region: _Region, content: _Content) -> list[str]:
    if region.category is None or not content.categories:
        return []
    if region.category not in content.categories:
        raise SourceError(
            f"{region.where}: the category {region.category} is not listed; export the categories"
        )
    return [content.categories[region.category]]


def _id(value: Any) -> str:
    """An id as text: some programs write numbers as texts, others names."""
    return words(value) if isinstance(value, str) else str(integer(value))
