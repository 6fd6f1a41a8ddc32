"""Writes a checkpoint as a folder that runs elsewhere.

    python -m tools.export --checkpoint=runs/scenes_unires --format=safetensors --output=exported

docs/export.md lists the files in the folder, and shows how to load it with and without this code.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from refseg_jax.checkpoints.folder import step_choice
from refseg_jax.cli.command_line import unwound_by_sigterm
from refseg_jax.errors import UserError
from refseg_jax.exports.exporter import FORMATS, export


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m tools.export", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument(
        "--checkpoint",
        type=Path,
        required=True,
        help="a run's workdir, one checkpoint, or a folder exported as safetensors or stablehlo",
    )
    parser.add_argument("--format", required=True, help=", ".join(FORMATS))
    parser.add_argument("--output", type=Path, required=True, help="a folder that does not exist")
    parser.add_argument("--step", default="latest", help="of a workdir: latest, best or a number")
    parser.add_argument(
        "--env",
        type=Path,
        help="of --format=onnx: folder of the environment that converts, made where it is missing "
        "(default: in the user's cache)",
    )
    given = sys.argv[1:] if arguments is None else list(arguments)
    options = parser.parse_args(given)
    try:
        with unwound_by_sigterm():
            export(
                options.checkpoint,
                options.format,
                options.output,
                step=step_choice(options.step),
                environment=options.env,
                command=["python", "-m", "tools.export", *given],
            )
    except (UserError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    print(f"{options.output}: {options.format}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
