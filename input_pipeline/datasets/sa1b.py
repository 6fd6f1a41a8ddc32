"""SA-1B: images with about a hundred masks each, without words.

    SOURCE/sa_<n>.jpg, SOURCE/sa_<n>.json      or both in folders (SOURCE/sa_000000/...)
    SOURCE/sa_000000.tar                       or in the tars of the download, read in place

The records have targets but no expressions, so training and evaluation skip them. They are the input of
engines that write expressions. Targets have no category. SA-1B does not say whether a mask is an object,
a part or stuff; all targets are `object`. `metadata` has `ids`, `predicted_iou` and `stability_score`,
each a list in the order of the targets.

Source: the features of TensorFlow Datasets' `segment_anything`.
"""

import dataclasses
import json
import math
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from input_pipeline.building.conversion import Conversion, ItemError, Outcome, Plan, SourceError
from input_pipeline.formats.archives import tar_members
from input_pipeline.formats.json_stream import integer
from input_pipeline.schema import Record, Target
from refseg_jax.images.decoding import decode_image
from refseg_jax.images.files import check_regular
from refseg_jax.images.segmentation import EmptyRegion, SegmentationError, encode_segmentation
from refseg_jax.text.encoding import decoded

#: A note in the build report.
EMPTY = "masks without a pixel, left out"

_CURE = "download it again"
_NAME = re.compile(r"sa_(\d+)\.(jpg|json)", re.ASCII)


# Slots save memory: the whole of SA-1B has 11 million images.
@dataclasses.dataclass(frozen=True, slots=True)
class Span:
    """Place of bytes on disk: a member of a tar, or a whole file.

    Attributes:
        path: path of the file.
        offset: first byte.
        size: number of bytes; -1 for all up to the end.
    """

    path: str
    offset: int = 0
    size: int = -1

    def read(self) -> bytes:
        """Reads the bytes.

        Raises:
            ItemError: the file cannot be read.
        """
        try:
            check_regular(self.path)
            with Path(self.path).open("rb") as file:
                file.seek(self.offset)
                return file.read(self.size)
        except OSError as error:
            raise ItemError(f"{self.path}: {error.strerror}; {_CURE}") from None


@dataclasses.dataclass(frozen=True, slots=True)
class SamImage:
    """An image to convert.

    Attributes:
        number: the number in its name, `sa_<number>`.
        image: place of the JPEG.
        masks: place of the JSON with the masks.
    """

    number: int
    image: Span
    masks: Span

    @property
    def where(self) -> str:
        """Path of the image, for errors."""
        inner = "" if self.image.size < 0 else f"/sa_{self.number}.jpg"
        return f"{self.image.path}{inner}"


def read_plan(source: Path) -> Plan:
    """Finds the pairs of images and JSON.

    Raises:
        SourceError: the source folder has no such file.
        ArchiveError: a tar is damaged or refused.
    """
    found: dict[int, dict[str, Span]] = {}
    for number, kind, span in _files(source):
        found.setdefault(number, {}).setdefault(kind, span)
    items, problems = [], []
    for number, spans in sorted(found.items()):
        if spans.keys() == {"jpg", "json"}:
            items.append(SamImage(number, spans["jpg"], spans["json"]))
        else:
            ((kind, span),) = spans.items()
            lacks = {"jpg": "json", "json": "jpg"}[kind]
            problems.append(f"{span.path}: sa_{number}.{lacks} is missing beside it; {_CURE}")
    if not found:
        raise SourceError(
            f"{source}: no sa_*.jpg with sa_*.json there, in a folder there, or in a sa_*.tar there"
        )
    return Plan({"train": tuple(items)}, tuple(problems))


def _files(source: Path) -> Iterator[tuple[int, str, Span]]:
    """Yields (number, `jpg` or `json`, place) of every file."""
    for path in sorted([*source.glob("sa_*"), *source.glob("*/sa_*")]):
        if path.suffix == ".tar":
            for member in tar_members(path):
                name = _NAME.fullmatch(member.name.rpartition("/")[2])
                if name:
                    yield int(name[1]), name[2], Span(str(path), member.offset, member.size)
        elif name := _NAME.fullmatch(path.name):
            yield int(name[1]), name[2], Span(str(path))


def convert(item: SamImage, source: str) -> Outcome:
    """Makes the record of an image with its masks.

    Raises:
        ItemError: a file cannot be read, or the image and the JSON do not belong together.
        ImageError: the image is damaged.
    """
    data = item.image.read()
    stated, annotations = _stored(item)
    height, width, _ = decode_image(data, name=item.where, annotated=stated[1:]).shape
    if stated != (item.number, height, width):
        raise ItemError(
            f"{item.where}: is image {item.number} of {width} x {height}, its JSON says image "
            f"{stated[0]} of {stated[2]} x {stated[1]}; {_CURE}"
        )
    targets: list[Target] = []
    kept: list[tuple[int, float, float]] = []
    problems, empty = [], 0
    for segmentation, facts in annotations:
        try:
            if not isinstance(segmentation, Mapping):
                raise SegmentationError("it is no RLE, as all of SA-1B are")
            region = encode_segmentation(segmentation, height, width)
        except EmptyRegion:
            empty += 1
        except SegmentationError as error:
            problems.append(f"{item.where}: mask {facts[0]}: {error.with_cure(_CURE)}")
        else:
            targets.append(Target(region.counts, ""))
            kept.append(facts)
    names = ("ids", "predicted_iou", "stability_score")
    record = Record(
        image=data,
        image_id=f"sa1b/{item.number}",
        file_name=f"sa_{item.number}.jpg",
        height=height,
        width=width,
        source=source,
        targets=tuple(targets),
        expressions=(),
        metadata=json.dumps({name: [f[k] for f in kept] for k, name in enumerate(names)}),
    )
    return Outcome(record, tuple(problems), {EMPTY: empty} if empty else {})


_Facts = tuple[int, float, float]


def _stored(item: SamImage) -> tuple[tuple[int, int, int], list[tuple[Any, _Facts]]]:
    """Reads the JSON: (number, height, width) of the image, and the masks.

    A mask is (segmentation, (id, predicted IoU, stability score)).
    """
    try:
        stored = json.loads(decoded(item.masks.read()))
        image = stored["image"]
        size = (integer(image["image_id"]), integer(image["height"]), integer(image["width"]))
        annotations = [
            (
                a["segmentation"],
                (integer(a["id"]), _finite(a, "predicted_iou"), _finite(a, _STABLE)),
            )
            for a in stored["annotations"]
        ]
    except (KeyError, TypeError, ValueError, OverflowError, RecursionError) as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:120]
        raise ItemError(
            f"{item.where}: its JSON is damaged or not SA-1B's ({reason}); {_CURE}"
        ) from None
    return size, annotations


_STABLE = "stability_score"


def _finite(annotation: Any, name: str) -> float:
    value = float(annotation[name])
    if not math.isfinite(value):
        raise ValueError(f"{name} {value}")
    return value


CONVERSIONS = (Conversion("sa1b", read_plan, convert),)
