"""File locks that let one process work at a time; a lock ends with the process that holds it."""

import contextlib
import errno
import fcntl
import os
import platform
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO

from absl import logging

from refseg_jax.errors import UserError

#: Errors of file systems without locks, such as some network mounts.
_NO_LOCKS = frozenset({errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP, errno.EINVAL})


@contextlib.contextmanager
def exclusive(path: Path, busy: Callable[[str], UserError]) -> Iterator[None]:
    """Holds an exclusive lock while the `with` block runs.

    Parent folders that are created for the lock file are removed at the end, unless the block has put
    something there. On a file system without locks, a warning is logged and the block runs unlocked.

    Args:
        path: the lock file. It exists only while the lock is held; a killed process leaves the file
            behind, which does no harm.
        busy: makes the error to raise if the lock is already held, by another process or by this
            one; its argument names the holder (`process 12 on somewhere`).

    Raises:
        UserError: the lock is held; the error is the one that `busy` makes.
        OSError: the lock file cannot be written.
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


def _opened(path: Path) -> IO[bytes]:
    # The previous holder may remove the folder during `mkdir`, or between `mkdir` and `open`.
    for _ in range(100):
        with contextlib.suppress(FileNotFoundError, FileExistsError):
            path.parent.mkdir(parents=True, exist_ok=True)
            return path.open("a+b", buffering=0)
    path.parent.mkdir(parents=True, exist_ok=True)
    return path.open("a+b", buffering=0)


def _locked(path: Path, busy: Callable[[str], UserError]) -> IO[bytes]:
    while True:
        lock = _opened(path)
        try:
            _take(lock, path)
            # The previous holder may have removed the file after it was opened here: then this is a
            # lock on a deleted file, and the loop tries again.
            with contextlib.suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(lock.fileno()), path.stat()):
                    _sign(lock)
                    return lock
            lock.close()
        except BlockingIOError:
            who = _signature(lock)
            lock.close()
            raise busy(who) from None
        except BaseException:
            lock.close()
            raise


def _take(lock: IO[bytes], path: Path) -> None:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise
        logging.warning(
            "%s: this file system knows no locks (%s): see to it that no other process works there",
            path.parent,
            error.strerror,
        )


def _sign(lock: IO[bytes]) -> None:
    # On a full disk the lock works without its holder's name.
    with contextlib.suppress(OSError):
        lock.truncate(0)
        lock.write(f"process {os.getpid()} on {platform.node()}".encode())


def _signature(lock: IO[bytes]) -> str:
    lock.seek(0)
    return lock.read(200).decode(errors="replace") or "another process"
