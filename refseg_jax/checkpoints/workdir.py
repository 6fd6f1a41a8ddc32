"""The folder of a run: of one at a time, and not left behind by a start that fails."""

import contextlib
import shutil
from collections.abc import Iterator
from pathlib import Path

from refseg_jax import sharding
from refseg_jax.errors import UserError
from refseg_jax.locks import exclusive

_LOCK = "running.lock"

#: Of these only what is in them tells of a run: a writer that is opened makes them.
_EMPTY_AT_FIRST = ("tensorboard", _LOCK)


@contextlib.contextmanager
def opened(workdir: Path, *, first: bool = True) -> Iterator[None]:
    """Makes the folder and holds it; if the block fails before it has told anything, it goes again.

    Args:
        workdir: the folder; one that was there before stays as it is.
        first: whether this process is the one that writes; the others hold and remove nothing, but
            are refused with it.

    Raises:
        UserError: another run writes there.
        OSError: it cannot be made.
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
        # Else the others would wait in vain for the one that has left.
        if not sharding.everywhere(refused is None):
            raise refused or busy("process 0 tells which")
        yield


def _tells(workdir: Path) -> bool:
    files = (path.relative_to(workdir) for path in workdir.rglob("*") if path.is_file())
    return any(
        (workdir / path).stat().st_size and path.parts[0] not in _EMPTY_AT_FIRST for path in files
    )
