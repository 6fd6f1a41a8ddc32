"""One process at a time: locks of files, which end with the process that holds them."""

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

#: What file systems say that know no locks: some that are mounted over a network.
_NO_LOCKS = frozenset({errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP, errno.EINVAL})


@contextlib.contextmanager
def exclusive(path: Path, busy: Callable[[str], UserError]) -> Iterator[None]:
    """Holds the lock of a name while its block runs.

    Folders that it makes for the file are removed at the end, unless the block has put something there.
    Where the file system knows no locks it warns, and the block runs all the same.

    Args:
        path: of the lock's file, which is there only meanwhile (a killed process leaves it behind,
            without effect).
        busy: makes the error that is raised where another process, or another block of this one,
            holds it; takes who that is (`process 12 on somewhere`).

    Raises:
        UserError: what `busy` makes.
        OSError: no file can be written there.
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
    # Who held a lock there may remove the folder between the two calls, or within the first.
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
            # Who held it last may have removed the file after it was opened here.
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
    # On a full disk the lock holds without a name.
    with contextlib.suppress(OSError):
        lock.truncate(0)
        lock.write(f"process {os.getpid()} on {platform.node()}".encode())


def _signature(lock: IO[bytes]) -> str:
    lock.seek(0)
    return lock.read(200).decode(errors="replace") or "another process"
