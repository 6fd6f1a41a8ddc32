"""Writes a checkpoint as a folder that runs elsewhere.

    python -m tools.export --checkpoint=runs/scenes_unires --format=safetensors --output=exported

docs/export.md lists the files in the folder, and shows how to load it with and without this code.

    python -m tools.export --checkpoint=exported --push=OWNER/NAME [--dry_run]
    python -m tools.export --checkpoint=exported --space=FOLDER [--push=OWNER/NAME]

The first puts an exported folder on the Hugging Face hub, where `hf://OWNER/NAME` finds it. The second
writes a Space: a web demo of the model, which the hub runs. Both may stand beside --format and --output,
and then take the folder that is written.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from refseg_jax.checkpoints import manifest
from refseg_jax.checkpoints.folder import step_choice
from refseg_jax.cli.command_line import (
    Result,
    add_json_flag,
    command_parser,
    ended,
    expanded,
    path,
    spoken,
)
from refseg_jax.cli.signals import leave
from refseg_jax.errors import UserError, escaped
from refseg_jax.exports.exporter import FORMATS, export
from refseg_jax.exports.folder import is_export, read_config
from refseg_jax.exports.push import Pushed, check_name, push
from refseg_jax.exports.space import write_space
from refseg_jax.storage.hub import model_folder


def make_parser() -> argparse.ArgumentParser:
    """The flags of the command."""
    parser = command_parser("tools.export", __doc__)
    parser.add_argument(
        "--checkpoint",
        type=expanded,
        required=True,
        help="a run's workdir, one checkpoint, or a folder exported as safetensors or stablehlo, also "
        "hf://OWNER/NAME",
    )
    parser.add_argument("--format", help=", ".join(FORMATS))
    parser.add_argument("--output", type=path, help="a folder that does not exist")
    parser.add_argument("--step", default="latest", help="of a workdir: latest, best or a number")
    parser.add_argument(
        "--env",
        type=path,
        help="of --format=onnx: folder of the environment that converts, made where it is missing "
        "(default: in the user's cache)",
    )
    parser.add_argument(
        "--push", default="", metavar="OWNER/NAME", help="put the export on the Hugging Face hub"
    )
    parser.add_argument(
        "--private", action="store_true", help="of --push: what is made there is private"
    )
    parser.add_argument(
        "--dry_run", action="store_true", help="of --push: say what would be sent, without network"
    )
    parser.add_argument(
        "--space", type=path, help="a folder that does not exist: write a Space of the hub there"
    )
    add_json_flag(parser, "the folder and its files")
    return parser


def run(options: argparse.Namespace, command: Sequence[str]) -> Result:
    """Exports, writes the Space and pushes, as far as the flags ask for it.

    Args:
        options: values of the flags.
        command: the command line, for the model card.
    """
    _check(options)
    folder = _written(options, command) if options.output else _exported(options)
    sizes = {name: size for name, (size, _) in manifest.read(folder).items()}
    found: dict[str, Any] = {"output": folder, "format": read_config(folder).format, "bytes": sizes}
    if options.space:
        files = write_space(options.space, folder, options.push)
        found["space"] = {"output": options.space, "bytes": files}
        print(f"{escaped(str(options.space))}: a Space; {_upload_line(options.space)}")
    if options.push:
        done = push(folder, options.push, private=options.private, dry_run=options.dry_run)
        found["push"] = {**done._asdict(), "address": f"hf://{done.name}"}
        _tell(done)
    return Result(found)


def _check(options: argparse.Namespace) -> None:
    """Refuses flags that do not go together, before hours of work."""
    more = options.push or options.space
    for flag in ("private", "dry_run"):
        if getattr(options, flag) and not options.push:
            raise UserError(f"--{flag}: only of --push=OWNER/NAME; leave it out")
    if options.push:
        check_name(options.push)
    if bool(options.format) != bool(options.output):
        raise UserError("--format and --output: give both, or none with --push or --space")
    if not options.output and not more:
        raise UserError("--output: missing; give --format and --output (or --push, or --space)")
    if options.space and (options.space.exists() or options.space == options.output):
        raise UserError(f"--space={options.space}: it exists already; name another folder")


def _written(options: argparse.Namespace, command: Sequence[str]) -> Path:
    export(
        options.checkpoint,
        options.format,
        options.output,
        step=step_choice(options.step),
        environment=options.env,
        command=command,
        hub=options.push,
    )
    print(f"{escaped(str(options.output))}: {options.format}")
    return options.output


def _exported(options: argparse.Namespace) -> Path:
    folder = model_folder(options.checkpoint)
    if not is_export(folder):
        raise UserError(
            f"{options.checkpoint}: is no exported folder; give --format and --output as well"
        )
    if options.env or options.step != "latest":
        raise UserError("--env, --step: only with --output; an exported folder has one step")
    return folder


def _tell(done: Pushed) -> None:
    for name, size in done.files.items():
        print(f"{size:>13,}  {escaped(name)}")
    total = f"{len(done.files)} files, {sum(done.files.values()):,} bytes"
    if done.commit:
        print(f"hf://{done.name}: {total}: {done.commit}")
    else:
        print(f"hf://{done.name}: {total} would be sent; nothing was")


def _upload_line(folder: Path) -> str:
    return escaped(f"hf upload OWNER/SPACE {folder} . --repo-type=space")


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit code."""
    given = sys.argv[1:] if arguments is None else list(arguments)
    options = make_parser().parse_args(given)
    command = [*spoken("python -m tools.export").split(), *given]
    return ended(lambda: run(options, command), report=options.json)


if __name__ == "__main__":
    leave(main())
