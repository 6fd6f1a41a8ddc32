"""Times the same work on two sides, ours and torch's, each in its own process; they take turns.

In one process the sides would share an allocator, which nobody does in practice: our step of ReLA at 480
then took almost 1.5 times as long as in its own process, torch's did not (one run each).
"""

import contextlib
import multiprocessing
import time
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from typing import Any, NamedTuple

import numpy as np

from tests.benchmarks.turns import REST, clocked, ratios, spread

ROUNDS = 5
#: Calls before timing: they compile, and make torch's first allocations.
WARM_UP = 2
#: Number of losses that must be equal; later ones differ by the rounding of more updates.
COMPARED = 3

Run = Callable[[], Any]
#: Side -> numbers.
Numbers = list[list[float]]


class Row(NamedTuple):
    """One row of the table: the same work on both sides.

    Both return the loss if it has to be equal. Both processes make the rows of both sides, so anything
    that only one side needs is made in its first call.
    """

    name: str
    ours: Run
    theirs: Run


#: Makes the rows one after the other, so that the arrays of one are freed before the next is made.
Rows = Callable[[], Iterator[Row]]


def report(rows: Rows) -> None:
    """Prints both sides' seconds and their ratio, torch's / ours: median, least and greatest.

    In each round, a side makes two calls in succession. The second one counts, because in training steps
    follow one another. The ratio of the first calls, which come right after the other side's turn, is
    printed last.

    Args:
        rows: makes the rows; picklable. It is called in both processes, each of which runs one side.
    """
    print(f"{'':13} {'JAX':>8} {'torch':>9}   ratio (least .. most)   of first calls")
    with _side(rows, "ours") as ours, _side(rows, "theirs") as theirs:
        while name := ours.recv():
            assert theirs.recv() == name
            first, second, losses = _take_turns([ours, theirs])
            _check(*losses)
            shown = (f"{sorted(x)[len(x) // 2]:8.3f}s" for x in second)
            found = (spread(ratios(*seconds[::-1]), ".2f") for seconds in (second, first))
            print(name.ljust(13), *shown, *found, sep="  ", flush=True)
            for side in (ours, theirs):
                side.send(False)
        assert not theirs.recv()


def _take_turns(sides: list[Connection]) -> tuple[Numbers, Numbers, Numbers]:
    """For each side: seconds of the first and of the second calls of all rounds, and all losses.

    The sides take turns in beginning.
    """
    first, second, losses = ([[] for _ in sides] for _ in range(3))

    def ask(number: int) -> float:
        sides[number].send(True)
        taken, found = sides[number].recv()
        losses[number].extend(found)
        return taken

    for number in range(len(sides)):
        for _ in range(WARM_UP):
            ask(number)
    for turn in range(ROUNDS):
        for number in (0, 1) if turn % 2 else (1, 0):
            # Idle OpenMP threads spin for a moment before they sleep.
            time.sleep(REST)
            # The first call is kept apart: in our step of ReLA its page faults took three times as long
            # (on a virtual machine; the reason is not known).
            first[number].append(ask(number))
            second[number].append(ask(number))
    return first, second, losses


def _check(ours: list[float], theirs: list[float]) -> None:
    """Checks that both sides do the same work: the losses before and after the first updates agree."""
    np.testing.assert_allclose(ours[:COMPARED], theirs[:COMPARED], rtol=1e-4)


@contextlib.contextmanager
def _side(rows: Rows, name: str) -> Iterator[Connection]:
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    process = context.Process(target=_serve, args=(rows, name, there), daemon=True)
    process.start()
    # With this end closed here, `recv` fails as soon as the process ends.
    there.close()
    try:
        yield here
    finally:
        process.terminate()
        process.join()


def _serve(rows: Rows, side: str, asked: Connection) -> None:
    """Sends each row's name, then runs its work whenever asked, until told to go to the next row."""
    for row in rows():
        work, losses = getattr(row, side), []

        # The result is dropped at once: if it lived on, the next call would use other memory.
        def call(work: Run = work, losses: list[float] = losses) -> None:
            if isinstance(loss := work(), float):
                losses.append(loss)

        asked.send(row.name)
        while asked.recv():
            taken = clocked(call)
            asked.send((taken, losses))
            losses.clear()
        # Frees the arrays before those of the next row are made.
        del row, work, call
    asked.send("")
