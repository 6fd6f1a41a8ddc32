"""Writes a checkpoint as a folder that runs elsewhere.

    python -m tools.export --checkpoint=runs/scenes_unires --format=safetensors --output=exported

docs/export.md lists the files in the folder, and shows how to load it with and without this code.
"""

import argparse
import sys
from collections.abc import Sequence

from refseg_jax.checkpoints import manifest
from refseg_jax.checkpoints.folder import step_choice
from refseg_jax.cli.command_line import (
    Result,
    add_json_flag,
    command_parser,
    ended,
    path,
    place,
    spoken,
)
from refseg_jax.cli.signals import leave
from refseg_jax.errors import escaped
from refseg_jax.exports.exporter import FORMATS, export


def make_parser() -> argparse.ArgumentParser:
    """The flags of the command."""
    parser = command_parser("tools.export", __doc__)
    parser.add_argument(
        "--checkpoint",
        type=place,
        required=True,
        help="a run's workdir, one checkpoint, or a folder exported as safetensors or stablehlo",
    )
    parser.add_argument("--format", required=True, help=", ".join(FORMATS))
    parser.add_argument("--output", type=path, required=True, help="a folder that does not exist")
    parser.add_argument("--step", default="latest", help="of a workdir: latest, best or a number")
    parser.add_argument(
        "--env",
        type=path,
        help="of --format=onnx: folder of the environment that converts, made where it is missing "
        "(default: in the user's cache)",
    )
    add_json_flag(parser, "the folder and its files")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit code."""
    given = sys.argv[1:] if arguments is None else list(arguments)
    options = make_parser().parse_args(given)

    def work() -> Result:
        export(
            options.checkpoint,
            options.format,
            options.output,
            step=step_choice(options.step),
            environment=options.env,
            command=[*spoken("python -m tools.export").split(), *given],
        )
        print(f"{escaped(str(options.output))}: {options.format}")
        sizes = {name: size for name, (size, _) in manifest.read(options.output).items()}
        return Result({"output": options.output, "format": options.format, "bytes": sizes})

    return ended(work, report=options.json)


if __name__ == "__main__":
    leave(main())
