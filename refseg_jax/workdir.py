"""The folder of a run, which a start that fails does not leave behind."""

import contextlib
import shutil
from collections.abc import Iterator
from pathlib import Path

#: Of these only what is in them tells of a run: a writer that is opened makes them.
_EMPTY_AT_FIRST = ("tensorboard",)


@contextlib.contextmanager
def opened(workdir: Path, *, first: bool = True) -> Iterator[None]:
    """Makes the folder; if the block fails before it has told anything there, the folder goes again.

    Args:
        workdir: the folder; one that was there before stays as it is.
        first: whether this process is the one that writes; the others remove nothing.

    Raises:
        OSError: it cannot be made.
    """
    new = not workdir.exists()
    workdir.mkdir(parents=True, exist_ok=True)
    try:
        yield
    except BaseException:
        if new and first and not _tells(workdir):
            shutil.rmtree(workdir, ignore_errors=True)
        raise


def _tells(workdir: Path) -> bool:
    files = (path.relative_to(workdir) for path in workdir.rglob("*") if path.is_file())
    return any(
        (workdir / path).stat().st_size and path.parts[0] not in _EMPTY_AT_FIRST for path in files
    )
