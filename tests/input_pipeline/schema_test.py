import dataclasses
from typing import Any

import numpy as np
import pytest

from input_pipeline.schema import (
    Expression,
    Record,
    Target,
    encode_mask,
    features,
    from_features,
    to_features,
)
from refseg_jax.images.segmentation import SegmentationError

HEIGHT, WIDTH = 6, 10


def rectangle(rows: slice, columns: slice, shape: tuple[int, int] = (HEIGHT, WIDTH)) -> np.ndarray:
    mask = np.zeros(shape, np.uint8)
    mask[rows, columns] = 1
    return mask


LEFT = rectangle(slice(1, 4), slice(0, 5))
RIGHT = rectangle(slice(2, 6), slice(3, 9))


def make(**changes: Any) -> Record:
    fields: dict[str, Any] = {
        "image": b"\xff\xd8 not read here \x00",
        "image_id": "42",
        "file_name": "a/42.jpg",
        "height": HEIGHT,
        "width": WIDTH,
        "source": "made/up",
        "metadata": '{"where": "Zürich"}',
        "targets": (
            Target(encode_mask(LEFT), "car"),
            Target(encode_mask(RIGHT), "wheel", 0, "part"),
        ),
        "expressions": (
            Expression("42-0", "die Tür, 左", (0,), "object", 3, "g1"),
            Expression("42-1", "nothing", (), "none"),
            Expression("42-2", "both", (1, 0), "multi", 1),
            Expression("42-3", "nothing either", (), "none", 2),
        ),
        **changes,
    }
    return Record(**fields)


def test_a_record_survives_storing():
    record = make()
    assert from_features(to_features(record)) == record


def test_a_record_without_targets_and_expressions_survives_storing():
    record = make(targets=(), expressions=(), metadata="")
    assert from_features(to_features(record)) == record


def test_features_name_every_stored_field():
    assert set(features()) == set(to_features(make()))


def test_the_mask_is_the_union_of_overlapping_targets():
    record = make()
    assert (LEFT & RIGHT).any()
    np.testing.assert_array_equal(record.mask((0,)), LEFT)
    np.testing.assert_array_equal(record.mask((1, 0)), LEFT | RIGHT)


def test_the_mask_of_no_target_is_empty():
    mask = make().mask(())
    assert mask.shape == (HEIGHT, WIDTH) and mask.dtype == np.uint8 and not mask.any()


def test_bool_and_strided_masks_are_encoded_as_their_pixels():
    wide = np.repeat(LEFT, 2, axis=1)
    assert encode_mask(LEFT.astype(bool)) == encode_mask(wide[:, ::2]) == encode_mask(LEFT)


# pycocotools decodes the smaller one to a wrong mask, and unites either with another for ever.
@pytest.mark.parametrize("shape", [(HEIGHT - 2, WIDTH), (HEIGHT, WIDTH + 3)])
@pytest.mark.parametrize("targets", [(0,), (0, 1)])
def test_a_mask_of_another_size_is_refused(shape: tuple[int, int], targets: tuple[int, ...]):
    record = make()
    damaged = Target(encode_mask(rectangle(slice(0, 2), slice(1, 3), shape)), "car")
    record = dataclasses.replace(record, targets=(damaged, record.targets[1]))
    with pytest.raises(SegmentationError, match=r"made/up: image 42 \(a/42.jpg\): target 0: .*6 x"):
        record.mask(targets)


@pytest.mark.parametrize(
    ("targets", "reason"),
    [
        ((Target(b"", "car", granularity="thing"),), "42: target 0: 'thing' unknown"),
        ((Target(b"", "car"), Target(b"", "car", 2)), "42: target 1: no parent 2"),
        ((Target(b"", "car", -2),), "42: target 0: no parent -2"),
        ((Target(b"", "car", 0),), "42: target 0: no parent 0"),
    ],
)
def test_targets_that_contradict_themselves_are_not_stored(
    targets: tuple[Target, ...], reason: str
):
    with pytest.raises(ValueError, match=reason):
        to_features(make(targets=targets, expressions=()))


@pytest.mark.parametrize(
    ("expression", "reason"),
    [
        (Expression("e", "a", (0,), "huge"), "e: granularity 'huge' unknown"),
        (Expression("e", "a", (), "none", form="colour"), "e: form 'colour' unknown"),
        (Expression("e", "a", (2,), "object"), "e: targets .* of 2"),
        (Expression("e", "a", (-1,), "object"), "e: targets .* of 2"),
    ],
)
def test_expressions_that_point_nowhere_are_not_stored(expression: Expression, reason: str):
    with pytest.raises(ValueError, match=reason):
        to_features(make(expressions=(expression,)))
