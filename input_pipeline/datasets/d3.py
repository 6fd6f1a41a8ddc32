"""D3, which contains GRD: groups of images of one scene, and descriptions that some images satisfy.

    SOURCE/d3_images/                         the images
    SOURCE/d3_pkl/{sentences,annotations,images,groups}.pkl
    SOURCE/d3_json/d3_{full,pres,abs}_annotations.json

The config `full` has all 422 descriptions; `abs` has the 106 about something absent ("a dog without a
leash"); `pres` has the other 316, which are those of GRD (Wu et al., "Advancing Referring Expression
Segmentation Beyond Single Image"). Every image has an expression for every description of its group
(D3's intra-group evaluation). If no annotation of the image has the description, nothing matches, which
the annotators guarantee. There is only a `test` split.

The configs `full_json`, `pres_json` and `abs_json` read the COCO files, which have no groups. Each image
therefore has only the descriptions that it satisfies (the GRSer paper's "RES setting"). This reader was
written without the files of D3: that the COCO files have a `segmentation` is not verified, and the
fields of the pickles are those of the data's documentation.

Licence: CC BY-NC 4.0, for non-commercial research.
"""

import dataclasses
import functools
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, Literal

from input_pipeline.building.conversion import Conversion, Outcome, Plan, SourceError, read_image
from input_pipeline.formats.json_stream import elements, integer
from input_pipeline.formats.refer.refs import stored_text
from input_pipeline.schema import Expression, Target
from refseg_jax.images.files import spelled
from refseg_jax.images.segmentation import SegmentationError, encode_segmentation
from refseg_jax.images.units import Evidence
from refseg_jax.unpickling import load_pickle

#: A note in the build report.
NOT_SATISFIED = "images without any of the descriptions, left out"

_Kind = Literal["full", "pres", "abs"]

#: Number of descriptions of the published dataset.
_DESCRIPTIONS: Mapping[_Kind, int] = {"full": 422, "pres": 316, "abs": 106}

_CURE = "use the file of D3's archives"


@dataclasses.dataclass(frozen=True)
class Description:
    """A description, as asked of one image.

    Attributes:
        sent_id: D3's id of the description.
        text: the description.
        ann_ids: ids of the image's annotations that satisfy it; empty if nothing matches.
        group: name of the group of images, or `""`.
    """

    sent_id: int
    text: str
    ann_ids: tuple[int, ...]
    group: str


@dataclasses.dataclass(frozen=True)
class ImagePlan:
    """An image to convert.

    Attributes:
        id: D3's id of the image.
        path: path of the image file.
        name: its path in the folder of images, which orders the images of a group.
        height, width: size in pixels, as the annotations state it.
        descriptions: the descriptions that the image is asked for.
        regions: pairs (annotation id, COCO segmentation) of the annotations that they mean.
    """

    id: int
    path: Path
    name: str
    height: int
    width: int
    descriptions: tuple[Description, ...]
    regions: tuple[tuple[int, Any], ...]


def convert(plan: ImagePlan, source: str) -> Outcome:
    """Reads an image and encodes its regions into a record.

    Raises:
        ItemError: the image is missing, or has another size than its annotations.
        ImageError: the image is damaged.
    """
    size = (plan.height, plan.width)
    image = read_image(plan.path, size=size, cure="unpack d3_images.zip again")
    targets: dict[int, int] = {}
    encoded: list[Target] = []
    problems: list[str] = []
    for ann_id, segmentation in plan.regions:
        try:
            counts = encode_segmentation(segmentation, *size).counts
        except SegmentationError as error:
            problems.append(f"{plan.path}: annotation {ann_id}: {error.with_cure(_CURE)}")
            continue
        targets[ann_id] = len(encoded)
        encoded.append(Target(counts, ""))
    expressions = tuple(
        Expression(
            f"{plan.id}-{said.sent_id}",
            said.text,
            tuple(targets[i] for i in said.ann_ids),
            "group" if said.group else ("object", "multi")[len(said.ann_ids) > 1],
            number,
            said.group,
        )
        for number, said in enumerate(plan.descriptions)
        if all(i in targets for i in said.ann_ids)
    )
    if not expressions:
        return Outcome(None, tuple(problems))
    record = image.record(
        f"d3/{plan.id}",
        source,
        targets=tuple(encoded),
        expressions=expressions,
        metadata=json.dumps({"ann_ids": list(targets)}),
        file_name=plan.name,
    )
    return Outcome(record, tuple(problems))


def _read_pickles(source: Path, *, kind: _Kind) -> Plan:
    names = ("sentences", "annotations", "images", "groups")
    files = {name: source / "d3_pkl" / f"{name}.pkl" for name in names}
    for file in files.values():
        if not file.is_file():
            raise SourceError(
                f"{file}: not there; --source_dir must be the folder that holds d3_pkl (of "
                "d3_pkl.zip) and d3_images"
            )
    stored = {name: load_pickle(file, arrays=True) for name, file in files.items()}
    for name, file in files.items():
        if not isinstance(stored[name], dict) or not stored[name]:
            raise SourceError(f"{file}: holds no dict by id; {_CURE}")
    reader = _Pickles(source / "d3_images", files, **stored)
    try:
        return reader.plan(kind)
    except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
        raise SourceError(
            f"{source / 'd3_pkl'}: {reader.reading} is not as D3 has it "
            f"({type(error).__name__}: {error}); use the four files of one d3_pkl.zip"
        ) from None


@dataclasses.dataclass
class _Pickles:
    folder: Path
    files: Mapping[str, Path]
    sentences: Mapping[int, Any]
    annotations: Mapping[int, Any]
    images: Mapping[int, Any]
    groups: Mapping[int, Any]
    #: The entry that is being read, for messages.
    reading: str = ""

    def plan(self, kind: _Kind) -> Plan:
        problems: list[str] = []
        items: list[ImagePlan] = []
        asked: dict[int, None] = {}
        for image_id, image in sorted(self.images.items()):
            self.reading = f"image {image_id}"
            sentences = self._sentences(image["group_id"], kind)
            regions = self._regions(image_id, image)
            path = inside(self.folder, image["file_name"])
            if path is None or not path.is_file():
                problems.append(_missing(self.folder, image["file_name"]))
                continue
            asked |= dict.fromkeys(sentences)
            items.append(self._item(image_id, image, path, sentences, regions))
        if unit := _other_unit(items):
            raise SourceError(f"{self.files['annotations']}: {unit}")
        held_out = {"test": tuple(f"d3/{image_id}" for image_id in sorted(self.images))}
        left = [item for item in items if item.descriptions]
        notes = {NOT_SATISFIED: len(items) - len(left)} if len(left) < len(items) else {}
        facts = {_fact(kind): len(asked)}
        return Plan({"test": tuple(left)}, tuple(problems), notes, held_out, facts)

    def _item(
        self,
        image_id: int,
        image: Mapping[str, Any],
        path: Path,
        sentences: Sequence[int],
        regions: Mapping[int, Any],
    ) -> ImagePlan:
        group = self.groups[image["group_id"]]
        name = f"{image['group_id']}-{stored_text(group['group_name'])}"
        said = tuple(
            Description(
                sent_id,
                stored_text(self.sentences[sent_id]["raw_sent"]),
                tuple(i for i in regions if sent_id in self.annotations[i]["sent_id"]),
                name,
            )
            for sent_id in sentences
        )
        used = {i for description in said for i in description.ann_ids}
        return ImagePlan(
            image_id,
            path,
            path.relative_to(self.folder).as_posix(),
            integer(image["height"]),
            integer(image["width"]),
            said,
            tuple((i, region) for i, region in regions.items() if i in used),
        )

    def _sentences(self, group_id: int, kind: _Kind) -> list[int]:
        """Ids of a group's descriptions of this kind."""
        wanted = {"full": (False, True), "pres": (False,), "abs": (True,)}[kind]
        inner = self.groups[group_id]["inner_sent_id"]
        return [i for i in inner if bool(self.sentences[i]["is_negative"]) in wanted]

    def _regions(self, image_id: int, image: Mapping[str, Any]) -> dict[int, Any]:
        """Annotation id -> segmentation, for all annotations of an image."""
        regions = {}
        for ann_id in image["anno_id"]:
            annotation = self.annotations[ann_id]
            if annotation["image_id"] != image_id:
                raise ValueError(f"annotation {ann_id} is of image {annotation['image_id']}")
            regions[ann_id] = annotation["segmentation"]
        return regions


def _read_json(source: Path, *, kind: _Kind) -> Plan:
    file, folder = source / "d3_json" / f"d3_{kind}_annotations.json", source / "d3_images"
    images: dict[int, tuple[str, int, int]] = {}
    texts: dict[int, str] = {}
    drawn: dict[int, dict[int, tuple[int, Any]]] = {}
    key, entry = "", ""
    try:
        for key, entry in elements(file):
            if key == "images":
                size = integer(entry["height"]), integer(entry["width"])
                images[integer(entry["id"])] = (entry["file_name"], *size)
            elif key == "categories":
                texts[integer(entry["id"])] = stored_text(entry["name"])
            elif key == "annotations":
                of_image = drawn.setdefault(integer(entry["image_id"]), {})
                category = integer(entry["category_id"])
                of_image[integer(entry["id"])] = category, entry["segmentation"]
        items, problems = _satisfied(images, texts, drawn, folder)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise SourceError(
            f"{file}: {key} {entry!r:.60} is not as D3 has it ({type(error).__name__}: {error}); "
            f"{_CURE}"
        ) from None
    if unit := _other_unit(items):
        raise SourceError(f"{file}: {unit}")
    without = len(images) - len(items) - len(problems)
    return Plan(
        {"test": tuple(items)},
        tuple(problems),
        {NOT_SATISFIED: without} if without else {},
        {"test": tuple(f"d3/{image_id}" for image_id in sorted(images))},
        {_fact(kind): len(texts)},
    )


def _satisfied(
    images: Mapping[int, tuple[str, int, int]],
    texts: Mapping[int, str],
    drawn: Mapping[int, Mapping[int, tuple[int, Any]]],
    folder: Path,
) -> tuple[list[ImagePlan], list[str]]:
    items: list[ImagePlan] = []
    problems: list[str] = []
    for image_id, regions in sorted(drawn.items()):
        file_name, height, width = images[image_id]
        path = inside(folder, file_name)
        if path is None or not path.is_file():
            problems.append(_missing(folder, file_name))
            continue
        said: dict[int, list[int]] = {}
        for ann_id, (sent_id, _) in regions.items():
            said.setdefault(sent_id, []).append(ann_id)
        descriptions = tuple(Description(s, texts[s], tuple(i), "") for s, i in said.items())
        shapes = tuple((i, region) for i, (_, region) in regions.items())
        name = path.relative_to(folder).as_posix()
        items.append(ImagePlan(image_id, path, name, height, width, descriptions, shapes))
    return items, problems


def _other_unit(items: Sequence[ImagePlan]) -> str:
    """The reason and the cure if the coordinates of the regions are no pixels, or `""`."""
    evidence = Evidence()
    for item in items:
        for _, segmentation in item.regions:
            evidence.add(segmentation, item.id, (item.height, item.width))
    return evidence.find()


def inside(folder: Path, file_name: str) -> Path | None:
    """Path of a file below the folder, or `None` for a name that could lead out of it."""
    name = PurePosixPath(file_name)
    if name.is_absolute() or ".." in name.parts or "\\" in file_name or "\0" in file_name:
        return None
    return spelled(folder, str(name))


def _missing(folder: Path, file_name: str) -> str:
    return f"{folder}: no {file_name!r:.80} there; unpack d3_images.zip again"


def _fact(kind: _Kind) -> str:
    return f"descriptions (D3 has {_DESCRIPTIONS[kind]})"


def _conversions() -> Iterator[Conversion]:
    for kind in _DESCRIPTIONS:
        for suffix, read in (("", _read_pickles), ("_json", _read_json)):
            yield Conversion(f"d3/{kind}{suffix}", functools.partial(read, kind=kind), convert)


CONVERSIONS = tuple(_conversions())
