"""Work in processes: results in order, and an end even where a worker hangs."""

import contextlib
import multiprocessing
import signal
import time
from collections.abc import Iterator
from concurrent.futures.process import BrokenProcessPool
from types import FrameType

import pytest

from input_pipeline.building.processes import ordered_map


class Ended(Exception):
    """A signal has ended the test's wait."""


def hang_at_three(number: int) -> int:
    if number == 3:
        time.sleep(600)
    return number * number


def die_at_three(number: int) -> int:
    if number == 3:
        signal.raise_signal(signal.SIGKILL)
    return number * number


@contextlib.contextmanager
def signalled_after(seconds: float) -> Iterator[None]:
    """SIGALRM raises `Ended`, as the commands' SIGTERM raises `Terminated`."""

    def leave(number: int, frame: FrameType | None) -> None:
        raise Ended

    before = signal.signal(signal.SIGALRM, leave)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def test_a_signal_ends_the_wait_for_a_worker_that_hangs():
    before = set(multiprocessing.active_children())
    found = []
    with contextlib.closing(ordered_map(hang_at_three, range(20), 2)) as stream:
        found += [next(stream) for _ in range(3)]  # Both workers have started.
        with pytest.raises(Ended), signalled_after(1.0):
            found += list(stream)
    assert found == [0, 1, 4]
    deadline = time.monotonic() + 20
    while set(multiprocessing.active_children()) - before and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not set(multiprocessing.active_children()) - before
    assert time.monotonic() < deadline


def test_a_reader_that_stops_leaves_no_worker():
    before = set(multiprocessing.active_children())
    stream = ordered_map(hang_at_three, range(20), 2)
    assert next(stream) == 0
    stream.close()
    assert not set(multiprocessing.active_children()) - before


def test_a_worker_that_dies_breaks_the_pool():
    with pytest.raises(BrokenProcessPool):
        list(ordered_map(die_at_three, range(20), 2))


def test_results_are_in_order():
    assert list(ordered_map(abs, range(-30, 0), 3)) == list(range(30, 0, -1))
    assert list(ordered_map(abs, range(-5, 0), 0)) == [5, 4, 3, 2, 1]
