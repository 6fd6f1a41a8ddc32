import math
import pickle
from pathlib import Path

import numpy as np
import pytest
from pycocotools import mask as coco_mask

from input_pipeline.schema import encode_mask
from refseg_jax.images.segmentation import (
    EmptyRegion,
    SegmentationError,
    are_plain,
    checked_rle,
    decode_counts,
    encode_segmentation,
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
        ([[1, 1, 5, 5, 10**400, 9]], "coordinate 1000.*outside of the image"),
        ([[1, 1, 5, 5, 10**5000, 9]], "coordinate of thousands of digits"),
        ([[1, 1, 5, 5, True, 9]], "coordinate True"),
        ([None], "polygon is a NoneType"),
        ([[1, 1, 5, 5, 9, 9], {"size": [HEIGHT, WIDTH], "counts": [600]}], "polygon is a dict"),
        (None, "is a NoneType"),
        ({"size": [WIDTH, HEIGHT], "counts": [600]}, "size is"),
        ({"size": [HEIGHT, WIDTH], "counts": [100, 10]}, "do not fill"),
        ({"size": [HEIGHT, WIDTH], "counts": [700, -100]}, "do not fill"),
        ({"size": [HEIGHT, WIDTH], "counts": [10**400, 600]}, "do not fill"),
        ({"size": [HEIGHT, WIDTH], "counts": [600, None]}, "counts are a list"),
        ({"size": [10**5000, WIDTH], "counts": [600]}, "size is of thousands of digits"),
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


SQUARE = [2, 3, 12, 3, 12, 9, 2, 9]
POLYGONS = "write a list of polygons"
RLE = r'write {"size": \[height, width\]'


@pytest.mark.parametrize(
    ("segmentation", "found", "wanted"),
    [
        (SQUARE, "a flat list of numbers", POLYGONS),
        (SQUARE[:4], 'flat list of numbers .a box goes to "box"', POLYGONS),
        ([[2, 3], [12, 3], [12, 9]], "a list of points", POLYGONS),
        ([(2, 3), (12, 3), (12, 9)], "a list of points", POLYGONS),
        ([[[2, 3], [12, 3], [12, 9]]], "a polygon is a list of points", POLYGONS),
        ("[[2, 3, 12, 3, 12, 9]]", "the segmentation is a text", POLYGONS),
        (["2,3,12,3,12,9"], "a polygon is a text", POLYGONS),
        ([[str(value) for value in SQUARE]], "the coordinate '2'", POLYGONS),
        ({"points": [[2, 3]], "label": "a"}, "the fields 'points', 'label' is no RLE", POLYGONS),
        (
            {"type": "Polygon", "coordinates": [[[2, 3]]]},
            "'type', 'coordinates' is no RLE",
            "an RLE",
        ),
        ([[[[2, 3], [12, 3], [12, 9]]]], "nested more deeply than polygons", POLYGONS),
        ([[[2, 3, 12, 3, 12, 9]]], "nested more deeply than polygons", POLYGONS),
        ({"size": [HEIGHT, WIDTH], "counts": ["100", "20", "480"]}, "are a list of texts", RLE),
        ({"size": [HEIGHT, WIDTH], "counts": "b'PX2'"}, "printing bytes", 'decode."ascii"'),
        ({"size": [HEIGHT, WIDTH], "counts": 'b"PX2"'}, "printing bytes", 'decode."ascii"'),
        ({"size": [HEIGHT, WIDTH], "counts": "100 20 480"}, "numbers in a text", RLE),
        ({"size": [HEIGHT, WIDTH], "counts": "[100, 20, 480]"}, "numbers in a text", RLE),
        ({"size": [HEIGHT, WIDTH], "counts": [100.0, 20.0, 480]}, "a decimal point", RLE),
        (
            {"size": [WIDTH, HEIGHT], "counts": [600]},
            r"\[20, 30\]: it is \[width, height\]",
            RLE,
        ),
    ],
)
def test_forms_of_other_tools_are_told_with_the_form_that_is_wanted(
    segmentation: object, found: str, wanted: str
):
    with pytest.raises(SegmentationError, match=f"{found}.*; .*{wanted}") as caught:
        encode_segmentation(segmentation, HEIGHT, WIDTH)
    assert caught.value.with_cure("another cure") == str(caught.value)


def test_runs_along_the_rows_are_told_by_the_box():
    mask = np.zeros((HEIGHT, WIDTH), np.uint8)
    mask[3:9, 2:12] = 1
    box = (2, 3, 10, 6)
    size = [HEIGHT, WIDTH]
    along = coco_mask.encode(np.asfortranarray(mask))
    rows = coco_mask.encode(np.asfortranarray(mask.ravel().reshape(HEIGHT, WIDTH, order="F")))
    assert encode_segmentation(along, HEIGHT, WIDTH, box).counts == along["counts"]
    for rle in (
        {"size": size, "counts": rows["counts"]},
        [{"size": size, "counts": rows["counts"]}],
    ):
        with pytest.raises(SegmentationError, match="runs go along the rows of the image; write"):
            encode_segmentation(rle, HEIGHT, WIDTH, box)
        assert encode_segmentation(rle, HEIGHT, WIDTH)
        assert encode_segmentation(rle, HEIGHT, WIDTH, (20, 12, 4, 4))


def test_an_error_without_a_cure_of_its_own_takes_another():
    assert SegmentationError("it is wrong").with_cure("mend it") == "it is wrong; mend it"


def random_runs(mask: np.ndarray, rng: np.random.Generator) -> list[int]:
    """Run lengths of a mask, with empty runs between and within its runs."""
    flat = np.concatenate([[False], mask.T.ravel()])
    ends = np.append(np.flatnonzero(flat[1:] != flat[:-1]), mask.size)
    runs = np.diff(ends, prepend=0).tolist()
    for _ in range(int(rng.integers(0, 5))):
        place = int(rng.integers(len(runs) + 1))
        if place == len(runs):
            runs += [0]
        else:
            part = int(rng.integers(runs[place] + 1))
            runs[place : place + 1] = [part, 0, runs[place] - part]
    return runs


def random_mask(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    if rng.random() < 0.5:
        return rng.random((height, width)) < rng.choice([0.0, 0.05, 0.5, 0.95, 1.0])
    # Rows of the transposed mask: long runs, whose borders are often those of another mask.
    return np.repeat(rng.random((1, width)) < 0.4, height, 0)


def test_unions_of_rles_with_empty_runs_equal_those_of_numpy():
    rng = np.random.default_rng(0)
    for _ in range(3000):
        height, width = (int(n) for n in rng.integers(1, 9, 2))
        masks = [random_mask(rng, height, width) for _ in range(int(rng.integers(1, 4)))]
        size = [height, width]
        rles: list[dict[str, object]] = []
        for mask in masks:
            runs = random_runs(mask, rng)
            text = compressed(runs) if rng.random() < 0.5 else None
            rles.append({"size": size, "counts": text or runs})
        union = np.logical_or.reduce(masks)
        if not union.any():
            with pytest.raises(EmptyRegion):
                encode_segmentation(rles, height, width)
            continue
        counts = encode_segmentation(rles, height, width).counts
        np.testing.assert_array_equal(decode_counts(counts, height, width), union)
        assert are_plain([counts], [union.size])
        assert counts == encode_mask(union)


def compressed(runs: list[int]) -> str:
    """COCO's compressed text of run lengths, with empty runs and all, which pycocotools writes, too."""
    text = ""
    for place, run in enumerate(runs):
        value = run - runs[place - 2] if place > 2 else run
        more = True
        while more:
            digit, value = value & 31, value >> 5
            more = value != (-1 if digit & 16 else 0)
            text += chr(48 + (digit | 32 * more))
    return text


def test_an_rle_without_empty_runs_keeps_its_text_and_one_with_them_its_box():
    rng = np.random.default_rng(1)
    for _ in range(300):
        height, width = (int(n) for n in rng.integers(1, 9, 2))
        mask = random_mask(rng, height, width)
        size, runs = [height, width], random_runs(mask, rng)
        checked = checked_rle({"size": size, "counts": runs}, height, width)
        assert checked["counts"] == encode_mask(mask)
        same = checked_rle({"size": size, "counts": checked["counts"]}, height, width)
        assert same["counts"] is checked["counts"]
        plain = {"size": size, "counts": encode_mask(mask)}
        np.testing.assert_array_equal(coco_mask.toBbox(checked), coco_mask.toBbox(plain))


@pytest.mark.parametrize("name", ["segm-06aa501a", "segm-0907c288"])
def test_the_unions_that_did_not_fill_their_image(name: str, shared_data: Path):
    rles = pickle.loads((shared_data / "damaged_files" / name).read_bytes())
    height, width = rles[0]["size"]
    masks = []
    for rle in rles:
        values = np.repeat(np.arange(len(rle["counts"])) % 2, rle["counts"])
        masks.append(values.reshape(width, height).T)
    counts = encode_segmentation(rles, height, width).counts
    np.testing.assert_array_equal(decode_counts(counts, height, width), np.maximum(*masks))


def test_an_integer_beyond_floats(shared_data: Path):
    polygons = pickle.loads((shared_data / "damaged_files" / "segm-79e0a55c").read_bytes())
    with pytest.raises(SegmentationError, match=r"odd number|coordinate"):
        encode_segmentation(polygons, 48, 64)
    with pytest.raises(SegmentationError, match="outside of the image"):
        encode_segmentation([[*polygons[0][:2], 3, 4, 5, 6]], 48, 64)


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
