"""Parses absl's flags of an experiment; a mistake gives one line that names the flag or the field."""

import os
import re
import sys
from collections.abc import Iterator
from typing import Any

from absl import flags
from ml_collections import ConfigDict

from refseg_jax.cli.command_line import expanded
from refseg_jax.errors import escaped
from refseg_jax.storage.buckets import is_remote, scheme_of
from refseg_jax.storage.hub import on_hub

FLAGS = flags.FLAGS

#: The fields that may name an export on the hub, as `hf://OWNER/NAME`.
_ON_HUB = ("init.checkpoint",)

#: The fields that may name a folder in a bucket.
_IN_BUCKETS = re.compile(
    r"((data|mixture\.[^.]+)\.data_dir|checkpoint\.dir|init\.checkpoint|loop\.compilation_cache)"
)


def parse(arguments: list[str], values: flags.FlagValues | None = None) -> list[str]:
    """Parses the command line; prints one line and exits with code 1 if there is a mistake in it.

    Mistakes are an unknown flag, config field, preset or config file, and a path in a bucket for what
    needs a disk. If the environment variable `REFSEG_TRACEBACK` is set, the exception is raised instead.

    A `~` at the beginning of any flag's value, and of any text of the config, becomes the home folder.

    Args:
        arguments: as in `sys.argv`.
        values: where the flags are defined; `None`: absl's global ones.

    Returns:
        The arguments that are not flags.
    """
    values = FLAGS if values is None else values
    try:
        rest = values([_with_home(argument) for argument in arguments])
        # Reading a field raises the error of a config file that cannot be loaded.
        getattr(values.config, "steps", None)
        _expand_paths(values.config)
        _check_buckets(values)
    except (flags.Error, AttributeError, KeyError, OSError) as error:
        if os.environ.get("REFSEG_TRACEBACK"):
            raise
        print(f"error: {escaped(_line(error, arguments))}", file=sys.stderr)
        sys.exit(1)
    return rest


def _with_home(argument: str) -> str:
    flag, equals, value = argument.partition("=")
    return flag + equals + expanded(value) if flag.startswith("-") else expanded(argument)


def _expand_paths(fields: Any) -> None:
    """Expands the texts of a config. None of them begins with `~`, unless it is a path."""
    for name, value in fields.items():
        if isinstance(value, ConfigDict):
            _expand_paths(value)
        elif isinstance(value, str) and value.startswith("~"):
            fields[name] = expanded(value)


def _check_buckets(values: flags.FlagValues) -> None:
    """Raises a `flags.Error` for an address that cannot be read, or whose files need a disk."""
    if "workdir" in values and is_remote(values.workdir or ""):
        raise flags.IllegalFlagValueError(
            f"--workdir={values.workdir}: logs and the lock need a disk; name a folder there, and give "
            f"the bucket as --config.checkpoint.dir={values.workdir}"
        )
    if "workdir" in values and (scheme := scheme_of(values.workdir or "")):
        raise flags.IllegalFlagValueError(
            f"--workdir={values.workdir}: {scheme}:// is not known; name a folder on a disk"
        )
    for name, value in _texts(values.config):
        if on_hub(value) and name in _ON_HUB:
            continue
        if (scheme := scheme_of(value)) and not is_remote(value):
            raise flags.IllegalFlagValueError(
                f"--config.{name}={value}: {scheme}:// is not known; name a file or folder on a disk"
            )
        if is_remote(value) and not _IN_BUCKETS.fullmatch(name):
            raise flags.IllegalFlagValueError(
                f"--config.{name}={value}: this cannot lie in a bucket; name a file or folder on a disk"
            )


def _texts(fields: Any, prefix: str = "") -> Iterator[tuple[str, str]]:
    """Dotted name and value of every text of a config."""
    for name, value in fields.items():
        if isinstance(value, ConfigDict):
            yield from _texts(value, f"{prefix}{name}.")
        elif isinstance(value, str):
            yield prefix + name, value


def _line(error: Exception, arguments: list[str]) -> str:
    """The message of an error of absl or of the config as one line, which begins with the flag."""
    reason: Any = error
    while isinstance(reason, (AttributeError, KeyError)) and reason.args:
        reason = reason.args[0]
    first, *more = str(reason).strip().splitlines() or [type(error).__name__]
    # If a config file raises, absl's message is the whole traceback, whose last line has the reason.
    last = " ".join((more or [first])[-1].split())
    if isinstance(error, flags.Error) and not more:
        return last
    missing = first.strip("'")
    paths = [argument.split("=")[0] for argument in arguments if argument.startswith("--config.")]
    blamed = [path for path in paths if missing in path.split(".")[1:]]
    if blamed and not more:
        last = f"there is no field {first}; the config file and `configs/common.py` have them all"
    # With several such fields on the command line, it is not known which one is wrong.
    return f"{blamed[0] if len(blamed) == 1 else '--config'}: {last}"
