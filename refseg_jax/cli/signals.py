"""How Ctrl-C and SIGTERM end a command: with one line and the exit code that shells expect.

There are three phases. Imports, which take seconds, are ended at once: an exception could be swallowed
by the library that is being imported. Work is unwound by an exception, so that it cleans up. What the
interpreter does at its end is skipped after that: threads of XLA that still compile would crash it.
"""

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Iterator
from types import FrameType
from typing import NoReturn, TextIO

#: Signal -> exit code, and the line that is printed.
_CODES = {signal.SIGINT: 130, signal.SIGTERM: 143}
_LINES = {130: "stopped by Ctrl-C", 143: "stopped by SIGTERM"}


class Terminated(SystemExit):
    """SIGTERM has ended the command."""


def heed_early() -> None:
    """Lets both signals end the process at once, as nothing has begun yet; ignored ones stay so."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _leave_now)
    if signal.getsignal(signal.SIGTERM) is signal.SIG_DFL:
        signal.signal(signal.SIGTERM, _leave_now)


@contextlib.contextmanager
def unwound() -> Iterator[None]:
    """Makes Ctrl-C raise `KeyboardInterrupt` in the block, and SIGTERM `Terminated`.

    Only the main thread hears signals: in another one, nothing changes.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in _CODES}
    signal.signal(signal.SIGTERM, _raise_terminated)
    if before[signal.SIGINT] is _leave_now:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        yield
    finally:
        for number, handler in before.items():
            # Handlers that are not Python's cannot be put back, and were not replaced.
            if handler is not None:
                signal.signal(number, handler)


def told(ending: BaseException) -> int:
    """Prints the line of a `KeyboardInterrupt` or `Terminated`; returns the exit code."""
    code = _CODES[signal.SIGTERM if isinstance(ending, Terminated) else signal.SIGINT]
    print(_LINES[code], file=sys.stderr)
    return code


def leave(code: int) -> NoReturn:
    """Ends the process.

    The interpreter's last steps are left out if a signal has ended the work, and if its output cannot
    be written, of which the interpreter would tell once more.
    """
    written = all([_flushed(sys.stdout), _flushed(sys.stderr)])
    if code in _LINES or not written:
        os._exit(code)
    sys.exit(code)


def _flushed(stream: TextIO | None) -> bool:
    try:
        if stream is not None:
            stream.flush()
    except (OSError, ValueError):
        return False
    return True


def _leave_now(number: int, frame: FrameType | None) -> NoReturn:
    del frame
    code = _CODES[signal.Signals(number)]
    os.write(2, f"{_LINES[code]}\n".encode())
    os._exit(code)


def _raise_terminated(number: int, frame: FrameType | None) -> NoReturn:
    del frame
    raise Terminated(_CODES[signal.Signals(number)])
