"""The same work on two sides, ours and torch's, each in a process of its own; they take turns.

Nobody runs both in one process, where they share an allocator: there our step of ReLA at 480 took
almost half as long again as in a process of its own, and torch's did not (a run each).
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
#: Compilation, and torch's first allocations.
WARM_UP = 2
#: Losses that have to be the same; later ones differ by the rounding of more updates.
COMPARED = 3

Run = Callable[[], Any]
#: Of each side.
Numbers = list[list[float]]


class Row(NamedTuple):
    """One line of the table: the same work on both sides.

    Both give back the loss if it has to be the same. What only one side needs is made in its first
    call: both processes have the rows of both.
    """

    name: str
    ours: Run
    theirs: Run


#: Makes what the rows need, one row after the other, so that its arrays are gone before the next's.
Rows = Callable[[], Iterator[Row]]


def report(rows: Rows) -> None:
    """Prints a table of both sides' seconds and their ratio, torch's / ours: median, least and most.

    In a round each side makes two calls, one right after the other. The second is what counts, for in
    training a step follows a step; the ratio of the first ones, each right after the other side's
    turn, is printed last.

    Args:
        rows: can be pickled; called in both processes, in each of which one side is run.
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
    """Seconds of the first and second calls of every round on each side, and the losses of all calls.

    Who begins alternates.
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
            # The page faults of our step of ReLA took three times as long in the first call (seen on
            # a virtual machine; why was not shown).
            first[number].append(ask(number))
            second[number].append(ask(number))
    return first, second, losses


def _check(ours: list[float], theirs: list[float]) -> None:
    """The same work: equal parameters have an equal loss, and the first updates do alike."""
    np.testing.assert_allclose(ours[:COMPARED], theirs[:COMPARED], rtol=1e-4)


@contextlib.contextmanager
def _side(rows: Rows, name: str) -> Iterator[Connection]:
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    process = context.Process(target=_serve, args=(rows, name, there), daemon=True)
    process.start()
    # The end of the process ends `recv` here.
    there.close()
    try:
        yield here
    finally:
        process.terminate()
        process.join()


def _serve(rows: Rows, side: str, asked: Connection) -> None:
    """Says each row's name, then works whenever it is asked to, until it is told to go on."""
    for row in rows():
        work, losses = getattr(row, side), []

        # A result that lived on would make the next call take other memory.
        def call(work: Run = work, losses: list[float] = losses) -> None:
            if isinstance(loss := work(), float):
                losses.append(loss)

        asked.send(row.name)
        while asked.recv():
            taken = clocked(call)
            asked.send((taken, losses))
            losses.clear()
        # Before the next row's arrays are made.
        del row, work, call
    asked.send("")
