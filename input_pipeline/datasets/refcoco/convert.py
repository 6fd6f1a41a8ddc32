"""An image of the `refer` layout as a record; runs in worker processes, so it imports no TFDS."""

import json

from input_pipeline.datasets.conversion import Outcome, read_image
from input_pipeline.datasets.refcoco.layout import ImagePlan
from input_pipeline.schema import Expression, Record, Target
from input_pipeline.segmentation import SegmentationError, encode_segmentation

#: A note of a build.
TINY = "polygons of fewer than three points, left out of masks"


def convert(plan: ImagePlan, source: str) -> Outcome:
    """Reads and checks an image, and encodes the masks of its referents.

    Args:
        plan: the image and its refs.
        source: the record's `source`.

    Returns:
        The record, and whatever is wrong.

    Raises:
        ItemError: the image is missing or not the annotated one.
        ImageError: it is damaged.
    """
    size = (plan.height, plan.width)
    image = read_image(plan.path, size=size, cure="copy it from COCO train2014")
    return _with_masks(plan, source, image.data)


def _with_masks(plan: ImagePlan, source: str, data: bytes) -> Outcome:
    targets: dict[int, int] = {}
    encoded: list[Target] = []
    expressions: list[Expression] = []
    problems: dict[str, None] = {}
    ref_ids: list[int] = []
    tiny = 0
    for referent in plan.referents:
        annotation = referent.annotation
        if annotation.id not in targets:
            try:
                region = encode_segmentation(annotation.segmentation, plan.height, plan.width)
            except SegmentationError as error:
                line = f"{plan.path}: annotation {annotation.id}: {error}; use COCO's annotations"
                problems[line] = None
                continue
            tiny += region.tiny
            targets[annotation.id] = len(encoded)
            encoded.append(Target(region.counts, annotation.category))
        expressions.extend(
            Expression(str(sent_id), text, (targets[annotation.id],), "object", len(ref_ids))
            for sent_id, text in referent.sentences
        )
        ref_ids.append(referent.ref_id)
    notes = {TINY: tiny} if tiny else {}
    if not encoded:
        return Outcome(None, tuple(problems), notes)
    record = Record(
        image=data,
        image_id=str(plan.image_id),
        file_name=plan.path.name,
        height=plan.height,
        width=plan.width,
        source=source,
        targets=tuple(encoded),
        expressions=tuple(expressions),
        metadata=json.dumps({"ann_ids": list(targets), "ref_ids": ref_ids}),
    )
    return Outcome(record, tuple(problems), notes)
