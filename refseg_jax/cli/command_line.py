"""Shared by the command lines: names, flags for paths, `--json`, and how errors and signals end them."""

import argparse
import contextlib
import io
import json
import math
import os
import re
import sys
from collections.abc import Callable, Collection, Iterator, Mapping
from contextvars import ContextVar
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

from refseg_jax.cli import signals
from refseg_jax.errors import UserError, escaped
from refseg_jax.storage.buckets import on_disk, told, write

#: Value of `--json` where the object goes to stdout.
STDOUT = Path("-")

#: Names of the commands that are called as `refseg NAME` here, and not as `python -m tools.NAME`.
_SHORT: ContextVar[frozenset[str]] = ContextVar("_SHORT", default=frozenset())


class Result(NamedTuple):
    """What a command has found.

    Attributes:
        content: for `--json`: values of JSON, paths, and NumPy's scalars.
        code: the exit code.
    """

    content: Mapping[str, Any]
    code: int = 0


@contextlib.contextmanager
def called_as_refseg(names: Collection[str]) -> Iterator[None]:
    """In the block, these commands call themselves `refseg NAME` in help, errors and model cards."""
    token = _SHORT.set(frozenset(names))
    try:
        yield
    finally:
        _SHORT.reset(token)


def spoken(text: str) -> str:
    """A text in which the commands have the names by which they are called here."""
    names = _SHORT.get()

    def name(found: re.Match[str]) -> str:
        return f"refseg {found[1]}" if found[1] in names else found[0]

    return re.sub(r"(?:python -m )?\btools\.(\w+)", name, text)


def command_parser(name: str, doc: str | None) -> argparse.ArgumentParser:
    """A parser that takes no abbreviated flags, so that a new flag never changes what a command means.

    Args:
        name: of the module, e.g. `"tools.predict"`.
        doc: its docstring, which `--help` shows.
    """
    return _Parser(
        prog=spoken(f"python -m {name}"),
        description=doc,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )


class _Parser(argparse.ArgumentParser):
    def format_help(self) -> str:
        return spoken(super().format_help())

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


def add_json_flag(parser: argparse.ArgumentParser, content: str) -> None:
    """Adds `--json[=FILE]`, whose value goes to `ended`.

    Args:
        parser: the flags of the command.
        content: what the object holds, for `--help`.
    """
    parser.add_argument(
        "--json",
        type=path,
        nargs="?",
        const=STDOUT,
        metavar="FILE",
        help=f"{content} as one JSON object: in FILE, else on stdout, and the text on stderr",
    )


def ended(
    work: Callable[[], int | Result | None], *, failed: int = 1, report: Path | None = None
) -> int:
    """Runs the work of a command; errors and signals become one line on stderr and an exit code.

    Args:
        work: returns the exit code (`None` is 0), or a `Result`, which it must with `report`.
        failed: the exit code after a `UserError` or an `OSError`.
        report: value of `--json`. After an error there is no object.

    Returns:
        The exit code: 130 after Ctrl-C, 143 after SIGTERM.
    """
    # Names and texts may have characters that the terminal's encoding lacks.
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        with signals.unwound(), told():
            _check_report(report)
            aside = sys.stderr if report == STDOUT else sys.stdout
            with contextlib.redirect_stdout(aside):
                done = work()
            if report is not None:
                assert isinstance(done, Result)
                _write_report(report, done.content)
            # Here, where a closed pipe or a full disk is an error as any.
            if sys.stdout is not None:
                sys.stdout.flush()
            return done.code if isinstance(done, Result) else done or 0
    except (UserError, OSError) as error:
        print(error_line(error), file=sys.stderr)
        return failed
    except (KeyboardInterrupt, signals.Terminated) as ending:
        return signals.told(ending)


def _check_report(report: Path | None) -> None:
    """Refuses what is no file before the work, which may take hours."""
    if report is not None and report.is_dir():
        raise UserError(f"--json={report}: is a folder; name a file")


def _write_report(report: Path, content: Mapping[str, Any]) -> None:
    text = json.dumps(_values(content), indent=1, allow_nan=False)
    if report == STDOUT:
        print(text)
        return
    report.parent.mkdir(parents=True, exist_ok=True)
    write(report, f"{text}\n".encode())


def _values(content: Any) -> Any:
    """Content as JSON has it, which knows no number that is not finite."""
    if isinstance(content, Mapping):
        return {str(key): _values(value) for key, value in content.items()}
    if isinstance(content, list | tuple):
        return [_values(value) for value in content]
    if isinstance(content, Path):
        return str(content)
    if hasattr(content, "item"):
        content = content.item()
    return None if isinstance(content, float) and not math.isfinite(content) else content


def error_line(error: Exception) -> str:
    """The line that a command prints of an error."""
    # Other libraries wrap their messages.
    text = str(error) if isinstance(error, UserError) else escaped(" ".join(str(error).split()))
    return spoken(f"error: {text}")
