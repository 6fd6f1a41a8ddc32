"""Worker processes: chooses their number, ends them with their parent, and waits for their batches.

grain waits without an end, and deaf to signals, for a worker that hangs (a file system that does not
answer, a decoder in an endless loop), and tells of one that died by a traceback. `Batches` ends each
wait.
"""

import contextlib
import math
import multiprocessing
import os
import re
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterable
from multiprocessing import resource_tracker
from typing import Any, NoReturn

from refseg_jax.batch import HostBatch, Interrupted
from refseg_jax.errors import UserError

#: Beginning of the names of grain's worker processes.
_WORKER = "grain-process-prefetch"
#: Name of the thread that waits for a batch.
_FETCH = "next batch"
#: Seconds between two looks at a batch that is not there yet.
_LOOK = 0.2
#: Seconds in which grain tells of a worker that died. After them, a batch that the worker was just
#: writing is awaited for ever.
_TOLD = 10.0


class PipelineError(UserError):
    """The input pipeline gives no more batches."""


def end_with_parent(*_: int) -> None:
    """Makes this worker process end as soon as its parent is gone, even if the parent was killed.

    Otherwise a worker that waits for room in its queue would wait for ever and keep its memory.

    The worker also moves to a process group of its own. A terminal or `timeout` signals the parent's
    whole group, but the parent saves first and still needs its workers. A signal that arrives before
    this call, while a new worker imports its modules, still ends the worker.

    The arguments, the worker's index and the number of workers, come from grain and are ignored.
    """
    parent = multiprocessing.parent_process()
    if parent is None:
        return
    os.setpgrp()

    def watch() -> None:
        # Returns when the parent, or the system after its death, closes the pipe that it alone holds.
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, name="end_with_parent", daemon=True).start()


def start_tracker() -> None:
    """Starts the process of Python that frees shared memory at the end, without its warning.

    It would count batches that a run which ended did not use any more. No effect if it runs already.
    """
    option = "ignore:resource_tracker"
    sys.warnoptions.append(option)
    try:
        resource_tracker.ensure_running()
    finally:
        sys.warnoptions.remove(option)


def evaluation_workers(asked: int, batches: int) -> int:
    """Number of processes that prepare the batches of an evaluation.

    They start anew for each evaluation, so a process without a core or a batch of its own is not worth
    its start. Training always uses the number that was asked for, because its checkpoints fit only
    that number.

    Args:
        asked: `PipelineConfig.num_workers`.
        batches: number of batches of this process.
    """
    return min(asked, usable_cores(), batches)


def usable_cores() -> int:
    """Number of cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


class Batches:
    """Batches of a grain dataset in order; no wait for one is without an end.

    An iterator whose position can be stored. The position counts batches that were returned: one that
    is still awaited when `Interrupted` is raised comes first again.
    """

    def __init__(
        self,
        dataset: Iterable[HostBatch],
        *,
        max_wait: float = math.inf,
        stop: Callable[[], bool] = lambda: False,
    ) -> None:
        """Begins at the first batch; workers start when it is asked for.

        Args:
            dataset: a grain `IterDataset` of batches.
            max_wait: seconds after which the wait for a batch ends with an error.
            stop: whether to give up waiting, e.g. because of SIGTERM; asked while a batch is awaited.
        """
        self._dataset = dataset
        self._batches: Any = iter(dataset)
        self._max_wait, self._stop = max_wait, stop
        self._others = {worker.pid for worker in _workers()}
        self._seen: dict[int | None, Any] = {}
        self._fetch: _Fetch | None = None
        #: Position before the batch that is awaited; `None` before the first.
        self._before: Any = None
        self._begun = False

    def __iter__(self) -> "Batches":
        return self

    def __next__(self) -> HostBatch:
        """The next batch.

        Raises:
            Interrupted: `stop()` is true, and the batch is not ready.
            PipelineError: a worker died, or no batch came within `max_wait` seconds.
        """
        if self._fetch is None:
            self._before = self._batches.get_state() if self._begun else self._before
            self._fetch = _Fetch(self._batches)
            self._fetch.start()
        self._wait(self._fetch)
        fetch, self._fetch = self._fetch, None
        if fetch.error is not None:
            told = _told(fetch.error)
            if isinstance(told, PipelineError):
                self.close()
            raise told from None
        if fetch.batch is None:
            raise StopIteration
        self._begun = True
        return fetch.batch

    def get_state(self) -> Any:
        """The position, as JSON."""
        if self._fetch is None:
            return self._batches.get_state()
        # Not that of the iterator, which may move on at any moment.
        return _first_state(self._dataset) if self._before is None else self._before

    def set_state(self, state: Any) -> None:
        """Moves to a position from `get_state`, before any batch is awaited."""
        assert self._fetch is None, "a batch is awaited"
        self._batches.set_state(state)
        self._before, self._begun = state, False

    def close(self) -> None:
        """Ends the workers; there are no more batches."""
        self._batches.close()

    def _wait(self, fetch: "_Fetch") -> None:
        waited, looked = 0.0, time.monotonic()
        fetch.join(_LOOK)
        while fetch.is_alive():
            now = time.monotonic()
            # The time in which the whole process was suspended, as clusters do, is no wait.
            waited, looked = waited + min(now - looked, 5 * _LOOK), now
            self._seen |= {w.pid: w for w in _workers() if w.pid not in self._others}
            died = [w.exitcode for w in self._seen.values() if w.exitcode]
            if self._stop():
                self._give_up(fetch)
                raise Interrupted
            if died and waited > _TOLD:
                self._give_up(fetch)
                raise _death(died[0])
            if waited > self._max_wait:
                workers = self._give_up(fetch)
                who = f"the {workers} worker processes hang" if workers else "the threads hang"
                raise PipelineError(
                    f"no batch came for {self._max_wait:g} s: {who}, perhaps in a file system that does "
                    "not answer; look at the disk and give the same command again, or wait longer "
                    "by --config.data.max_wait (seconds)"
                )
            fetch.join(min(_LOOK, max(self._max_wait - waited, 0.01)))

    def _give_up(self, fetch: "_Fetch") -> int:
        """Kills the workers, for whose end grain would wait; returns their number."""
        workers = [worker for worker in _workers() if worker.pid not in self._others]
        for worker in workers:
            worker.kill()
        if workers:
            fetch.join(_TOLD)
        if not fetch.is_alive():
            self.close()  # Frees the batches that wait in shared memory.
        return len(workers)


class _Fetch(threading.Thread):
    """Takes the next batch, `None` after the last, or the error."""

    def __init__(self, batches: Any) -> None:
        super().__init__(name=_FETCH, daemon=True)
        self._batches = batches
        self.batch: HostBatch | None = None
        self.error: BaseException | None = None

    def run(self) -> None:
        try:
            self.batch = next(self._batches, None)
        # Panics of libraries in Rust are no `Exception`. None may pass for the end of the batches.
        except BaseException as error:
            self.error = error


def _first_state(dataset: Iterable[HostBatch]) -> Any:
    """The position at the beginning of a grain dataset."""
    batches: Any = iter(dataset)
    return batches.get_state()


def hang() -> bool:
    """Whether a thread still waits for a batch.

    The threads that make it cannot be ended, and Python waits for them at its own end. `os._exit` does
    not.
    """
    return any(thread.name == _FETCH for thread in threading.enumerate())


def leave(code: int) -> NoReturn:
    """Ends the process, also where a thread hangs."""
    if hang():
        # A closed pipe or a full disk must not lead back to the interpreter, which would wait.
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(AttributeError, OSError, ValueError):
                stream.flush()
        os._exit(code)
    sys.exit(code)


def _workers() -> list[Any]:
    """grain's worker processes that run."""
    return [p for p in multiprocessing.active_children() if p.name.startswith(_WORKER)]


def _told(error: BaseException) -> BaseException:
    """The error, or if it is grain's of a worker that died, one that says what to do."""
    died = re.search(r"terminated unexpectedly with exit code (-?\d+)", str(error))
    return _death(int(died[1])) if isinstance(error, RuntimeError) and died else error


def _death(code: int) -> PipelineError:
    how, why = f"ended with exit code {code}", "its own lines stand above"
    if code < 0:
        how = f"was killed by {_signal(-code)}"
        why = "perhaps by a decoder's fault"
    if -code == signal.SIGKILL:
        why = "perhaps for want of memory: lower config.data.prefetch or config.data.threads"
    return PipelineError(
        f"a worker process of the input pipeline {how}, {why}; the same command goes on from the last "
        "checkpoint"
    )


def _signal(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
