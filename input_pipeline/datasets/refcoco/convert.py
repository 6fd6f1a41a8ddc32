"""An image of the `refer` layout as a record; runs in worker processes, so it imports no TFDS."""

import dataclasses
import json

from input_pipeline.datasets.refcoco.layout import ImagePlan
from input_pipeline.schema import Expression, Record, Target
from input_pipeline.segmentation import SegmentationError, encode_segmentation
from refseg_jax.preprocess import ImageError, decode_image


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What became of an image.

    Attributes:
        record: `None` where the image or all of its regions are of no use.
        problems: one line for each thing that had to be left out.
        tiny: polygons of fewer than three points that were left out of masks.
    """

    record: Record | None
    problems: tuple[str, ...] = ()
    tiny: int = 0


def convert(plan: ImagePlan, source: str) -> Outcome:
    """Reads and checks an image, and encodes the masks of its referents.

    Args:
        plan: the image and its refs.
        source: the record's `source`.

    Returns:
        The record, and whatever is wrong.
    """
    try:
        data = plan.path.read_bytes()
        height, width, _ = decode_image(data, name=str(plan.path)).shape
    except OSError as error:
        return Outcome(None, (f"{plan.path}: {error.strerror}; copy it from COCO train2014",))
    except ImageError as error:
        return Outcome(None, (str(error),))
    if (height, width) != (plan.height, plan.width):
        line = (
            f"{plan.path}: is {width} x {height}, its annotations are for {plan.width} x "
            f"{plan.height}; use COCO's original"
        )
        return Outcome(None, (line,))
    return _with_masks(plan, source, data)


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
    if not encoded:
        return Outcome(None, tuple(problems), tiny)
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
    return Outcome(record, tuple(problems), tiny)
