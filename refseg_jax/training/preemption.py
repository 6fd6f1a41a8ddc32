"""Notice that the machine is about to be taken away."""

import signal
from types import FrameType, TracebackType
from typing import Any

import jax
from jax.experimental import multihost_utils


class Preemption:
    """While it is open, SIGTERM asks the training loop to save and leave instead of killing it.

    With several processes the coordination service of `jax.distributed` catches the signal (and
    must keep its own handler): a notice to one process becomes true at the same call on all.
    """

    def __init__(self) -> None:
        self._noticed = False
        self._asked = 0
        self._previous: Any = None

    def __enter__(self) -> "Preemption":
        if jax.process_count() == 1:
            self._previous = signal.signal(signal.SIGTERM, self._notice)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._previous is not None:
            signal.signal(signal.SIGTERM, self._previous)
            self._previous = None

    def reached(self) -> bool:
        """Whether to save and leave now; all processes ask equally often, at the same places.

        With several processes it is true at one call only: who has heard it leaves.
        """
        self._asked += 1
        if jax.process_count() > 1:
            # The processes agree on the number of a call that none of them has made yet.
            return multihost_utils.reached_preemption_sync_point(self._asked)
        return self._noticed

    def _notice(self, number: int, frame: FrameType | None) -> None:
        self._noticed = True
