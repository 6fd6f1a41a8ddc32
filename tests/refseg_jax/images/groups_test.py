"""Rows of groups: every image counts once, whatever the order in which it is given."""

import numpy as np
import pytest

from refseg_jax.images.groups import group_rows


@pytest.mark.parametrize("size", [1, 2, 3, 8])
@pytest.mark.parametrize("count", [1, 2, 3, 7, 8, 9, 16, 17])
def test_every_image_counts_once_and_every_row_is_full(count: int, size: int) -> None:
    names = [f"{number:02d}" for number in range(count)]
    rows = group_rows(names, size)
    counted = [i for row in rows for i, own in zip(row.images, row.counted, strict=True) if own]
    assert counted == list(range(count))
    assert len(rows) == -(-count // size)
    for row in rows:
        assert len(row.images) == size and any(row.counted)
        assert list(row.images) == sorted(row.images)
        times = np.bincount(row.images, minlength=count)
        # Nobody speaks twice in a large group, and in a small one all as often.
        used = times[times > 0]
        assert used.max() - used.min() <= 1
        assert count < size or used.max() == 1
        assert count >= size or len(used) == count


@pytest.mark.parametrize(("count", "size"), [(5, 8), (8, 8), (11, 4)])
def test_rows_do_not_depend_on_the_order_in_which_images_are_given(count: int, size: int) -> None:
    names = [f"{number}.jpg" for number in np.random.default_rng(0).permutation(count)]
    expected = [
        (tuple(sorted(names)[i] for i in row.images), row.counted)
        for row in group_rows(sorted(names), size)
    ]
    found = [(tuple(names[i] for i in row.images), row.counted) for row in group_rows(names, size)]
    assert found == expected


def test_the_last_row_has_the_last_images() -> None:
    first, second = group_rows(list("abcde"), 3)
    assert first == ((0, 1, 2), (True,) * 3)
    assert second == ((2, 3, 4), (False, True, True))


def test_a_small_group_is_repeated() -> None:
    (row,) = group_rows(["b", "a", "c"], 8)
    assert row.images == (1, 1, 1, 0, 0, 0, 2, 2)
    assert row.counted == (True, False, False, True, False, False, True, False)


def test_nothing_has_no_rows_and_rows_of_nothing_are_refused() -> None:
    assert group_rows([], 4) == []
    with pytest.raises(ValueError, match="rows of 0 images"):
        group_rows(["a"], 0)
