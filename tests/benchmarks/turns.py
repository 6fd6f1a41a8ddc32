"""Times two or more pieces of work in turns, so that disturbances affect all of them."""

import statistics
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

#: Seconds between two pieces of work: idle threads of the previous one spin before they sleep.
REST = 0.3


def clocked(work: Callable[[], Any]) -> float:
    """Seconds of one call."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def cpu_seconds(work: Callable[[], Any]) -> float:
    """CPU seconds of one call, over all threads; other work on the machine hardly affects them."""
    start = time.process_time()
    work()
    return time.process_time() - start


def take_turns(works: Mapping[str, Callable[[], float]], rounds: int) -> dict[str, list[float]]:
    """Work -> the seconds that it returned in each round; the order alternates between rounds."""
    seconds: dict[str, list[float]] = {name: [] for name in works}
    for number in range(rounds):
        for name in list(works)[:: 1 if number % 2 else -1]:
            time.sleep(REST)
            seconds[name].append(works[name]())
    return seconds


def ratios(above: Sequence[float], below: Sequence[float]) -> list[float]:
    """Quotients of two lists, round by round."""
    return [a / b for a, b in zip(above, below, strict=True)]


def spread(values: Iterable[float], form: str = ".3f") -> str:
    """Text with median, minimum and maximum."""
    ordered = sorted(values)
    middle, least, most = statistics.median(ordered), ordered[0], ordered[-1]
    return f"{middle:{form}}  ({least:{form}} .. {most:{form}})"
