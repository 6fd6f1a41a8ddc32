"""Notices of preemption: the machine is about to be taken away."""

import signal
from types import FrameType
from typing import Any

import jax
from jax.experimental import multihost_utils


class Preemption:
    """A context in which SIGTERM asks the training loop to save and stop, instead of killing it.

    With several processes, the coordination service of `jax.distributed` handles the signal, so no
    handler is installed here. A notice to one process makes the same call of `reached` true on all.
    """

    def __init__(self) -> None:
        self._noticed = False
        self._asked = 0
        self._previous: Any = None

    def __enter__(self) -> "Preemption":
        if jax.process_count() == 1:
            self._previous = signal.signal(signal.SIGTERM, self._notice)
        return self

    def __exit__(self, *_: object) -> None:
        if self._previous is not None:
            signal.signal(signal.SIGTERM, self._previous)
            self._previous = None

    def reached(self) -> bool:
        """Whether to save and stop now; all processes must call it equally often, at the same places.

        With several processes, only one call returns true: the caller must act on it.
        """
        self._asked += 1
        if jax.process_count() > 1:
            # The argument numbers the calls; the processes agree on a call that none has made yet.
            return multihost_utils.reached_preemption_sync_point(self._asked)
        return self._noticed

    def noticed(self) -> bool:
        """Whether SIGTERM has come to this process; with several processes, always false.

        For waits in which the processes cannot agree.
        """
        return self._noticed

    def _notice(self, number: int, frame: FrameType | None) -> None:
        self._noticed = True
