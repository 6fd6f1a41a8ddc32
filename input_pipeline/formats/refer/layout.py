"""Reads the annotation files of the `refer` layout into a plan, without opening an image.

    SOURCE/<dataset>/refs(<by>).p      expressions, by annotation
    SOURCE/<dataset>/instances.json    COCO annotations
    SOURCE/images/...                  COCO train2014

Source: the reader and README of github.com/lichengunc/refer.
"""

import dataclasses
import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path, PurePosixPath

from input_pipeline.building.conversion import (
    NO_WORD,
    Plan,
    SourceError,
)
from input_pipeline.formats.image_files import ImageFiles, base_name
from input_pipeline.formats.json_stream import elements, integer
from input_pipeline.formats.refer.refs import Ref, read_refs
from refseg_jax.images.placement import stated_box
from refseg_jax.images.units import Evidence

#: Folders where refer, and copies with shorter paths, keep the images of COCO train2014. The folders of
#: COCO 2017 hold the same images under other names, most of them in train2017.
IMAGE_FOLDERS = (
    *("images/mscoco/images/train2014", "images/train2014", "train2014", "images"),
    *("images/train2017", "images/val2017", "train2017", "val2017"),
)

#: Notes in the report of a build.
CROWDS = "crowd annotations of refs, left out of masks"
LACKED = "refs of images that the published archive lacks, left out"


@dataclasses.dataclass(frozen=True)
class Layout:
    """Names of a dataset's files in the `refer` layout, and how to read them.

    Attributes:
        dataset: folder of the refs and the annotations.
        by: who made the splits: `unc`, `google`, `umd` or `berkeley`.
        text: which text of a sentence to use, `sent` or `raw`.
        refs: name of the refs file, with `{by}` in place of `by`.
        image_folders: possible folders of the images, which are searched in this order.
        images: name of the image collection, for messages.
        pool: prefix of the file's name in `Record.image_id`; empty for COCO's images, whose id is used.
        skip_crowds: whether to leave crowd annotations out of masks, as gRefCOCO's reader does.
        lacked: ids of images that the published archive lacks.
    """

    dataset: str
    by: str
    text: str = "sent"
    refs: str = "refs({by}).p"
    image_folders: tuple[str, ...] = IMAGE_FOLDERS
    images: str = "COCO train2014"
    pool: str = ""
    skip_crowds: bool = False
    lacked: tuple[int, ...] = ()

    @property
    def files(self) -> str:
        """One line that lists the files of the source folder."""
        folder = self.image_folders[min(1, len(self.image_folders) - 1)]
        return f"{self.dataset}/{self.refs_name}, {self.dataset}/instances.json and {folder}/*.jpg"

    @property
    def refs_name(self) -> str:
        """Name of the refs file."""
        return self.refs.format(by=self.by)


@dataclasses.dataclass(frozen=True)
class Annotation:
    """A COCO annotation.

    Attributes:
        id: id of the annotation.
        category: name of its category.
        segmentation: JSON text, which takes less memory than parsed polygons.
        box: (x, y, width, height) in pixels, or empty if none is stated.
    """

    id: int
    category: str
    segmentation: bytes
    box: tuple[float, ...] = ()


@dataclasses.dataclass(frozen=True)
class Referent:
    """Something that expressions of an image describe.

    Attributes:
        ref_id: id in the dataset; `None` if it was made from several refs.
        annotations: the regions that are meant; none if nothing in the image matches.
        sentences: pairs of expression id and text.
        group: name of the group of images that share the expression, or `""`.
    """

    ref_id: int | None
    annotations: tuple[Annotation, ...]
    sentences: tuple[tuple[str, str], ...]
    group: str = ""


@dataclasses.dataclass(frozen=True)
class ImagePlan:
    """An image of one split with its referents.

    Attributes:
        image_id: as in `Record`.
        path: path of the image file.
        height, width: size in pixels, as the annotations state it.
        referents: what the expressions of the image describe.
        images: name of the image collection, for messages.
    """

    image_id: str
    path: Path
    height: int
    width: int
    referents: tuple[Referent, ...]
    images: str = "COCO train2014"


def read_plan(source: Path, *, layout: Layout) -> Plan:
    """Reads the refs and the annotations and joins them.

    Args:
        source: refer's `data` folder.
        layout: layout of the dataset.

    Returns:
        A plan with a tuple of `ImagePlan` for every split of the refs file, in the order of the
        images' first refs.

    Raises:
        SourceError: a file is missing, or does not have this layout.
        PickleError: the refs file is damaged, or holds more than plain data.
    """
    refs_file = source / layout.dataset / layout.refs_name
    instances_file = source / layout.dataset / "instances.json"
    for path in (refs_file, instances_file):
        if not path.is_file():
            raise SourceError(
                f"{path}: not there; --source_dir must be the folder that holds {layout.files}"
            )
    refs = read_refs(refs_file, layout.text)
    instances = _Instances.read(instances_file, refs)
    called = layout.images if layout.pool else "COCO's train2014"
    images = ImageFiles(source, layout.image_folders, called)
    return _join(refs, _Files(layout, refs_file, instances_file, images, instances))


@dataclasses.dataclass(frozen=True)
class _Instances:
    images: dict[int, tuple[str, int, int]]
    annotations: dict[int, tuple[int, Annotation]]
    crowds: frozenset[int]

    @classmethod
    def read(cls, file: Path, refs: Iterable[Ref]) -> "_Instances":
        wanted_images = {r.image_id for r in refs}
        wanted = {i for r in refs for i in r.ann_ids}
        images: dict[int, tuple[str, int, int]] = {}
        found: dict[int, tuple[int, int, bytes, tuple[float, ...]]] = {}
        names: dict[int, str] = {}
        crowds: set[int] = set()
        evidence = Evidence()
        try:
            for key, entry in elements(file):
                if key not in ("categories", "images", "annotations"):
                    continue
                number = integer(entry["id"])
                if key == "categories":
                    names[number] = str(entry["name"])
                elif key == "images" and number in wanted_images:
                    size = integer(entry["height"]), integer(entry["width"])
                    images[number] = (str(entry["file_name"]), *size)
                elif key == "annotations" and number in wanted:
                    image_id, category = integer(entry["image_id"]), integer(entry["category_id"])
                    region = json.dumps(entry["segmentation"]).encode()
                    evidence.add(entry["segmentation"], image_id)
                    found[number] = image_id, category, region, stated_box(entry.get("bbox"))
                    if entry.get("iscrowd"):
                        crowds.add(number)
            if not names:
                raise KeyError("categories")
            annotations = {
                i: (image_id, Annotation(i, names[category_id], region, box))
                for i, (image_id, category_id, region, box) in found.items()
            }
        except (KeyError, TypeError, ValueError) as error:
            reason = " ".join(f"{type(error).__name__}: {error}".split())[:120]
            raise SourceError(
                f"{file}: damaged or not COCO's ({reason}); download it again"
            ) from None
        if unit := evidence.find(lambda image_id: images.get(image_id, ("", 0, 0))[1:]):
            raise SourceError(f"{file}: {unit}")
        return cls(images, annotations, frozenset(crowds))


@dataclasses.dataclass(frozen=True)
class _Files:
    """The files of the source folder."""

    layout: Layout
    refs_file: Path
    instances_file: Path
    images: ImageFiles
    instances: _Instances

    def problem(self, ref: Ref) -> str:
        """One line on why a ref cannot be built, or `""`."""
        file, pair = (
            self.instances_file,
            f"use the instances.json that belongs to {self.refs_file.name}",
        )
        if ref.image_id not in self.instances.images:
            return f"{file}: no image {ref.image_id} (of ref {ref.ref_id}); {pair}"
        for ann_id in ref.ann_ids:
            if ann_id not in self.instances.annotations:
                return f"{file}: no annotation {ann_id} (of ref {ref.ref_id}); {pair}"
            if self.instances.annotations[ann_id][0] != ref.image_id:
                return (
                    f"{file}: annotation {ann_id} is of another image than ref {ref.ref_id}; {pair}"
                )
        if ref.ann_ids and not self.regions(ref):
            return f"{file}: ref {ref.ref_id} has crowd annotations alone; {pair}"
        name = self.name(ref.image_id)
        if self.images.find(name) is None:
            missing = self.images.expected(name)
            return f"{missing}: not there; copy it from {self.layout.images}"
        return ""

    def regions(self, ref: Ref) -> tuple[Annotation, ...]:
        """The annotations that a ref means."""
        skipped = self.instances.crowds if self.layout.skip_crowds else frozenset()
        return tuple(self.instances.annotations[i][1] for i in ref.ann_ids if i not in skipped)

    def name(self, image_id: int) -> str:
        """File name of an image, as the annotations have it."""
        return base_name(self.instances.images[image_id][0])

    def image_plan(self, image_id: int, referents: Sequence[Referent]) -> ImagePlan:
        """The plan of an image."""
        _, height, width = self.instances.images[image_id]
        path = self.images.find(self.name(image_id))
        assert path is not None  # Else the ref has a problem.
        images = self.layout.images
        return ImagePlan(self.key(image_id), path, height, width, tuple(referents), images)

    def key(self, image_id: int) -> str:
        """`Record.image_id`: of a pool, it has the file's name, which all the pool's datasets share."""
        if not self.layout.pool:
            return str(image_id)
        known = image_id in self.instances.images
        name = PurePosixPath(self.name(image_id)).stem if known else image_id
        return f"{self.layout.pool}/{name}"


def _join(refs: Sequence[Ref], files: _Files) -> Plan:
    problems: dict[str, None] = {}
    notes = {NO_WORD: 0, CROWDS: 0, LACKED: 0}
    splits: dict[str, dict[int, list[Referent]]] = {}
    held_out: dict[str, dict[str, None]] = {}
    for ref in refs:
        notes[NO_WORD] += ref.empty
        for split in ref.splits:
            if split != "train":
                held_out.setdefault(split, {})[files.key(ref.image_id)] = None
        line = files.problem(ref)
        if line and ref.image_id in files.layout.lacked:
            notes[LACKED] += 1
        elif line:
            problems[line] = None
        elif ref.sentences:
            regions = files.regions(ref)
            notes[CROWDS] += len(ref.ann_ids) - len(regions)
            for split, sentences in _of_splits(ref):
                referent = Referent(ref.ref_id, regions, sentences)
                splits.setdefault(split, {}).setdefault(ref.image_id, []).append(referent)
    return Plan(
        {
            split: tuple(files.image_plan(i, found) for i, found in images.items())
            for split, images in splits.items()
        },
        tuple(problems),
        {note: number for note, number in notes.items() if number},
        {split: tuple(ids) for split, ids in held_out.items()},
    )


def _of_splits(ref: Ref) -> Iterator[tuple[str, tuple[tuple[str, str], ...]]]:
    """Yields a ref's splits, each with its sentences, whose ids are unique over all splits."""
    for split in ref.splits:
        mark = f"{split}-" if len(ref.splits) > 1 else ""
        yield split, tuple((f"{mark}{i}", text) for i, text in ref.sentences)
