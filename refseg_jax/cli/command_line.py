"""What the command lines share."""

import contextlib
import signal
import sys
from collections.abc import Iterator
from types import FrameType


@contextlib.contextmanager
def unwound_by_sigterm() -> Iterator[None]:
    """SIGTERM, like Ctrl-C, lets the block remove what it has begun and stop what it has started.

    The exit code is the shell's, 143.
    """
    before = signal.signal(signal.SIGTERM, _leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _leave(number: int, frame: FrameType | None) -> None:
    del frame
    sys.exit(128 + number)
