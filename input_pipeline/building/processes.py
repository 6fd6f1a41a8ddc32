"""Work shared out to processes, with results in order."""

import collections
import concurrent.futures
import itertools
import multiprocessing
from collections.abc import Callable, Generator, Iterable
from typing import Any, TypeVar

from input_pipeline.workers import end_with_parent

A = TypeVar("A")
B = TypeVar("B")


#: What a worker process computes.
_function: Callable[[Any], Any] | None = None


def ordered_map(
    function: Callable[[A], B], items: Iterable[A], workers: int
) -> Generator[B, None, None]:
    """`map` over processes: in order, and never more than 4 results a worker ahead of the reader.

    Args:
        function: picklable.
        items: its arguments.
        workers: processes; 0 computes in this one.

    Yields:
        The results in the order of the items.

    Raises:
        concurrent.futures.process.BrokenProcessPool: a worker died.
    """
    if not workers:
        yield from map(function, items)
        return
    # The function travels once to each worker, which keeps what it opens, and not with each item.
    # Spawned: forking a process that has threads (JAX's) may deadlock.
    context = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(
        workers, mp_context=context, initializer=_begin, initargs=(function,)
    ) as pool:
        rest = iter(items)
        pending = collections.deque(
            pool.submit(_run, item) for item in itertools.islice(rest, 4 * workers)
        )
        try:
            while pending:
                result = pending.popleft().result()
                pending.extend(pool.submit(_run, i) for i in itertools.islice(rest, 1))
                yield result
        finally:
            for future in pending:
                future.cancel()


def _begin(function: Callable[[Any], Any]) -> None:
    global _function
    end_with_parent()
    _function = function


def _run(item: Any) -> Any:
    assert _function is not None
    return _function(item)
