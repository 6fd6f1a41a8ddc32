"""Finds defects of a dataset: in its records, and between its splits.

A *fault* makes scores wrong or stops a run. A *remark* is worth knowing, but occurs in published
datasets too.
"""

import collections
import dataclasses
import hashlib
import itertools
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any, Literal, NamedTuple

from pycocotools import mask as coco_mask

from input_pipeline.schema import Record
from refseg_jax.images.decoding import ImageError, decode_image
from refseg_jax.images.segmentation import SegmentationError
from refseg_jax.text.cleaning import has_word

#: A target with fewer pixels gives a remark.
TINY = 16

#: A part with a smaller share of its pixels inside its object gives a remark.
_INSIDE = 0.5

#: Masks that were inverted or read by their stored numbers look like this.
_EVERYTHING = "target that covers the whole image"
_CORNERS = "target that covers all four corners of the image"

#: Every check, in the order of the doctor's table, where those of conversions follow.
CHECKS: Mapping[str, Literal["fault", "remark"]] = {
    "damaged record": "fault",
    "damaged image": "fault",
    "image of another size than its record": "fault",
    "damaged mask": "fault",
    "empty mask": "fault",
    "expression without a word": "fault",
    "expression that means nothing, but is not 'none'": "fault",
    "expression 'none' that means something": "fault",
    "expression id that occurs twice": "fault",
    "image of a training split that is also in an evaluation split": "fault",
    "same picture under two image ids, in training and evaluation": "fault",
    "image of a training split that is in an evaluation set beside it": "remark",
    "image of two evaluation splits": "remark",
    "image that occurs twice in a split": "remark",
    "expression said twice of the same thing": "remark",
    "expression said of different things in one image": "remark",
    f"target of fewer than {TINY} pixels": "remark",
    _EVERYTHING: "remark",
    _CORNERS: "remark",
    "part that lies outside of its object": "remark",
}
#: Check of a raw folder: an item that cannot be built, a fault. Notes of a conversion are remarks.
CANNOT_BE_BUILT = "cannot be built"


class Finding(NamedTuple):
    """A defect that was found.

    Attributes:
        check: key of `CHECKS`, `CANNOT_BE_BUILT`, or a note of a conversion.
        split: name of the split.
        text: one line that names the item and describes the defect.
        targets: indices of the record's targets that a picture should show.
        number: how many items the finding stands for.
    """

    check: str
    split: str
    text: str
    targets: tuple[int, ...] = ()
    number: int = 1

    @property
    def is_fault(self) -> bool:
        """Whether it is a fault, which has to be cured, and not a remark."""
        return CHECKS.get(self.check, "remark") == "fault" or self.check == CANNOT_BE_BUILT


def record_findings(record: Record, split: str) -> list[Finding]:
    """Defects of one record."""
    found = [*_image_findings(record), *_mask_findings(record), *_text_findings(record)]
    name = f"{record.file_name} (image {record.image_id})"
    return [Finding(check, split, f"{name}: {text}", targets) for check, text, targets in found]


_Found = tuple[str, str, tuple[int, ...]]


def _image_findings(record: Record) -> Iterator[_Found]:
    size = (record.height, record.width)
    try:
        image = decode_image(record.image, name=record.file_name, annotated=size)
    except ImageError as error:
        yield "damaged image", str(error), ()
        return
    height, width, _ = image.shape
    if (height, width) != size:
        stated = f"{record.width} x {record.height}"
        text = f"is {width} x {height}, its record says {stated}"
        yield "image of another size than its record", text, ()


def _mask_findings(record: Record) -> Iterator[_Found]:
    masks: dict[int, Any] = {}
    for number, target in enumerate(record.targets):
        words = f"target {number} ({target.category or 'without a category'})"
        try:
            masks[number] = record.rle(number)
        except SegmentationError as error:
            yield "damaged mask", f"{words}: {error}", ()
            continue
        area = int(coco_mask.area(masks[number]))
        if not area:
            yield "empty mask", words, ()
        elif area < TINY:
            check = f"target of fewer than {TINY} pixels"
            yield check, f"{words} has {area}", (number,)
        elif area == record.height * record.width:
            yield _EVERYTHING, words, (number,)
        elif target.granularity != "stuff" and _has_corners(record, number, masks[number]):
            yield _CORNERS, f"{words}: if it is the background, invert the mask", (number,)
    for number, target in enumerate(record.targets):
        if number not in masks or target.parent not in masks:
            continue
        area = int(coco_mask.area(masks[number]))
        shared: Any = coco_mask.merge([masks[number], masks[target.parent]], intersect=True)
        inside = int(coco_mask.area(shared)) / area if area else 1.0
        if inside < _INSIDE:
            text = f"{target.category} (target {number}): {inside:.0%} of it in its object"
            yield "part that lies outside of its object", text, (number, target.parent)


def _has_corners(record: Record, number: int, rle: Any) -> bool:
    """Whether a target covers the four corners of its image."""
    if coco_mask.toBbox(rle).tolist() != [0, 0, record.width, record.height]:
        return False
    return bool(record.mask([number])[:: record.height - 1 or 1, :: record.width - 1 or 1].all())


def _text_findings(record: Record) -> Iterator[_Found]:
    said: dict[str, list[tuple[int, ...]]] = collections.defaultdict(list)
    for expression in record.expressions:
        words, targets = " ".join(expression.text.lower().split()), expression.targets
        shown = f"{expression.text!r} ({expression.id})"
        if not has_word(expression.text):
            yield (
                "expression without a word",
                ascii(expression.text) + f" ({expression.id})",
                targets,
            )
        if targets and expression.granularity == "none":
            yield "expression 'none' that means something", shown, targets
        if not targets and expression.granularity not in ("none", "group"):
            yield "expression that means nothing, but is not 'none'", shown, ()
        if targets in said[words]:
            yield "expression said twice of the same thing", shown, targets
        elif said[words]:
            both = tuple(sorted({*targets, *said[words][-1]}))
            yield "expression said of different things in one image", shown, both
        said[words].append(targets)


@dataclasses.dataclass(frozen=True)
class Identity:
    """What identifies a record in other splits.

    Attributes:
        image_id: the record's image id.
        digest: BLAKE2b digest (16 bytes) of the encoded image.
        expression_ids: ids of its expressions.
    """

    image_id: str
    digest: bytes
    expression_ids: tuple[str, ...]

    @classmethod
    def of(cls, record: Record) -> "Identity":
        """The identity of a record."""
        digest = hashlib.blake2b(record.image, digest_size=16).digest()
        return cls(record.image_id, digest, tuple(e.id for e in record.expressions))


def split_findings(splits: Mapping[str, Sequence[Identity]]) -> list[Finding]:
    """Defects between records: ids that occur twice, images of both training and evaluation splits."""
    expressions: set[str] = set()
    # Training splits first, so that findings name the evaluation split.
    ordered = {split: splits[split] for split in sorted(splits, key=_is_evaluation)}
    repeated = [f for split, of in ordered.items() for f in _repeated(split, of, expressions)]
    return [*repeated, *_shared(ordered)]


def _is_evaluation(split: str) -> bool:
    return not split.startswith("train")


def _repeated(split: str, identities: Sequence[Identity], said: set[str]) -> Iterator[Finding]:
    """Yields images and expression ids that occur twice; adds the expression ids to `said`."""
    seen: set[str] = set()
    for identity in identities:
        image = f"image {identity.image_id}"
        if identity.image_id in seen:
            yield Finding("image that occurs twice in a split", split, image)
        seen.add(identity.image_id)
        for expression in identity.expression_ids:
            if expression in said:
                yield Finding("expression id that occurs twice", split, f"{image}: {expression!r}")
            said.add(expression)


def _shared(splits: Mapping[str, Sequence[Identity]]) -> Iterator[Finding]:
    """Yields images of evaluation splits that occur in another split, by image id or by content."""
    trained = {i.image_id: s for s in splits if not _is_evaluation(s) for i in splits[s]}
    pictures = {
        i.digest: (s, i.image_id) for s in splits if not _is_evaluation(s) for i in splits[s]
    }
    evaluated: dict[str, str] = {}
    for split in filter(_is_evaluation, splits):
        for identity in splits[split]:
            image = f"image {identity.image_id}"
            if identity.image_id in trained:
                check = "image of a training split that is also in an evaluation split"
                yield Finding(check, split, f"{image} is in {trained[identity.image_id]}")
            elif identity.digest in pictures:
                check = "same picture under two image ids, in training and evaluation"
                where, other = pictures[identity.digest]
                yield Finding(check, split, f"{image} is image {other} of {where}")
            first = evaluated.setdefault(identity.image_id, split)
            if first != split:
                yield Finding("image of two evaluation splits", split, f"{image} is in {first}")


def leak_findings(
    splits: Mapping[str, Sequence[Identity]], sets: Mapping[str, Collection[str]]
) -> list[Finding]:
    """Finds images of training splits in evaluation sets that were not examined.

    Args:
        splits: examined split -> identities of its records.
        sets: evaluation set that was not examined -> image ids (see `leakage.evaluation_images`).

    Returns:
        A finding for each training split and each set that shares images with it.
    """
    found = []
    for split in itertools.filterfalse(_is_evaluation, splits):
        own = {identity.image_id for identity in splits[split]}
        for name, ids in sets.items():
            shared = sorted(own.intersection(ids))
            if shared:
                check = "image of a training split that is in an evaluation set beside it"
                text = f"{len(shared):,} images of {name}, e.g. image {shared[0]}"
                found.append(Finding(check, split, text, number=len(shared)))
    return found
