"""Runs the papers' ablations on Scenes on equal budgets and writes their tables.

    python -m tools.ablation --study=group_tokens --output_dir=runs/ablation \\
        --page=docs/ablation_group_tokens.md

What a study trains and tells stands in `tools.studies`. Every run is `main.py` with a few fields
changed, in a workdir of its own. The command may be stopped at any time and started again: finished
runs are kept, and an unfinished one goes on from its checkpoint. A folder with a run of other steps,
seed or fields is an error. `--jobs=2` trains two at a time, each on its share of the cores: small
models make more of a core than of several.
"""

import argparse
import ast
import collections
import concurrent.futures
import dataclasses
import json
import math
import os
import statistics
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from refseg_jax.errors import UserError
from tools.studies import STUDIES, Row, Study, Variant, summary

_ROOT = Path(__file__).resolve().parents[1]


@dataclasses.dataclass(frozen=True)
class Cell:
    """Scores of one variant over the seeds.

    Attributes:
        mean: of the scores.
        error: standard error of the mean (sample standard deviation / sqrt(n)).
    """

    mean: float
    error: float

    @classmethod
    def of(cls, scores: Sequence[float]) -> "Cell":
        """Mean and standard error.

        Raises:
            ValueError: fewer than two scores.
        """
        if len(scores) < 2:
            raise ValueError(f"a standard error needs two scores or more, there are {len(scores)}")
        return cls(statistics.fmean(scores), statistics.stdev(scores) / math.sqrt(len(scores)))

    def resolved_from(self, other: "Cell") -> bool:
        """Whether the difference is at least two standard errors of the difference."""
        return abs(self.mean - other.mean) >= 2.0 * math.hypot(self.error, other.error)


def markdown(
    study: Study, cells: Sequence[Sequence[Mapping[str, Cell]]], seeds: Sequence[int], steps: int
) -> str:
    """The page; a difference under two standard errors is called unresolved.

    Args:
        study: what was run.
        cells: of each table each row's cells by metric.
        seeds, steps: of the runs.
    """
    lines = [f"# {study.title}", "", *study.text, ""]
    for table, rows in zip(study.tables, cells, strict=True):
        if table.text:
            lines += [*table.text, ""]
        lines.append(f"| {table.heading} | " + " | ".join(study.metrics) + " |")
        lines.append("|---" * (len(study.metrics) + 1) + "|")
        for number, (row, found) in enumerate(zip(table.rows, rows, strict=True)):
            texts = [_text(found[m], rows[0][m] if number else None) for m in study.metrics]
            lines.append(f"| {row.label} | " + " | ".join(texts) + " |")
        lines.append("")
    lines.append(
        f"Held-out scenes, {steps} steps a run, seeds {', '.join(map(str, seeds))}: mean ± standard "
        f"error in percent, in brackets the difference to {_first(study)}; *unresolved* is a "
        "difference under two standard errors."
    )
    return "\n".join(lines) + "\n"


def _text(cell: Cell, base: Cell | None) -> str:
    text = f"{100 * cell.mean:.2f} ± {100 * cell.error:.2f}"
    if base is None:
        return text
    unresolved = "" if cell.resolved_from(base) else ", unresolved"
    return f"{text} ({100 * (cell.mean - base.mean):+.2f}{unresolved})"


def _first(study: Study) -> str:
    (first, *more) = study.tables
    return "the table's first row" if more else f"`{first.rows[0].label}`"


def run_one(
    options: argparse.Namespace, study: Study, variant: Variant, seed: int, workdir: Path
) -> None:
    """One training, unless it is finished already.

    Raises:
        UserError: the folder has another run, or this one has failed.
    """
    fields = (
        f"--config.seed={seed}",
        f"--config.steps={options.steps}",
        *study.fields,
        *variant.overrides,
    )
    check_same_run(workdir, fields)
    if not _is_finished(workdir, study):
        train(options, variant.config or study.config, fields, workdir)
    if not _is_finished(workdir, study):
        raise UserError(f"{workdir}: stopped before its end; the same command goes on")


def check_same_run(workdir: Path, fields: Sequence[str]) -> None:
    """Raises a `UserError` if the folder has a run with other values than the overrides `fields`."""
    try:
        config = json.loads((workdir / "config.json").read_text())
    except FileNotFoundError as error:
        if not (workdir / "summary.json").exists():
            return
        raise UserError(f"{workdir}: scores without config.json; move the folder away") from error
    except ValueError as error:
        raise UserError(f"{workdir}/config.json: {error}; move the folder away") from error
    for override in fields:
        name, _, wanted = override.removeprefix("--config.").partition("=")
        found: Any = config
        for part in name.split("."):
            found = found.get(part) if isinstance(found, dict) else None
        if found != value_of(wanted):
            raise UserError(
                f"{workdir}: a run with config.{name}={found!r}, not {value_of(wanted)!r}; move the "
                "folder away or choose another --output_dir"
            )


def train(options: argparse.Namespace, config: str, fields: Sequence[str], workdir: Path) -> None:
    """Runs `main.py`.

    Raises:
        UserError: it has failed.
    """
    command = [
        sys.executable,
        str(_ROOT / "main.py"),
        f"--config={_ROOT / config}",
        f"--workdir={workdir}",
        f"--config.data.data_dir={options.data_dir}",
        *fields,
    ]
    print(f"{workdir}: {' '.join(command[1:])}", flush=True)
    code = subprocess.run(command).returncode
    if code:
        raise UserError(f"{workdir}: the run ended with exit code {code}, see what it says above")


def run_all(options: argparse.Namespace) -> str:
    """All runs; the page.

    Raises:
        UserError: too few seeds, or a run has failed.
    """
    if len(set(options.seeds)) < max(2, len(options.seeds)):
        raise UserError(f"--seeds {options.seeds}: name two or more, all different")
    study = STUDIES[options.study]
    folders = {
        (name, seed): options.output_dir / f"{name.replace(' ', '_')}-{seed}"
        for seed in options.seeds
        for name in study.variants
    }
    _train_all(options, study, folders)
    cells = [
        [
            _cells(study, row, [folders[row.variant, seed] for seed in options.seeds])
            for row in t.rows
        ]
        for t in study.tables
    ]
    return markdown(study, cells, options.seeds, options.steps)


def _train_all(
    options: argparse.Namespace, study: Study, folders: Mapping[tuple[str, int], Path]
) -> None:
    """As many at a time as there are jobs; after one that fails, those that run end and none begins."""
    cores = sorted(os.sched_getaffinity(0))
    shares = [cores[job :: options.jobs] or cores for job in range(options.jobs)]
    todo = iter(folders.items())
    lock = threading.Lock()

    def work(share: Sequence[int]) -> None:
        # Of this thread, and so of what it starts.
        os.sched_setaffinity(0, share)
        while True:
            with lock:
                following = next(todo, None)
            if following is None:
                return
            (name, seed), workdir = following
            try:
                run_one(options, study, study.variants[name], seed, workdir)
            except BaseException:
                with lock:
                    collections.deque(todo, maxlen=0)
                raise

    with concurrent.futures.ThreadPoolExecutor(options.jobs) as pool:
        for done in [pool.submit(work, share) for share in shares]:
            done.result()


def _cells(study: Study, row: Row, workdirs: Sequence[Path]) -> dict[str, Cell]:
    scores = [row.read(workdir) for workdir in workdirs]
    return {metric: Cell.of([one[metric] for one in scores]) for metric in study.metrics}


def main() -> int:
    """The command line; returns the exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--study", choices=STUDIES, required=True)
    parser.add_argument("--data_dir", default="data")
    parser.add_argument("--output_dir", type=Path, required=True)
    parser.add_argument("--page", type=Path, help="Markdown file to write (default: print only)")
    parser.add_argument("--steps", type=int, help="of a run (default: the study's)")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time")
    options = parser.parse_args()
    options.steps = options.steps or STUDIES[options.study].steps
    try:
        text = run_all(options)
        print(text)
        if options.page:
            options.page.write_text(text)
    except (UserError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def _is_finished(workdir: Path, study: Study) -> bool:
    return summary(workdir).keys() >= set(study.metrics)


def value_of(text: str) -> object:
    """What an override is in `config.json`: a number or a list where it is one, else the text."""
    try:
        value = ast.literal_eval(text)
    except (SyntaxError, ValueError):
        return text
    return list(value) if isinstance(value, tuple) else value


if __name__ == "__main__":
    sys.exit(main())
