import dataclasses
from pathlib import Path

import numpy as np
import pytest

from input_pipeline.oracle import oracle_kind, oracle_scores
from input_pipeline.schema import Expression, Record, Target, encode_mask
from input_pipeline.sources import RecordSource
from tests.input_pipeline.tiny_dataset import build_tiny_dataset


def row(first: int, last: int) -> bytes:
    """A mask of pixels `first..last - 1` of an image of 1 x 12 pixels."""
    mask = np.zeros((1, 12), np.uint8)
    mask[0, first:last] = 1
    return encode_mask(mask)


#: Two cars of 6 and 2 pixels, a dog of 3, a wheel on either car and one on the dog's cart.
RECORD = Record(
    image=b"",
    image_id="1",
    file_name="1.png",
    height=1,
    width=12,
    source="made",
    targets=(
        Target(row(0, 6), "car"),
        Target(row(6, 8), "car"),
        Target(row(9, 12), "dog"),
        Target(row(0, 1), "wheel", 0, "part"),
        Target(row(6, 7), "wheel", 1, "part"),
        Target(row(9, 10), "wheel", 2, "part"),
    ),
    expressions=(),
)


@pytest.mark.parametrize(
    ("targets", "score"),
    [
        # All cars are 8 pixels: 6 / 8 of them against (1 + 0) / 2 by chance.
        ((0,), 6 / 8),
        # 2 / 8 against (0 + 1) / 2.
        ((1,), 1 / 2),
        ((2,), 1.0),
        # The wheels of cars are a kind of their own: 1 / 2 both ways.
        ((3,), 1 / 2),
        ((5,), 1.0),
        ((0, 1), 1.0),
        # Cars and dogs are 11 pixels: 9 / 11 against (6 / 9 + 0 + 3 / 9) / 3.
        ((0, 2), 9 / 11),
    ],
)
def test_the_oracle_on_cases_computed_by_hand(targets: tuple[int, ...], score: float):
    expression = Expression("e", "it", targets, "object")
    assert oracle_kind(RECORD, expression) == pytest.approx(score)


def test_overlapping_instances_are_united():
    # Cars at 0..5 and 4..7: together 8 pixels, each other's IoU is 2 / 8.
    targets = (RECORD.targets[0], Target(row(4, 8), "car"))
    record = dataclasses.replace(RECORD, targets=targets)
    assert oracle_kind(record, Expression("e", "it", (0,), "object")) == pytest.approx(6 / 8)
    assert oracle_kind(record, Expression("e", "it", (1,), "object")) == pytest.approx(
        (1 + 1 / 4) / 2
    )


def test_scores_are_means_by_granularity_without_no_target_expressions(tmp_path: Path):
    def turned(record: Record) -> Record:
        return dataclasses.replace(record, expressions=record.expressions[::-1])

    build_tiny_dataset(tmp_path, {"val": 3}, change=turned)
    source = RecordSource(str(tmp_path), "tiny", "val")
    scores = oracle_scores(source, ("object", "part", "multi", "none", "salient"))
    assert list(scores) == ["object/mIoU", "part/mIoU", "multi/mIoU"], "in the tables' order"
    assert scores["part/mIoU"] == scores["multi/mIoU"] == 1.0, "the only lid, all the boxes"
    assert scores["object/mIoU"] == pytest.approx(0.5), "two boxes as large as each other"
