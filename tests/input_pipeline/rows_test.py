import dataclasses
from typing import Any

import numpy as np
import pytest

from input_pipeline.rows import RowTable, make_rows
from input_pipeline.sources import ExpressionTable
from refseg_jax.batch import GRANULARITIES

#: (record, position, referent, granularity, group) of every expression; record 2 has parts alone.
TABLE = [
    (0, 0, 5, "object", -1),
    (0, 1, 3, "object", 0),
    (0, 2, 5, "object", -1),
    (0, 3, 9, "part", -1),
    (0, 4, 3, "multi", -1),
    (1, 0, 5, "object", 0),
    (2, 0, 0, "part", 1),
    (3, 0, 0, "object", 1),
    (3, 1, 1, "object", 0),
]


def table() -> ExpressionTable:
    record, position, referent, names, group = map(np.array, zip(*TABLE, strict=True))
    granularity = np.array([GRANULARITIES.index(name) for name in names], np.int8)
    largest = np.array([9, 9], np.int32)
    images, files = np.array([b"a", b"b", b"c", b"d"]), np.array([b"1", b"2", b"3", b"4"])
    text, present = np.zeros_like(group), np.ones(len(group), bool)
    columns = (record, position, referent, granularity, group, text, present)
    return ExpressionTable(*columns, largest, images, files)


def slices(rows: RowTable) -> list[list[tuple[int, int]]]:
    """(record, position) of every row."""
    found = [rows.entries(row) for row in range(len(rows))]
    return [[(int(r), int(p)) for r, p in zip(*entries, strict=True)] for entries in found]


def make(sampling: Any, *granularities: str, pairs: int = 8, images: int = 1) -> Any:
    return slices(make_rows(table(), sampling, granularities, pairs=pairs, images=images))


def test_a_row_is_an_image_with_all_its_candidates():
    assert make("image", "object", pairs=1) == [
        [(0, 0), (0, 1), (0, 2)],
        [(1, 0)],
        [(3, 0), (3, 1)],
    ]


def test_a_row_is_a_referent_with_its_sentences():
    assert make("referent", "object") == [[(0, 1)], [(0, 0), (0, 2)], [(1, 0)], [(3, 0)], [(3, 1)]]


def test_an_evaluated_row_holds_at_most_the_pairs_of_one_image():
    assert make("expressions", "object", "part", "multi", pairs=2) == [
        [(0, 0), (0, 1)],
        [(0, 2), (0, 3)],
        [(0, 4)],
        [(1, 0)],
        [(2, 0)],
        [(3, 0), (3, 1)],
    ]


@pytest.mark.parametrize("pairs", [1, 2, 3, 4, 5, 6])
def test_every_expression_is_evaluated_exactly_once(pairs: int):
    rows = make("expressions", *GRANULARITIES, pairs=pairs)
    assert sorted(entry for row in rows for entry in row) == [line[:2] for line in TABLE]
    assert max(map(len, rows)) <= pairs
    assert all(len({record for record, _ in row}) == 1 for row in rows)


def test_a_row_is_a_group_cut_to_the_number_of_images():
    every = ("object", "part")
    # The last row of the first group has its second image again.
    assert make("group", *every, images=2) == [[(0, 1), (1, 0)], [(1, 0), (3, 1)], [(2, 0), (3, 0)]]
    assert make("group", *every, images=8) == [[(0, 1), (1, 0), (3, 1)], [(2, 0), (3, 0)]]


def test_images_of_a_group_lie_in_the_order_of_their_files_and_of_one_name_in_that_of_their_ids():
    images, files = np.array([b"d", b"a", b"c", b"b"]), np.array([b"2", b"10", b"1", b"2"])
    named = dataclasses.replace(table(), image=images, name=files)
    rows = make_rows(named, "group", ("object", "part"), pairs=1, images=2)
    assert slices(rows) == [[(1, 0), (3, 1)], [(3, 1), (0, 1)], [(2, 0), (3, 0)]]
    assert rows.reused.tolist() == [0, 1, 0]


def test_granularities_choose_the_expressions():
    assert make("image", "part") == [[(0, 3)], [(2, 0)]]
    assert make("image", "salient") == []
    assert make("expressions", "salient") == []


def test_the_order_of_the_table_does_not_matter():
    whole = table()
    order = np.random.default_rng(0).permutation(len(whole))
    mixed = whole.select(order)
    for sampling in ("image", "referent", "expressions", "group"):
        rows = make_rows(mixed, sampling, ("object",), pairs=2, images=2)
        assert slices(rows) == make(sampling, "object", pairs=2, images=2)


def test_unknown_names_are_refused():
    with pytest.raises(ValueError, match=r"sampling.*imagee"):
        make("imagee", "object")
    with pytest.raises(ValueError, match=r"granularity.*objects"):
        make("image", "objects")
