"""One process at a time: locks of files, which end with the process that holds them."""

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from refseg_jax.errors import UserError


@contextlib.contextmanager
def exclusive(path: Path, busy: UserError) -> Iterator[None]:
    """Holds the lock of a name while its block runs.

    Args:
        path: of the lock's file, which is there only meanwhile (a killed process leaves it behind,
            without effect).
        busy: raised where another process, or another block of this one, holds it.

    Raises:
        UserError: `busy`.
        OSError: no file can be written or locked there.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with _locked(path, busy):
        try:
            yield
        finally:
            path.unlink(missing_ok=True)


def _locked(path: Path, busy: UserError) -> IO[str]:
    while True:
        lock = path.open("w")
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # Who held it last may have removed the file after it was opened here.
            with contextlib.suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(lock.fileno()), path.stat()):
                    return lock
            lock.close()
        except BlockingIOError:
            lock.close()
            raise busy from None
        except BaseException:
            lock.close()
            raise
