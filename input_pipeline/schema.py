"""The record that all datasets share: an image, its targets, its expressions.

TFDS builders write records, and sources read them. A record is stored flat (lists, and row splits for
lists of lists) because TFDS writes and reads flat features without TensorFlow.
"""

import contextlib
import dataclasses
import functools
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from pycocotools import mask as coco_mask

from refseg_jax.batch import ABSENCES, GRANULARITIES
from refseg_jax.images.segmentation import SegmentationError, checked_rle, decode_counts

#: Values of `Target.granularity`.
TARGET_GRANULARITIES = ("object", "part", "stuff")

#: File beside a dataset's records with the image ids of all its evaluation splits, including those that
#: were not built: `{split: [id, ...]}`.
HELD_OUT = "held_out.json"

#: File beside a dataset's records with its closed list of classes, see `AskedClass`. It holds
#: `{granularity: [[text, category], ...]}`.
CLASSES = "classes.json"


@dataclasses.dataclass(frozen=True)
class Target:
    """A region of the image.

    Attributes:
        counts: compressed COCO RLE counts at the image's native size.
        category: name of the category, e.g. `"car"` or `"wheel"`.
        parent: of a part, the index in `Record.targets` of its object; else -1.
        granularity: name out of `TARGET_GRANULARITIES`.
    """

    counts: bytes
    category: str
    parent: int = -1
    granularity: str = "object"


@dataclasses.dataclass(frozen=True)
class Expression:
    """A text and the targets that it means.

    Attributes:
        id: unique in the dataset over all its splits.
        text: the words as the dataset has them.
        targets: indices in `Record.targets`; empty if nothing in the image matches.
        granularity: name out of `refseg_jax.batch.GRANULARITIES`.
        referent: number of the thing that the text describes. Expressions of a record with the same
            number describe the same thing, so that a sampler can draw one expression per referent.
        group: name of the group of images that share this expression, else `""`. Images belong
            together if group and text are the same.
        form: name out of `refseg_jax.batch.ABSENCES`, or `""` where it is unknown. Of an expression
            without targets: why nothing matches. Of one with targets: the form of absence that it is
            compared with, because the same text is asked of an image in which nothing matches.
    """

    id: str
    text: str
    targets: tuple[int, ...]
    granularity: str
    referent: int = 0
    group: str = ""
    form: str = ""


class AskedClass(NamedTuple):
    """A class of a dataset's closed list, for which a benchmark asks every image.

    Attributes:
        text: the expression, e.g. `"all wall"` or `"wheel of car"`.
        category: `Target.category` of its regions; `""` where that alone does not tell the class (the
            head of a bird and that of a fish).
    """

    text: str
    category: str = ""


#: Ways in which other programs write COCO's id 139, as `COCO_train2014_000000000139.jpg`.
_COCO_ID = re.compile(
    r"(?:coco/0*|COCO_\w+?_0*)(\d+)(?:\.\w+)?|0*(\d+)\.0+|(?=\d{12}\.)0*(\d+)\.\w+", re.IGNORECASE
)


def id_fault(image_id: str) -> str:
    """The reason and the cure of an `image_id` that would not equal the same image's in other datasets.

    `""` if there is none. Bare digits are COCO's ids.
    """
    if image_id != image_id.strip():
        return "begins or ends with a blank; leave the blank out"
    if found := _COCO_ID.fullmatch(image_id):
        number = int(next(filter(None, found.groups())))
        return f"names an image of COCO; write its id, '{number}'"
    if re.fullmatch(r"0\d+", image_id):
        return "begins with a zero; write COCO's ids without zeros in front"
    if re.fullmatch(r"-\d+", image_id) or (image_id.isdecimal() and not image_id.isascii()):
        return "is no id of COCO, as bare numbers are; write other ids behind their pool (vg/12)"
    return ""


@dataclasses.dataclass(frozen=True)
class Record:
    """One image with everything that is known about it.

    Attributes:
        image: the original encoded bytes (JPEG or PNG).
        image_id: unique in its image pool (for COCO images the COCO id); `input_pipeline.leakage` finds
            images that several datasets share by it.
        file_name: the name in the dataset.
        height, width: native size in pixels, of the image as a person sees it. If its masks are of the
            size of the stored pixels alone, that size (`images.orientation.is_followed`).
        source: `"<dataset>/<config>"`.
        targets: the regions that expressions can mean, see `Target`.
        expressions: the texts, see `Expression`.
        metadata: any JSON text of the dataset (Scenes keeps its scene graph here), or `""`.
    """

    image: bytes
    image_id: str
    file_name: str
    height: int
    width: int
    source: str
    targets: tuple[Target, ...]
    expressions: tuple[Expression, ...]
    metadata: str = ""

    def mask(self, target_indices: Sequence[int]) -> np.ndarray:
        """The union of some targets: u8 `[height, width]` of 0/1 (zeros for no target).

        The array is in column-major (Fortran) order, as COCO's masks are.

        Raises:
            SegmentationError: the mask of a target is damaged, or has another size than the image.
        """
        if not target_indices:
            return np.zeros((self.width, self.height), np.uint8).T
        size = (self.height, self.width)
        masks = []
        for target in target_indices:
            with self._damage(target):
                masks.append(decode_counts(self.targets[target].counts, *size))
        return functools.reduce(np.bitwise_or, masks)

    def rle(self, target: int) -> Any:
        """The mask of one target as a COCO RLE dict, for pycocotools; raises as `mask` does."""
        size, counts = [self.height, self.width], self.targets[target].counts
        with self._damage(target):
            return checked_rle({"size": size, "counts": counts}, *size)

    @contextlib.contextmanager
    def _damage(self, target: int) -> Iterator[None]:
        """Adds the image and the target to the error of a damaged mask."""
        try:
            yield
        except SegmentationError as error:
            raise SegmentationError(
                f"{self.source}: image {self.image_id} ({self.file_name}): target {target}: "
                f"{error}; build the dataset again"
            ) from None


def encode_mask(mask: np.ndarray) -> bytes:
    """Compressed COCO RLE counts of a `[height, width]` mask of 0/1 or bool."""
    rle: Any = coco_mask.encode(np.asfortranarray(mask, dtype=np.uint8))
    return rle["counts"]


def features() -> Any:
    """The TFDS features of a stored record (imported late: TFDS is slow to import)."""
    from tensorflow_datasets.core import features as tfds_features

    text = tfds_features.Tensor(shape=(), dtype=np.object_)
    number = tfds_features.Scalar(dtype=np.int32)
    lists = tfds_features.Sequence
    return tfds_features.FeaturesDict(
        {
            "image": text,
            "image_id": text,
            "file_name": text,
            "height": number,
            "width": number,
            "source": text,
            "metadata": text,
            "target/counts": lists(text),
            "target/category": lists(text),
            "target/parent": lists(number),
            "target/granularity": lists(text),
            "expression/id": lists(text),
            "expression/text": lists(text),
            "expression/granularity": lists(text),
            "expression/referent": lists(number),
            "expression/group": lists(text),
            "expression/form": lists(text),
            "expression/target_splits": lists(number),
            "expression/target_values": lists(number),
        }
    )


def to_features(record: Record) -> dict[str, Any]:
    """A record in the form that TFDS stores (`features`).

    Raises:
        ValueError: an index is out of range, or a granularity is unknown.
    """
    check_references(record)
    targets, expressions = record.targets, record.expressions
    splits = np.cumsum([0, *(len(e.targets) for e in expressions)])
    return {
        "image": record.image,
        "image_id": record.image_id.encode(),
        "file_name": record.file_name.encode(),
        "height": record.height,
        "width": record.width,
        "source": record.source.encode(),
        "metadata": record.metadata.encode(),
        "target/counts": [t.counts for t in targets],
        "target/category": [t.category.encode() for t in targets],
        "target/parent": [t.parent for t in targets],
        "target/granularity": [t.granularity.encode() for t in targets],
        "expression/id": [e.id.encode() for e in expressions],
        "expression/text": [e.text.encode() for e in expressions],
        "expression/granularity": [e.granularity.encode() for e in expressions],
        "expression/referent": [e.referent for e in expressions],
        "expression/group": [e.group.encode() for e in expressions],
        "expression/form": [e.form.encode() for e in expressions],
        "expression/target_splits": [int(s) for s in splits],
        "expression/target_values": [int(i) for e in expressions for i in e.targets],
    }


def from_features(stored: Mapping[str, Any]) -> Record:
    """The inverse of `to_features`.

    Raises:
        UnicodeDecodeError: a text is not UTF-8.
    """
    splits = [int(s) for s in stored["expression/target_splits"]]
    values = [int(v) for v in stored["expression/target_values"]]
    return Record(
        image=stored["image"],
        image_id=stored["image_id"].decode(),
        file_name=stored["file_name"].decode(),
        height=int(stored["height"]),
        width=int(stored["width"]),
        source=stored["source"].decode(),
        metadata=stored["metadata"].decode(),
        targets=tuple(
            Target(counts, category.decode(), int(parent), granularity.decode())
            for counts, category, parent, granularity in zip(
                stored["target/counts"],
                stored["target/category"],
                stored["target/parent"],
                stored["target/granularity"],
                strict=True,
            )
        ),
        expressions=tuple(
            Expression(
                id=stored["expression/id"][k].decode(),
                text=stored["expression/text"][k].decode(),
                targets=tuple(values[splits[k] : splits[k + 1]]),
                granularity=stored["expression/granularity"][k].decode(),
                referent=int(stored["expression/referent"][k]),
                group=stored["expression/group"][k].decode(),
                form=stored["expression/form"][k].decode(),
            )
            for k in range(len(stored["expression/id"]))
        ),
    )


def check_references(record: Record) -> None:
    """Raises a `ValueError` if an index is out of range, or a granularity or form is unknown."""
    count = len(record.targets)
    for number, target in enumerate(record.targets):
        if target.granularity not in TARGET_GRANULARITIES:
            raise ValueError(f"{record.image_id}: target {number}: {target.granularity!r} unknown")
        if not -1 <= target.parent < count or target.parent == number:
            raise ValueError(f"{record.image_id}: target {number}: no parent {target.parent}")
    for expression in record.expressions:
        if expression.granularity not in GRANULARITIES:
            raise ValueError(f"{expression.id}: granularity {expression.granularity!r} unknown")
        if expression.form not in ("", *ABSENCES):
            raise ValueError(f"{expression.id}: form {expression.form!r} unknown")
        if not all(0 <= i < count for i in expression.targets):
            raise ValueError(f"{expression.id}: targets {expression.targets} of {count}")
