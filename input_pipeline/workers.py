"""Worker processes: chooses their number, and ends them with their parent."""

import multiprocessing
import os
import threading


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
