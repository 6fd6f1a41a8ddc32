"""What the files of the `refer` layout say, before any image is opened.

    SOURCE/<dataset>/refs(<by>).p      expressions, by annotation
    SOURCE/<dataset>/instances.json    COCO annotations
    SOURCE/images/...                  COCO train2014

Source: the reader and README of github.com/lichengunc/refer.
"""

import dataclasses
import json
import os
from collections.abc import Iterable, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from input_pipeline.datasets.conversion import Plan, SourceError
from input_pipeline.unpickling import load_pickle

#: Where refer, and the people who shortened its paths, keep the images of COCO train2014.
IMAGE_FOLDERS = ("images/mscoco/images/train2014", "images/train2014", "train2014", "images")


#: A note of a build.
NO_WORD = "expressions without a word, left out"


@dataclasses.dataclass(frozen=True)
class Annotation:
    """A region, as COCO has it."""

    id: int
    category: str
    segmentation: Any


@dataclasses.dataclass(frozen=True)
class Referent:
    """A described region: `sentences` are pairs of sent_id and text."""

    ref_id: int
    annotation: Annotation
    sentences: tuple[tuple[int, str], ...]


@dataclasses.dataclass(frozen=True)
class ImagePlan:
    """An image of one split and what is said about it; `height` and `width` as in the JSON."""

    image_id: int
    path: Path
    height: int
    width: int
    referents: tuple[Referent, ...]


def read_plan(source: Path, *, dataset: str, by: str, text: str) -> Plan:
    """Reads the refs and the annotations and joins them.

    Args:
        source: refer's `data` folder.
        dataset: folder in it, `refcoco`, `refcoco+` or `refcocog`.
        by: who made the splits: `unc`, `google` or `umd`.
        text: which of a sentence's texts, `sent` or `raw`.

    Returns:
        The plan of every split of the refs file: each an `ImagePlan` tuple, in the order of the
        images' first entries.

    Raises:
        SourceError: a file is missing, or is not of this layout.
        PickleError: the refs file is damaged or is more than plain data.
    """
    refs_file = source / dataset / f"refs({by}).p"
    instances_file = source / dataset / "instances.json"
    for path in (refs_file, instances_file):
        if not path.is_file():
            raise SourceError(
                f"{path}: not there; --source_dir must be the folder that holds "
                f"{dataset}/refs({by}).p, {dataset}/instances.json and {IMAGE_FOLDERS[1]}/*.jpg"
            )
    refs = [_Ref.of(entry, text, n, refs_file) for n, entry in enumerate(_entries(refs_file))]
    _check_unique(refs, refs_file)
    instances = _Instances.read(instances_file, refs)
    return _join(refs, instances, _image_folder(source), refs_file, instances_file)


@dataclasses.dataclass(frozen=True)
class _Ref:
    ref_id: int
    ann_id: int
    image_id: int
    split: str
    sentences: tuple[tuple[int, str], ...]
    empty: int

    @classmethod
    def of(cls, entry: Any, text: str, number: int, file: Path) -> "_Ref":
        try:
            said = [(int(s["sent_id"]), _utf8(s[text])) for s in entry["sentences"]]
            words = tuple((i, t) for i, t in said if t)
            return cls(
                int(entry["ref_id"]),
                int(entry["ann_id"]),
                int(entry["image_id"]),
                str(entry["split"]),
                words,
                len(said) - len(words),
            )
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise SourceError(
                f"{file}: entry {number} is not refer's ({type(error).__name__}: {error}); "
                "use the file of the refer repository"
            ) from None


@dataclasses.dataclass(frozen=True)
class _Instances:
    images: dict[int, tuple[str, int, int]]
    annotations: dict[int, tuple[int, Annotation]]

    @classmethod
    def read(cls, file: Path, refs: Iterable[_Ref]) -> "_Instances":
        wanted_images, wanted = {r.image_id for r in refs}, {r.ann_id for r in refs}
        try:
            stored = json.loads(file.read_text(encoding="utf-8"))
            names = {c["id"]: str(c["name"]) for c in stored["categories"]}
            images = {
                i["id"]: (str(i["file_name"]), int(i["height"]), int(i["width"]))
                for i in stored["images"]
                if i["id"] in wanted_images
            }
            annotations = {
                a["id"]: (
                    a["image_id"],
                    Annotation(a["id"], names[a["category_id"]], a["segmentation"]),
                )
                for a in stored["annotations"]
                if a["id"] in wanted
            }
        except (KeyError, TypeError, ValueError, RecursionError) as error:
            reason = " ".join(f"{type(error).__name__}: {error}".split())[:120]
            raise SourceError(
                f"{file}: damaged or not COCO's ({reason}); download it again"
            ) from None
        return cls(images, annotations)


def _entries(file: Path) -> list[Any]:
    entries = load_pickle(file)
    if not isinstance(entries, list) or not entries:
        raise SourceError(f"{file}: holds no list of refs; use the file of the refer repository")
    return entries


def _utf8(text: Any) -> str:
    """Text that can be stored: stripped, lone surrogates replaced, bytes read as the pickle's."""
    if isinstance(text, bytes):
        try:
            text = text.decode("utf-8")
        except UnicodeDecodeError:
            text = text.decode("latin-1")
    return text.strip().encode("utf-8", "replace").decode("utf-8")


def _check_unique(refs: Iterable[_Ref], file: Path) -> None:
    """ids of expressions must be unique, or scores by id would be of nothing."""
    seen: set[int] = set()
    for ref in refs:
        for sent_id, _ in ref.sentences:
            if sent_id in seen:
                raise SourceError(
                    f"{file}: sent_id {sent_id} occurs twice; use the file of the refer repository"
                )
            seen.add(sent_id)


def _image_folder(source: Path) -> Path:
    for folder in IMAGE_FOLDERS:
        if (source / folder).is_dir() and any((source / folder).glob("*.jpg")):
            return source / folder
    raise SourceError(
        f"{source}: no folder of images; put (or link) COCO's train2014 at "
        f"{source / IMAGE_FOLDERS[1]}"
    )


def _join(
    refs: Sequence[_Ref], instances: _Instances, folder: Path, refs_file: Path, instances_file: Path
) -> Plan:
    there = {entry.name for entry in os.scandir(folder)}
    problems: dict[str, None] = {}
    splits: dict[str, dict[int, list[Referent]]] = {}
    empty = 0
    for ref in refs:
        empty += ref.empty
        line = _problem(ref, instances, there, folder, refs_file, instances_file)
        if line:
            problems[line] = None
        elif ref.sentences:
            referent = Referent(ref.ref_id, instances.annotations[ref.ann_id][1], ref.sentences)
            splits.setdefault(ref.split, {}).setdefault(ref.image_id, []).append(referent)
    held_out: dict[str, dict[str, None]] = {}
    for ref in refs:
        if ref.split != "train":
            held_out.setdefault(ref.split, {})[str(ref.image_id)] = None
    return Plan(
        {
            split: tuple(_image_plan(i, found, instances, folder) for i, found in images.items())
            for split, images in splits.items()
        },
        tuple(problems),
        {NO_WORD: empty} if empty else {},
        {split: tuple(ids) for split, ids in held_out.items()},
    )


def _problem(
    ref: _Ref,
    instances: _Instances,
    there: set[str],
    folder: Path,
    refs_file: Path,
    instances_file: Path,
) -> str:
    """Why a ref cannot be built, or nothing."""
    pair = f"use the instances.json that belongs to {refs_file.name}"
    if ref.image_id not in instances.images:
        return f"{instances_file}: no image {ref.image_id} (of ref {ref.ref_id}); {pair}"
    if ref.ann_id not in instances.annotations:
        return f"{instances_file}: no annotation {ref.ann_id} (of ref {ref.ref_id}); {pair}"
    if instances.annotations[ref.ann_id][0] != ref.image_id:
        return (
            f"{instances_file}: annotation {ref.ann_id} is of another image than ref "
            f"{ref.ref_id}; {pair}"
        )
    name = _base_name(instances.images[ref.image_id][0])
    if name not in there:
        return f"{folder / name}: not there; copy it from COCO train2014"
    return ""


def _image_plan(
    image_id: int, referents: list[Referent], instances: _Instances, folder: Path
) -> ImagePlan:
    file_name, height, width = instances.images[image_id]
    return ImagePlan(image_id, folder / _base_name(file_name), height, width, tuple(referents))


def _base_name(file_name: str) -> str:
    """The last part: `file_name` has folders in some copies, and must not lead out of ours."""
    return PurePosixPath(file_name.replace("\\", "/")).name
