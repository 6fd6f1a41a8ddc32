"""Worker processes: how many there are, and that none is left behind."""

import multiprocessing
import os
import threading


def end_with_parent(*_: int) -> None:
    """Ends this worker as soon as its parent is gone, also where that was killed.

    A worker that waits for room in its queue would otherwise wait for ever, with its memory. What a
    terminal or `timeout` sends to the whole group is for the parent, which saves first and must not
    find its workers dead; hence a group of the worker's own. It has that from this call on: a signal
    to the group that comes before, while a new worker imports its modules, still ends the worker.
    Takes and ignores the worker's number and their count, which grain gives.
    """
    parent = multiprocessing.parent_process()
    if parent is None:
        return
    os.setpgrp()

    def watch() -> None:
        # Returns when the pipe that only the parent holds is closed, by itself or by the system.
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, name="end_with_parent", daemon=True).start()


def evaluation_workers(asked: int, batches: int) -> int:
    """How many processes prepare an evaluation's batches.

    Each starts anew for each evaluation, so those that would have no core or no batch cost more than
    they bring. (Training keeps to what was asked: its checkpoints are for that many.)

    Args:
        asked: `PipelineConfig.num_workers`.
        batches: of this process.
    """
    return min(asked, usable_cores(), batches)


def usable_cores() -> int:
    """Cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
