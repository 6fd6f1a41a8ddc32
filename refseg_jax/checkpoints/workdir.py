"""The folder of a run: locked against a second run, and removed again when a start fails."""

import contextlib
import shutil
from collections.abc import Iterator
from pathlib import Path

from refseg_jax import sharding
from refseg_jax.errors import UserError
from refseg_jax.storage.locks import exclusive

_LOCK = "running.lock"

#: Entries of the folder that do not count as output: a run creates them before its first step.
_EMPTY_AT_FIRST = ("tensorboard", _LOCK)


@contextlib.contextmanager
def opened(workdir: Path, *, first: bool = True) -> Iterator[None]:
    """Creates the folder and locks it; removes it if the block fails before it wrote any output.

    Args:
        workdir: the folder; one that existed before is never removed.
        first: whether this process writes the run's files. The other processes neither lock nor
            remove the folder, but fail together with the first if it is locked.

    Raises:
        UserError: another run holds the folder.
        OSError: the folder cannot be created.
    """
    new = not workdir.exists()
    workdir.mkdir(parents=True, exist_ok=True)
    with _held(workdir, first):
        try:
            yield
        except BaseException:
            if new and first and not _tells(workdir):
                shutil.rmtree(workdir, ignore_errors=True)
            raise


@contextlib.contextmanager
def _held(workdir: Path, first: bool) -> Iterator[None]:
    cure = "wait until that has ended, or stop it, or choose another --workdir"

    def busy(who: str) -> UserError:
        return UserError(f"{workdir}: another run ({who}) is at it: {cure}")

    refused = None
    with contextlib.ExitStack() as held:
        if first:
            try:
                held.enter_context(exclusive(workdir / _LOCK, busy))
            except UserError as error:
                refused = error
        # Without this exchange the other processes would wait for a process that has exited.
        if not sharding.everywhere(refused is None):
            raise refused or busy("process 0 tells which")
        yield


def _tells(workdir: Path) -> bool:
    files = (path.relative_to(workdir) for path in workdir.rglob("*") if path.is_file())
    return any(
        (workdir / path).stat().st_size and path.parts[0] not in _EMPTY_AT_FIRST for path in files
    )
