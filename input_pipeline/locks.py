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

    Folders that it makes for the file are removed at the end, unless the block has put something there.

    Args:
        path: of the lock's file, which is there only meanwhile (a killed process leaves it behind,
            without effect).
        busy: raised where another process, or another block of this one, holds it.

    Raises:
        UserError: `busy`.
        OSError: no file can be written or locked there.
    """
    made = [folder for folder in path.parents if not folder.exists()]
    try:
        with _locked(path, busy):
            try:
                yield
            finally:
                path.unlink(missing_ok=True)
    finally:
        with contextlib.suppress(OSError):
            for folder in made:
                folder.rmdir()


def _opened(path: Path) -> IO[str]:
    # Who held a lock there may remove the folder between the two calls, or within the first.
    for _ in range(100):
        with contextlib.suppress(FileNotFoundError, FileExistsError):
            path.parent.mkdir(parents=True, exist_ok=True)
            return path.open("w")
    path.parent.mkdir(parents=True, exist_ok=True)
    return path.open("w")


def _locked(path: Path, busy: UserError) -> IO[str]:
    while True:
        lock = _opened(path)
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
