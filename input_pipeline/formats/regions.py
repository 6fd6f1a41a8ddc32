"""Encodes regions of published annotations, of which some polygons cover nothing."""

from collections import Counter
from collections.abc import Sequence
from typing import Any

from refseg_jax.images.placement import misplaced
from refseg_jax.images.segmentation import EmptyRegion, encode_segmentation

#: A note in the report of a build.
TINY = "polygons of fewer than three points, left out of masks"


def counts_of(
    segmentation: Any,
    size: tuple[int, int],
    notes: Counter[str],
    *,
    empty: str,
    box: Sequence[float] = (),
) -> bytes | None:
    """RLE counts of a region that may cover no pixel.

    Args:
        segmentation: as `encode_segmentation` takes it.
        size: height and width of the image in pixels.
        notes: what the report of the build counts; the note `TINY`, those of a region away from its box
            and `empty` are added.
        empty: the note of a region that covers no pixel.
        box: (x, y, width, height) in pixels, or empty if none is stated.

    Returns:
        The counts, or `None` if the region covers no pixel.

    Raises:
        SegmentationError: as `encode_segmentation`.
    """
    if isinstance(segmentation, list) and all(isinstance(part, list) for part in segmentation):
        whole = [polygon for polygon in segmentation if len(polygon) >= 6]
        if len(whole) < len(segmentation):
            notes[TINY] += len(segmentation) - len(whole)
        segmentation = whole
    try:
        if segmentation:
            counts = encode_segmentation(segmentation, *size, box=box).counts
            notes.update(misplaced(segmentation, counts, box, *size))
            return counts
    except EmptyRegion:
        pass
    notes[empty] += 1
    return None
