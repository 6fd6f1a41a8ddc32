"""Maps a function over items in several processes, with the results in order."""

import collections
import concurrent.futures
import itertools
import multiprocessing
from collections.abc import Callable, Generator, Iterable
from typing import Any, TypeVar

from input_pipeline.workers import end_with_parent

A = TypeVar("A")
B = TypeVar("B")


#: The function of this worker process; `None` in other processes.
_function: Callable[[Any], Any] | None = None


def ordered_map(
    function: Callable[[A], B], items: Iterable[A], workers: int, together: int = 1
) -> Generator[B, None, None]:
    """`map` over processes, at most 4 chunks per worker ahead of the reader.

    Args:
        function: maps an item to its result; picklable.
        items: the items; picklable.
        workers: number of processes; 0 computes in this process.
        together: number of consecutive items that one process maps, a chunk.

    Yields:
        The results, in the order of the items. If the reader stops, by an error or a signal, the
        workers are killed.

    Raises:
        concurrent.futures.process.BrokenProcessPool: a worker died.
    """
    if not workers:
        yield from map(function, items)
        return
    # Each worker receives the function once, not with each item, so that files it opens stay open.
    # Workers are spawned because forking a process that has threads (JAX's) may deadlock.
    context = multiprocessing.get_context("spawn")
    others = set(multiprocessing.active_children())
    with concurrent.futures.ProcessPoolExecutor(
        workers, mp_context=context, initializer=_begin, initargs=(function,)
    ) as pool:
        rest = iter(items)
        chunks = iter(lambda: list(itertools.islice(rest, together)), [])
        pending = collections.deque(
            pool.submit(_run, chunk) for chunk in itertools.islice(chunks, 4 * workers)
        )
        try:
            while pending:
                results = pending.popleft().result()
                pending.extend(pool.submit(_run, chunk) for chunk in itertools.islice(chunks, 1))
                yield from results
        except BaseException:
            # The pool would wait for the items in work, for ever if a file system does not answer.
            for worker in set(multiprocessing.active_children()) - others:
                worker.kill()
            raise


def _begin(function: Callable[[Any], Any]) -> None:
    global _function
    end_with_parent()
    _function = function


def _run(chunk: list[Any]) -> list[Any]:
    assert _function is not None
    return [_function(item) for item in chunk]
