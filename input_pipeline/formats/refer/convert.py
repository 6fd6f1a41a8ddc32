"""Converts an image of the `refer` layout; runs in worker processes, so it does not import TFDS."""

import json
from collections import Counter
from typing import Any

from input_pipeline.building.conversion import Outcome, read_image
from input_pipeline.formats.refer.layout import Annotation, ImagePlan, Referent
from input_pipeline.formats.regions import TINY
from input_pipeline.schema import Expression, Target
from refseg_jax.images.placement import misplaced
from refseg_jax.images.segmentation import SegmentationError, encode_segmentation


def convert(plan: ImagePlan, source: str) -> Outcome:
    """Reads and checks an image, and encodes the masks of its referents.

    Args:
        plan: the image and its referents.
        source: the record's `source`.

    Returns:
        The record, with problems and notes.

    Raises:
        ItemError: the image is missing, or has another size than its annotations.
        ImageError: the image is damaged.
    """
    size = (plan.height, plan.width)
    image = read_image(plan.path, size=size, cure=f"copy it from {plan.images}")
    regions = _Regions(plan)
    expressions: list[Expression] = []
    ref_ids: list[int | None] = []
    for referent in plan.referents:
        targets = regions.of(referent.annotations)
        if targets is None:
            continue
        expressions.extend(
            Expression(sent_id, text, targets, granularity(referent), len(ref_ids), referent.group)
            for sent_id, text in referent.sentences
        )
        ref_ids.append(referent.ref_id)
    problems = tuple(regions.problems)
    notes = dict(regions.notes)
    if not expressions:
        return Outcome(None, problems, notes)
    facts: dict[str, list[Any]] = {"ann_ids": list(regions.index)}
    if None not in ref_ids:
        facts["ref_ids"] = ref_ids
    record = image.record(
        plan.image_id,
        source,
        targets=tuple(regions.targets),
        expressions=tuple(expressions),
        metadata=json.dumps(facts),
    )
    return Outcome(record, problems, notes)


def granularity(referent: Referent) -> str:
    """`group` for a referent of a group, else `none`, `object` or `multi` by its number of regions."""
    if referent.group:
        return "group"
    return ("none", "object", "multi")[min(len(referent.annotations), 2)]


class _Regions:
    """Collects the targets of an image, each annotation once."""

    def __init__(self, plan: ImagePlan) -> None:
        self._plan = plan
        self.targets: list[Target] = []
        self.index: dict[int, int] = {}
        self.problems: dict[str, None] = {}
        self.notes: Counter[str] = Counter()

    def of(self, annotations: tuple[Annotation, ...]) -> tuple[int, ...] | None:
        """Indices of the annotations' targets, or `None` if the mask of one cannot be encoded."""
        encoded = [self._encoded(annotation) for annotation in annotations]
        if not all(encoded):
            return None
        return tuple(self.index[annotation.id] for annotation in annotations)

    def _encoded(self, annotation: Annotation) -> bool:
        if annotation.id in self.index:
            return True
        plan = self._plan
        try:
            stored = json.loads(annotation.segmentation)
            region = encode_segmentation(stored, plan.height, plan.width, annotation.box)
        except SegmentationError as error:
            reason = error.with_cure("use its authors' annotations")
            self.problems[f"{plan.path}: annotation {annotation.id}: {reason}"] = None
            return False
        self.notes.update(misplaced(stored, region.counts, annotation.box, plan.height, plan.width))
        if region.tiny:
            self.notes[TINY] += region.tiny
        self.index[annotation.id] = len(self.targets)
        self.targets.append(Target(region.counts, annotation.category))
        return True
