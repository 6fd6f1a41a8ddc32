"""Shared by the command lines: how SIGTERM ends them."""

import contextlib
import signal
import sys
from collections.abc import Iterator
from types import FrameType


@contextlib.contextmanager
def unwound_by_sigterm() -> Iterator[None]:
    """Makes SIGTERM raise `SystemExit` in the block, so that it cleans up as after Ctrl-C.

    The exit code is 143, as the shell reports it for SIGTERM.
    """
    before = signal.signal(signal.SIGTERM, _leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _leave(number: int, frame: FrameType | None) -> None:
    del frame
    sys.exit(128 + number)
