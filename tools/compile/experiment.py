"""Reads the config of an experiment from its flags, as `main.py` does."""

from collections.abc import Sequence
from typing import Any

from absl import flags
from ml_collections import config_flags

from refseg_jax.cli import experiment_flags


def read_config(arguments: Sequence[str], program: str = "tools.compile") -> Any:
    """The config of `--config=FILE` and the fields `--config.<field>=<value>`.

    A mistake in them prints one line and ends the process, see `refseg_jax.cli.experiment_flags`.
    """
    values = flags.FlagValues()
    command = [program, *arguments]
    config_flags.DEFINE_config_file(
        "config", None, "", flag_values=values, lock_config=True, sys_argv=command
    )
    experiment_flags.parse(command, values)
    return values.config
