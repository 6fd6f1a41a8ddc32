"""Shared by the command lines: their flags for paths, and how errors and signals end them."""

import argparse
import io
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

from refseg_jax.cli import signals
from refseg_jax.errors import UserError, escaped
from refseg_jax.storage.buckets import located, on_disk, told


def command_parser(name: str, doc: str | None) -> argparse.ArgumentParser:
    """A parser that takes no abbreviated flags, so that a new flag never changes what a command means.

    Args:
        name: of the module, e.g. `"tools.predict"`.
        doc: its docstring, which `--help` shows.
    """
    return _Parser(
        prog=f"python -m {name}",
        description=doc,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        super().error(escaped(message))


def expanded(text: str) -> str:
    """A path, or the name of something on the hub, with `~` and `~user` at its beginning replaced.

    A shell replaces them in `--data_dir ~/data`, but not in `--data_dir=~/data`. The home of an unknown
    user stays as it is, as in a shell.
    """
    return os.path.expanduser(text)  # noqa: PTH111 (Path.expanduser refuses unknown users.)


def path(text: str) -> Path:
    """The type of a flag that names a file or folder on a disk."""
    try:
        return on_disk(expanded(text))
    except UserError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def place(text: str) -> Path:
    """The type of a flag that names a folder on a disk or in a bucket."""
    try:
        return located(expanded(text))
    except UserError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def ended(work: Callable[[], int | None], *, failed: int = 1) -> int:
    """Runs the work of a command; errors and signals become one line on stderr and an exit code.

    Args:
        work: returns the exit code; `None` is 0.
        failed: the exit code after a `UserError` or an `OSError`.

    Returns:
        The exit code: 130 after Ctrl-C, 143 after SIGTERM.
    """
    # Names and texts may have characters that the terminal's encoding lacks.
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        with signals.unwound(), told():
            code = work() or 0
            # Here, where a closed pipe or a full disk is an error as any.
            if sys.stdout is not None:
                sys.stdout.flush()
            return code
    except (UserError, OSError) as error:
        print(error_line(error), file=sys.stderr)
        return failed
    except (KeyboardInterrupt, signals.Terminated) as ending:
        return signals.told(ending)


def error_line(error: Exception) -> str:
    """The line that a command prints of an error."""
    # Other libraries wrap their messages.
    text = str(error) if isinstance(error, UserError) else escaped(" ".join(str(error).split()))
    return f"error: {text}"
