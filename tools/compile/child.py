"""The process that compiles: one topology, one config. It prints a line of JSON for each function.

python -m tools.compile.child REQUEST --config=configs/scenes_unires.py
"""

import dataclasses
import json
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from refseg_jax.cli.command_line import error_line
from refseg_jax.errors import UserError
from refseg_jax.training.peaks import peak_of
from tools.compile.experiment import read_config
from tools.compile.figures import Figures, measure
from tools.compile.search import Tried, largest_batch
from tools.compile.topology import Topology
from tools.compile.works import Experiment, Mode, Work


@dataclasses.dataclass(frozen=True)
class Request:
    """What to compile.

    Attributes:
        topology, slices: the devices, see `Topology`.
        mode: which functions.
        largest: whether to look for the largest batch.
        hlo: folder for the texts of the compiled programs, or `""`.
    """

    topology: str
    slices: int
    mode: Mode
    largest: bool
    hlo: str = ""


@dataclasses.dataclass(frozen=True)
class Found:
    """Result of a search for the largest batch.

    Attributes:
        rows: the most rows that fit; 0 if none do.
        more: the fewest rows that were tried and do not fit, or `None`.
        compilations: number of them.
    """

    rows: int
    more: int | None
    compilations: int


def run(request: Request, arguments: Sequence[str], tell: Callable[[dict[str, Any]], None]) -> None:
    """Compiles everything, and tells the figures of each function.

    Raises:
        UserError, ValueError: a field of the config is invalid, or there is no such topology.
    """
    config = read_config(arguments)
    devices = Topology(request.topology, request.slices).devices()
    experiment = Experiment(config, devices)
    for work in experiment.works(request.mode):
        found = None
        if request.largest:
            figures, text, found = _search(work, devices[0].device_kind)
        else:
            figures, text = measure(work, work.rows)
        if request.hlo and text:
            name = f"{request.topology}-{work.name}".replace(":", "-").replace(" ", "-")
            (Path(request.hlo) / f"{name}.txt").write_text(text)
        tell({**dataclasses.asdict(figures), "found": found and dataclasses.asdict(found)})


def _search(work: Work, kind: str) -> tuple[Figures, str, Found]:
    peak = peak_of(kind)
    if not work.field or peak is None:
        reason = "its rows are one image" if peak else f"{kind} has no known limit of memory"
        raise UserError(f"--largest_batch: {work.name}: {reason}; leave it out")
    results: dict[int, tuple[Figures, str]] = {}

    def attempt(rows: int) -> Tried:
        figures, _ = results[rows] = measure(work, rows)
        return Tried(bool(figures.fits), figures.needed, figures.available)

    most, tried = largest_batch(attempt, start=work.rows, unit=work.unit, memory=peak.memory)
    refused = [rows for rows, one in tried.items() if not one.fits]
    found = Found(most, min(refused, default=None), len(tried))
    return (*results[most or min(refused)], found)


def main() -> None:
    """The process; its result is on stdout, and all that libraries print on stderr."""
    with os.fdopen(os.dup(1), "w") as results:
        os.dup2(2, 1)

        def tell(result: dict[str, Any]) -> None:
            print(json.dumps(result), file=results, flush=True)

        try:
            run(Request(**json.loads(sys.argv[1])), sys.argv[2:], tell)
        except (UserError, ValueError, OSError, RuntimeError) as e:
            if os.environ.get("REFSEG_TRACEBACK"):
                raise
            tell({"error": error_line(e).removeprefix("error: ")})


if __name__ == "__main__":
    main()
