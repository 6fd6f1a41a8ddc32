"""The command `refseg`, which a wheel of this library brings; each command of it is a module.

    refseg predict --checkpoint=exported --image=picture.jpg --text="the red car" --output_dir=out

In a checkout, `python -m tools.NAME` is the same as `refseg NAME`. The module of a command is imported
when that command is called: `refseg --help` needs no JAX.
"""

import importlib
import sys
from collections.abc import Mapping, Sequence
from importlib import metadata
from typing import NamedTuple, NoReturn

from refseg_jax.cli import signals
from refseg_jax.cli.command_line import called_as_refseg
from refseg_jax.errors import escaped
from refseg_jax.naming import unknown


class Command(NamedTuple):
    """A command.

    Attributes:
        module: has `main(arguments) -> exit code`, and `make_parser()`.
        line: what it does, for `refseg --help`.
    """

    module: str
    line: str


#: Every command that needs the library alone. One that is new has a line here, and a module of its
#: name in `tools/` that calls it.
COMMANDS: Mapping[str, Command] = {
    "demo": Command("refseg_jax.cli.demo.command", "a web page and a JSON API for models"),
    "export": Command(
        "refseg_jax.cli.export", "write a checkpoint as a folder that runs elsewhere"
    ),
    "import_weights": Command("refseg_jax.cli.import_weights", "published weights to a checkpoint"),
    "predict": Command("refseg_jax.cli.predict", "masks of pictures, folders, groups and videos"),
    "score": Command("refseg_jax.cli.score", "score masks of any system by a published protocol"),
}

#: Commands that need more of a checkout than the library.
_IN_CHECKOUT = frozenset({"ablation", "build_dataset", "compile", "doctor", "feed"})


def help_text() -> str:
    """What `refseg --help` prints."""
    width = max(map(len, COMMANDS))
    lines = [f"  {name:<{width}}  {command.line}" for name, command in COMMANDS.items()]
    return "\n".join(
        [
            "usage: refseg COMMAND [--FLAG=VALUE ...]",
            "",
            "Language-guided segmentation in JAX.",
            "",
            *lines,
            "",
            "`refseg COMMAND --help` has its flags. Datasets and training need a checkout.",
        ]
    )


def run(arguments: Sequence[str]) -> int:
    """Runs a command; returns its exit code, 2 if there is no such command."""
    name, *rest = arguments or [""]
    if name in ("--help", "-h"):
        print(help_text())
        return 0
    if name == "--version":
        print(f"refseg_jax {metadata.version('refseg_jax')}")
        return 0
    if name not in COMMANDS:
        print(_refusal(name), file=sys.stderr)
        return 2
    with called_as_refseg(COMMANDS):
        return importlib.import_module(COMMANDS[name].module).main(rest)


def _refusal(name: str) -> str:
    if not name:
        return help_text()
    if name in _IN_CHECKOUT:
        return f"error: {name} needs a checkout of refseg_jax; there: python -m tools.{name}"
    return f"error: {escaped(unknown('command', name, COMMANDS))}; refseg --help has a line on each"


def refseg() -> NoReturn:
    """The entry point: runs the command of the process's arguments, and ends the process."""
    signals.heed_early()
    signals.leave(run(sys.argv[1:]))
