"""Two or more pieces of work that take turns, so that what disturbs one disturbs the others."""

import statistics
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

#: Between two pieces of work: idle threads of the one before spin for a moment until they sleep.
REST = 0.3


def clocked(work: Callable[[], Any]) -> float:
    """Seconds of one call."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def cpu_seconds(work: Callable[[], Any]) -> float:
    """CPU time of one call, of all threads: what else the machine does hardly shows in it."""
    start = time.process_time()
    work()
    return time.process_time() - start


def take_turns(works: Mapping[str, Callable[[], float]], rounds: int) -> dict[str, list[float]]:
    """What each work says it took, by round; every other round goes backwards."""
    seconds: dict[str, list[float]] = {name: [] for name in works}
    for number in range(rounds):
        for name in list(works)[:: 1 if number % 2 else -1]:
            time.sleep(REST)
            seconds[name].append(works[name]())
    return seconds


def ratios(above: Sequence[float], below: Sequence[float]) -> list[float]:
    """Round by round."""
    return [a / b for a, b in zip(above, below, strict=True)]


def spread(values: Iterable[float], form: str = ".3f") -> str:
    """Median, and the least and the most."""
    ordered = sorted(values)
    middle, least, most = statistics.median(ordered), ordered[0], ordered[-1]
    return f"{middle:{form}}  ({least:{form}} .. {most:{form}})"
