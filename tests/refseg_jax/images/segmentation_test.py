import math

import numpy as np
import pytest
from pycocotools import mask as coco_mask

from input_pipeline.schema import encode_mask
from refseg_jax.images.segmentation import (
    AWAY,
    LEAVES,
    EmptyRegion,
    SegmentationError,
    are_plain,
    decode_counts,
    encode_segmentation,
    misplaced,
    stated_box,
)

HEIGHT, WIDTH = 20, 30


def rectangle(x0: float, y0: float, x1: float, y1: float) -> list[float]:
    return [x0, y0, x1, y0, x1, y1, x0, y1]


def decode(counts: bytes) -> np.ndarray:
    return coco_mask.decode({"size": [HEIGHT, WIDTH], "counts": counts})


def test_overlapping_polygons_are_united():
    encoded = encode_segmentation([rectangle(2, 2, 12, 12), rectangle(8, 8, 18, 18)], HEIGHT, WIDTH)
    expected = np.zeros((HEIGHT, WIDTH), np.uint8)
    expected[2:12, 2:12] = 1
    expected[8:18, 8:18] = 1
    np.testing.assert_array_equal(decode(encoded.counts), expected)
    assert encoded.tiny == 0


def test_tiny_polygons_are_dropped_and_counted():
    parts = [[1, 1, 5, 5], rectangle(2, 2, 12, 12), [3, 3], []]
    encoded = encode_segmentation(parts, HEIGHT, WIDTH)
    assert decode(encoded.counts).sum() == 100
    assert encoded.tiny == 3


@pytest.mark.parametrize("seed", range(20))
def test_every_kind_of_rle(seed: int):
    rng = np.random.default_rng(seed)
    mask = (rng.random((HEIGHT, WIDTH)) < rng.random() ** 3).astype(np.uint8)
    mask[3, 4] = 1
    encoded = coco_mask.encode(np.asfortranarray(mask))
    size = [HEIGHT, WIDTH]
    flat = np.concatenate([[0], mask.T.ravel(), [2]])
    edges = np.flatnonzero(np.diff(flat))
    runs = np.diff(np.concatenate([[0], edges])).tolist()
    kinds = [
        {"size": size, "counts": encoded["counts"]},
        {"size": size, "counts": encoded["counts"].decode()},
        {"size": size, "counts": runs},
        [{"size": size, "counts": encoded["counts"]}],
    ]
    for kind in kinds:
        np.testing.assert_array_equal(decode(encode_segmentation(kind, HEIGHT, WIDTH).counts), mask)


def test_a_list_of_rles_is_united():
    parts = np.zeros((2, HEIGHT, WIDTH), np.uint8)
    parts[0, :10, :10] = 1
    parts[1, 5:15, 5:15] = 1
    rles = [coco_mask.encode(np.asfortranarray(part)) for part in parts]
    encoded = encode_segmentation(rles, HEIGHT, WIDTH)
    np.testing.assert_array_equal(decode(encoded.counts), parts.max(0))


@pytest.mark.parametrize(
    ("segmentation", "reason"),
    [
        ([], "no polygon has three points"),
        ([[1, 1, 5, 5]], "no polygon has three points"),
        ([[1, 1, 5, 5, 9]], "odd number"),
        ([[1, 1, 5, 5, "9", 9]], "coordinate '9'"),
        ([[1, 1, 5, 5, math.nan, 9]], "coordinate nan"),
        ([[1, 1, 5, 5, 1e12, 9]], "outside of the image"),
        ([rectangle(100, 5, 110, 15)], "covers no pixel"),
        ([5, 6], "polygon is a int"),
        (None, "is a NoneType"),
        ("abc", "is a str"),
        ({"size": [WIDTH, HEIGHT], "counts": [600]}, "size is"),
        ({"size": [HEIGHT, WIDTH], "counts": [100, 10]}, "do not fill"),
        ({"size": [HEIGHT, WIDTH], "counts": [700, -100]}, "do not fill"),
        ({"size": [HEIGHT, WIDTH], "counts": [600.0]}, "counts are a list"),
        ({"size": [HEIGHT, WIDTH], "counts": b"PPYo1"}, "do not fill"),
        ({"size": [HEIGHT, WIDTH], "counts": "o"}, "truncated"),
        ({"size": [HEIGHT, WIDTH], "counts": "☂"}, "do not fill|damaged"),
        ({"size": [HEIGHT, WIDTH], "counts": b"\x00"}, "damaged"),
        ({"size": [HEIGHT, WIDTH], "counts": b"o" * 50}, "truncated"),
        ({"size": [HEIGHT, WIDTH], "counts": b"o" * 50 + b"0"}, "damaged"),
        ({"size": [HEIGHT, WIDTH]}, "counts are a NoneType"),
        ({"counts": [600]}, "size is None"),
    ],
)
def test_malformed_segmentations(segmentation: object, reason: str):
    with pytest.raises(SegmentationError, match=reason):
        encode_segmentation(segmentation, HEIGHT, WIDTH)


@pytest.mark.parametrize("share", [0.0, 0.02, 0.5, 1.0])
def test_counts_decode_to_the_mask_that_was_encoded(share: float):
    mask = (np.random.default_rng(0).random((300, 401)) < share).astype(np.uint8)
    counts = coco_mask.encode(np.asfortranarray(mask))["counts"]
    np.testing.assert_array_equal(decode_counts(counts, 300, 401), mask)


def test_long_runs_decode_though_their_differences_are_negative_and_of_many_characters():
    mask = np.zeros((300, 401), np.uint8)
    mask[:, 2:90] = mask[7:, 200:] = 1
    counts = coco_mask.encode(np.asfortranarray(mask))["counts"]
    np.testing.assert_array_equal(decode_counts(counts, 300, 401), mask)


def test_parts_that_cover_no_pixel_are_told_apart_from_damage():
    empty = {"size": [HEIGHT, WIDTH], "counts": [600]}
    for segmentation in (empty, [empty, empty], [rectangle(100, 5, 110, 15)]):
        with pytest.raises(EmptyRegion):
            encode_segmentation(segmentation, HEIGHT, WIDTH)
    for segmentation in ([], [[1, 1, 5, 5]], {"size": [HEIGHT, WIDTH], "counts": [5]}):
        with pytest.raises(SegmentationError) as caught:
            encode_segmentation(segmentation, HEIGHT, WIDTH)
        assert not isinstance(caught.value, EmptyRegion)


def _random_counts(rng: np.random.Generator) -> tuple[bytes, int]:
    height, width = (int(n) for n in rng.integers(1, 60, 2))
    mask = rng.random((height, width)) < rng.choice([0.0, 0.02, 0.3, 0.9, 1.0])
    return encode_mask(mask), height * width


def _broken(counts: bytes, pixels: int, rng: np.random.Generator) -> tuple[bytes, int]:
    """One thing wrong, or nothing, as it happens."""
    place = int(rng.integers(len(counts)))
    letter = bytes([int(rng.integers(40, 120))])
    return [
        (counts, pixels + 1),
        (counts[:place], pixels),
        (counts[:place] + letter + counts[place + 1 :], pixels),
        (counts[:place] + letter + counts[place:], pixels),
        (counts + b"00", pixels),
        (b"", pixels),
    ][int(rng.integers(6))]


def test_many_rles_are_plain_where_each_of_them_is():
    rng = np.random.default_rng(0)
    verdicts = set()
    for _ in range(1500):
        many = [_random_counts(rng) for _ in range(int(rng.integers(1, 6)))]
        if rng.random() < 0.7:
            place = int(rng.integers(len(many)))
            many[place] = _broken(*many[place], rng)
        expected = all(_plain(*one) for one in many)
        verdicts.add(expected)
        assert are_plain([counts for counts, _ in many], [n for _, n in many]) == expected, many
    assert verdicts == {True, False}


def _plain(counts: bytes, pixels: int) -> bool:
    try:
        mask = decode_counts(counts, pixels, 1)
    except SegmentationError:
        return False
    # Another text of the same mask has empty runs, or is longer than it has to be.
    return len(_run_lengths(counts)) == len(_run_lengths(encode_mask(mask)))


def _run_lengths(counts: bytes) -> list[int]:
    """How many runs there are: characters from 80 on are followed by others of the same number."""
    return [letter for letter in counts if letter < 80]


@pytest.mark.parametrize(
    ("polygons", "box", "notes"),
    [
        ([rectangle(2, 2, 12, 12)], (), {}),
        ([rectangle(2, 2, 12, 12)], (2, 2, 10, 10), {}),
        ([rectangle(2, 2, 12, 12)], (2, 2, 10, 19.9), {}),
        ([rectangle(2, 2, 12, 12)], (2, 2, 10, 20.1), {AWAY: 1}),
        ([rectangle(2, 2, 12, 12)], (20, 12, 10, 10), {AWAY: 1}),
        ([rectangle(2, 2, 12, 12)], (2, 2, 0, 0), {AWAY: 1}),
        ([rectangle(-1, 0, 31, 21), []], (), {}),
        ([rectangle(-1.5, 0, 9, 9), rectangle(0, 0, 9, 21.5), [1, 1]], (0, 0, 9, 20), {LEAVES: 2}),
    ],
)
def test_regions_outside_of_the_image_or_away_from_their_box(
    polygons: list[list[float]], box: tuple[float, ...], notes: dict[str, int]
):
    counts = encode_segmentation(polygons, HEIGHT, WIDTH).counts
    assert misplaced(polygons, counts, box, HEIGHT, WIDTH) == notes


def test_an_rle_leaves_no_image():
    counts = encode_mask(np.eye(HEIGHT, WIDTH))
    rle = {"size": [HEIGHT, WIDTH], "counts": counts}
    for segmentation in (rle, [rle]):
        assert misplaced(segmentation, counts, (0, 0, 20, 20), HEIGHT, WIDTH) == {}
        assert misplaced(segmentation, counts, (9, 0, 20, 20), HEIGHT, WIDTH) == {AWAY: 1}


@pytest.mark.parametrize(
    ("stored", "box"),
    [
        ([1, 2.5, 3, 4], (1.0, 2.5, 3.0, 4.0)),
        *((bad, ()) for bad in (None, "1234", [1, 2, 3], [1, 2, -3, 4], [1, 2, True, 4])),
        *((bad, ()) for bad in ([1, 2, math.nan, 4], [1, 2, math.inf, 4], {}, [[1], 2, 3, 4])),
    ],
)
def test_boxes_as_annotations_state_them(stored: object, box: tuple[float, ...]):
    assert stated_box(stored) == box
