"""Masks of Label Studio's brush."""

import numpy as np
import pytest

from input_pipeline.formats.exchange.brush import BrushError, decode_brush
from tests.input_pipeline.formats.exchange.exports import brush


@pytest.mark.parametrize("lists", [False, True])
@pytest.mark.parametrize("sizes", [(3, 4, 8, 16), (1, 2, 5, 7)])
def test_runs_and_lists_of_every_length_are_read(sizes: tuple[int, ...], lists: bool) -> None:
    rng = np.random.default_rng(0)
    # The largest has runs of more than 2^16 values.
    for height, width, shares in ((1, 1, (0, 1)), (30, 20, (0.1, 0.5)), (300, 260, (0, 1e-4, 1))):
        for share in shares:
            mask = rng.random((height, width)) < share
            assert (decode_brush(brush(mask, sizes, lists), height, width) == mask).all()


def test_a_stream_that_was_written_by_hand_is_read() -> None:
    """One pixel, 4 words of 8 bits: a list of 3 (sizes of 3 bits), then a run of 1."""
    bits = f"{4:032b}{7:05b}" + "0010" * 4
    bits += "000010" + f"{1:08b}{2:08b}{3:08b}" + "100000" + f"{128:08b}"
    bits += "0" * (-len(bits) % 8)
    packed = [int(bits[i : i + 8], 2) for i in range(0, len(bits), 8)]
    assert decode_brush(packed, 1, 1).tolist() == [[True]]


@pytest.mark.parametrize(
    ("packed", "message"),
    [
        ("text", "no list of bytes"),
        ([1, 2, 256], "no list of bytes"),
        ([1.0], "no list of bytes"),
        ([], "cut off"),
        ([0, 0, 0], "cut off"),
        (brush(np.ones((3, 5), bool)), "has 60 values, and a picture of 4 x 3 pixels has 48"),
        (brush(np.ones((3, 4), bool))[:-1], "cut off"),
    ],
)
def test_damaged_streams_are_told(packed: object, message: str) -> None:
    with pytest.raises(BrushError, match=message):
        decode_brush(packed, 3, 4)


def test_a_run_beyond_the_picture_is_told() -> None:
    bits = f"{4:032b}{7:05b}" + "0010" * 4 + "100111" + "0" * 8
    bits += "0" * (-len(bits) % 8)
    packed = [int(bits[i : i + 8], 2) for i in range(0, len(bits), 8)]
    with pytest.raises(BrushError, match="more values than its picture"):
        decode_brush(packed, 1, 1)
