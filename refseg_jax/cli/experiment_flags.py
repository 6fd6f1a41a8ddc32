"""absl's flags for an experiment: mistakes are one line that names the flag or the field."""

import os
import sys
from typing import Any

from absl import flags

FLAGS = flags.FLAGS


def parse(arguments: list[str]) -> list[str]:
    """Parses the command line; ends the process with one line on a mistake in it.

    An unknown flag, config field, preset or config file is such a mistake. With `REFSEG_TRACEBACK`
    set, the exception itself is raised.

    Args:
        arguments: as in `sys.argv`.

    Returns:
        The arguments that are no flags.
    """
    try:
        rest = FLAGS(arguments)
        # A config file that cannot be loaded shows only when a field is read.
        getattr(FLAGS.config, "steps", None)
    except (flags.Error, AttributeError, KeyError, OSError) as error:
        if os.environ.get("REFSEG_TRACEBACK"):
            raise
        print(f"error: {_line(error, arguments)}", file=sys.stderr)
        sys.exit(1)
    return rest


def _line(error: Exception, arguments: list[str]) -> str:
    """One line for what absl or the config raised; a message that names no flag gets one in front."""
    reason: Any = error
    while isinstance(reason, (AttributeError, KeyError)) and reason.args:
        reason = reason.args[0]
    first, *more = str(reason).strip().splitlines() or [type(error).__name__]
    # Where a config file raises, absl's message is the whole traceback.
    last = " ".join((more or [first])[-1].split())
    if isinstance(error, flags.Error) and not more:
        return last
    missing = first.strip("'")
    paths = [argument.split("=")[0] for argument in arguments if argument.startswith("--config.")]
    blamed = [path for path in paths if missing in path.split(".")[1:]]
    if blamed and not more:
        last = f"there is no field {first}; the config file and `configs/common.py` have them all"
    # Of several fields with that name any may be meant.
    return f"{blamed[0] if len(blamed) == 1 else '--config'}: {last}"
