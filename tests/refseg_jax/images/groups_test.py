"""Rows of groups: every image is answered once, whatever the order in which it is given."""

import numpy as np
import pytest

from refseg_jax.images.groups import group_rows


@pytest.mark.parametrize("size", [1, 2, 3, 8])
@pytest.mark.parametrize("count", [1, 2, 3, 7, 8, 9, 16, 17])
def test_every_image_is_answered_once_in_a_full_row(count: int, size: int) -> None:
    rows = group_rows([f"{number:02d}" for number in range(count)], size)
    answered = [image for row in rows for image in row.images[row.reused :]]
    assert answered == list(range(count))
    assert len(rows) == -(-count // size)
    for row in rows:
        assert len(row.images) == min(size, count)
        assert list(row.images) == sorted(set(row.images))


@pytest.mark.parametrize(("count", "size"), [(5, 8), (8, 8), (11, 4)])
def test_rows_do_not_depend_on_the_order_in_which_images_are_given(count: int, size: int) -> None:
    names = [f"{number}.jpg" for number in np.random.default_rng(0).permutation(count)]
    expected = [
        (tuple(sorted(names)[i] for i in row.images), row.reused)
        for row in group_rows(sorted(names), size)
    ]
    found = [(tuple(names[i] for i in row.images), row.reused) for row in group_rows(names, size)]
    assert found == expected


def test_the_last_row_has_the_last_images() -> None:
    assert group_rows(list("abcde"), 3) == [((0, 1, 2), 0), ((2, 3, 4), 1)]


def test_a_small_group_is_one_short_row() -> None:
    assert group_rows(["b", "a", "c"], 8) == [((1, 0, 2), 0)]


def test_nothing_has_no_rows_and_rows_of_nothing_are_refused() -> None:
    assert group_rows([], 4) == []
    with pytest.raises(ValueError, match="rows of 0 images"):
        group_rows(["a"], 0)
