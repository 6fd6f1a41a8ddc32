"""Compiles an experiment for devices that are not there: does it fit, and how fast can it be?

    python -m tools.compile --config=configs/refcoco_unires.py --topology=v5e:4x4
    python -m tools.compile --config=... --topology=v5e:4x4,v6e:4x4 --config.mesh.fsdp=8
    python -m tools.compile --config=... --topology=v5e:16x16 --slices=2 --largest_batch
    python -m tools.compile --config=... --topology=local --mode=predict   (this machine's devices)

It needs neither the devices nor the dataset. The functions are those that `main.py` and a predictor
compile: the training step, or with `--mode=eval` the evaluations, with `--mode=predict` a predictor's
three functions on one device. For each topology it prints whether they fit, state, temporaries and
peak of a device's memory, arithmetic and memory traffic with the times that both take at the device's
peaks, collectives, and the time of the compilation; docs/compile.md explains them.

Topologies are a kind and its chips along each axis of the network (v4:2x2x4, v5e:4x4, v5p:2x2x2,
v6e:4x4, tpu7x:2x2x2), `cpu:8` (8 devices forced on this host) and `local`. TPUs need the compiler
`libtpu`, which `pip install 'jax[tpu]'` brings on Linux. The exit code is 1 if something does not fit.
"""

import argparse
import dataclasses
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from refseg_jax.cli.command_line import Result, add_json_flag, command_parser, ended, path
from refseg_jax.errors import UserError
from tools.compile import topology as topologies
from tools.compile.child import Found, Request
from tools.compile.costs import Moved
from tools.compile.experiment import read_config
from tools.compile.figures import Figures
from tools.compile.table import found_line, refusal, table, title
from tools.compile.topology import Topology
from tools.compile.works import MODES, TRAINING


def compile_all(
    wanted: Sequence[Topology],
    request: Mapping[str, Any],
    arguments: Sequence[str],
) -> Result:
    """Compiles for one topology after the other, and prints the figures.

    Args:
        wanted: the devices.
        request: the fields of `Request` but the topology.
        arguments: flags of the config.

    Returns:
        The figures; the exit code is 1 if a function does not fit.

    Raises:
        UserError: a topology or the config is invalid, or a compiler failed.
    """
    config = read_config(arguments)
    # All, before the first of them compiles for minutes.
    environments = [one.environment(os.environ) for one in wanted]
    results: dict[str, list[tuple[Figures, Found | None]]] = {}
    for one, environment in zip(wanted, environments, strict=True):
        print(f"compiling for {one.name} ...", file=sys.stderr, flush=True)
        asked = Request(one.name, one.slices, **request)
        results[one.name] = [_read(told) for told in _compile(asked, arguments, environment)]
    _print(results)
    lines = [
        refusal(name, figures, cures(config, figures))
        for name, told in results.items()
        for figures, _ in told
        if figures.fits is False
    ]
    for line in lines:
        print(f"error: {line}", file=sys.stderr)
    return Result(_as_json(arguments, request, results), int(bool(lines)))


def _compile(
    request: Request, arguments: Sequence[str], environment: Mapping[str, str]
) -> Iterator[dict[str, Any]]:
    command = [sys.executable, "-m", "tools.compile.child"]
    command += [json.dumps(dataclasses.asdict(request)), *arguments]
    with tempfile.TemporaryFile() as said:
        with subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=said, env=environment
        ) as child:
            assert child.stdout is not None
            try:
                for line in child.stdout:
                    told = json.loads(line)
                    if "error" in told:
                        raise UserError(f"--topology={request.topology}: {told['error']}")
                    yield told
                code = child.wait()
            finally:
                child.kill()
        said.seek(0)
        words = said.read().decode(errors="replace").strip()
    if code:
        if os.environ.get("REFSEG_TRACEBACK"):
            print(words, file=sys.stderr)
        raise UserError(
            f"--topology={request.topology}: the compiler ended with exit code {code}: {_reason(words)}"
        )


def _reason(words: str) -> str:
    """The line of what a process has said that tells why it died."""
    lines = words.splitlines() or ["it said nothing"]
    # A failed check of XLA, after which it tells of its stack.
    failed = (line for line in lines if re.match(r"F\d{4} ", line))
    return next(failed, lines[-1])


def _read(told: dict[str, Any]) -> tuple[Figures, Found | None]:
    found = told.pop("found")
    moved = {kind: Moved(**fields) for kind, fields in told.pop("moved").items()}
    shape = tuple(told.pop("shape"))
    return Figures(**told, shape=shape, moved=moved), Found(**found) if found else None


def _print(results: Mapping[str, Sequence[tuple[Figures, Found | None]]]) -> None:
    for each in zip(*results.values(), strict=True):
        figures = {name: one for name, (one, _) in zip(results, each, strict=True)}
        print(title(each[0][0]), table(figures), sep="\n", end="\n\n")
        for name, (one, found) in zip(results, each, strict=True):
            if found is not None:
                print(found_line(name, one, found))


def _as_json(
    arguments: Sequence[str],
    request: Mapping[str, Any],
    results: Mapping[str, Sequence[tuple[Figures, Found | None]]],
) -> dict[str, Any]:
    return {
        "arguments": list(arguments),
        "mode": request["mode"],
        "topologies": {
            name: [
                {
                    **dataclasses.asdict(figures),
                    "images_per_second": figures.images_per_second,
                    "images_per_second_a_host": figures.images_per_second_a_host,
                    "found": found and dataclasses.asdict(found),
                }
                for figures, found in told
            ]
            for name, told in results.items()
        },
    }


def cures(config: Any, figures: Figures) -> list[str]:
    """What may help a function that does not fit, as flags."""
    found = []
    trains = figures.name.startswith(TRAINING)
    shards = figures.mesh["data"] * figures.mesh["fsdp"]
    if trains and figures.mesh["fsdp"] < shards:
        found.append(f"--config.mesh.fsdp={min(shards, max(2, 2 * figures.mesh['fsdp']))}")
    if trains and not config.model.get("remat", True):
        found.append("--config.model.remat=True")
    if trains:
        found.append(f"--config.optim.accumulation={2 * config.optim.accumulation}")
    if figures.field:
        found.append(f"a smaller --{figures.field}")
    return found


def make_parser() -> argparse.ArgumentParser:
    """The flags of the command, without the fields of the config."""
    parser = command_parser("tools.compile", __doc__)
    parser.add_argument("--config", type=path, required=True, help="as of main.py, with its fields")
    parser.add_argument("--topology", required=True, help="e.g. v5e:4x4,v6e:4x4")
    parser.add_argument("--slices", type=int, default=1, help="number of each topology, joined")
    parser.add_argument("--mode", choices=MODES, default="train", help="what to compile")
    parser.add_argument("--largest_batch", action="store_true", help="find the largest that fits")
    add_json_flag(parser, "the figures")
    parser.add_argument("--hlo", type=path, help="folder to write the compiled programs to")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit code."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    fields = [argument for argument in given if argument.startswith("--config.")]
    options = make_parser().parse_args([argument for argument in given if argument not in fields])
    request = {
        "mode": options.mode,
        "largest": options.largest_batch,
        "hlo": str(options.hlo) if options.hlo else "",
    }

    def work() -> Result:
        wanted = topologies.parse(options.topology, options.slices)
        if options.hlo:
            options.hlo.mkdir(parents=True, exist_ok=True)
        flags = [f"--config={options.config}", *fields]
        return compile_all(wanted, request, flags)

    return ended(work, report=options.json)
