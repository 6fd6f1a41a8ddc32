"""The search for the largest batch, on memories that grow in several ways."""

import pytest

from tools.compile.search import MOST, Tried, largest_batch

GIB = 2.0**30


def _search(needed, *, start, unit, memory=16 * GIB, tells=True):
    def attempt(rows):
        assert rows > 0
        assert rows % unit == 0
        size = needed(rows)
        return Tried(size <= memory, size if tells else None, memory if tells else None)

    return largest_batch(attempt, start=start, unit=unit, memory=memory)


@pytest.mark.parametrize("start", [8, 64, 512, 8192])
@pytest.mark.parametrize("unit", [1, 8, 32])
@pytest.mark.parametrize("row", [0.01, 0.3, 1.0])
@pytest.mark.parametrize("state", [0.5, 6.0])
def test_what_grows_by_the_row_is_found(start, unit, row, state):
    start = max(unit, start // unit * unit)
    # A device has the rows of a unit once.
    needed = lambda rows: (state + row * rows / unit) * GIB  # noqa: E731
    most, tried = _search(needed, start=start, unit=unit)
    best = int((16 - state) / row) * unit
    assert len(tried) <= MOST
    assert tried[most].fits
    assert 0.94 * best - unit <= most <= best


@pytest.mark.parametrize("tells", [True, False])
@pytest.mark.parametrize("start", [8, 400])
def test_what_bends_is_verified(start, tells):
    # As the compiler recomputes more, the nearer the memory is to full.
    needed = lambda rows: (2 + min(0.2 * rows, 10 + 0.02 * rows)) * GIB  # noqa: E731
    most, tried = _search(needed, start=start, unit=8, tells=tells)
    assert len(tried) <= MOST
    assert tried[most].fits
    assert most >= 100


def test_where_nothing_fits_the_smallest_batch_was_tried():
    most, tried = _search(lambda rows: (17 + rows) * GIB, start=64, unit=8)
    assert most == 0
    assert min(tried) == 8
    assert not any(one.fits for one in tried.values())


def test_it_ends_once_the_next_batch_is_known_not_to_fit():
    most, tried = _search(lambda rows: rows * GIB, start=16, unit=16)
    assert most == 16
    assert list(tried) == [16, 32]
